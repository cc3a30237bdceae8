"""Secrets don't reach people's eyes; everything else does."""

from __future__ import annotations

import pickle
import time

import pytest

from pytest_stagegbo.services.masking import Masker, mask

SECRET = "Zk8q2LxTn4vR"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgres://gbuser:Zk8q2LxTn4vR@10.0.3.11:5432/botserver", "postgres://gbuser:***@10.0.3.11:5432/botserver"),
        ("redis://:Zk8q2LxTn4vR@10.0.3.13/0", "redis://:***@10.0.3.13/0"),
        ("redis://:Zk8q@LxTn4vR@10.0.3.13/0", "redis://:***@10.0.3.13/0"),
        ("password=Zk8q2LxTn4vR host=tables", "password=*** host=tables"),
        ("PGPASSWORD='Zk8q 2LxTn4vR' psql", "PGPASSWORD=*** psql"),
        ('{"user":"gb","password": "Zk8q2 LxTn4vR","port":5432}', '{"user":"gb","password": ***,"port":5432}'),
        ('{\\"password\\":\\"Zk8q2LxTn4vR\\"}', '{\\"password\\":***}'),
        ("db.secret_key: Zk8q2LxTn4vR", "db.secret_key: ***"),
        ("DRIVE_SECRET=Zk8q2LxTn4vR&x=1", "DRIVE_SECRET=***&x=1"),
        ("mc --secret-key Zk8q2LxTn4vR ls", "mc --secret-key *** ls"),
        ("ALTER ROLE gbuser PASSWORD 'Zk8q2LxTn4vR'", "ALTER ROLE gbuser PASSWORD ***"),
        ("requirepass Zk8q2LxTn4vR", "requirepass ***"),
        ("Authorization: Bearer Zk8q2LxTn4vR", "Authorization: ***"),
        ("authorization: AWS4-HMAC-SHA256 Credential=A/2026, Signature=ab", "authorization: ***"),
        ("sent bearer Zk8q2LxTn4vR to it", "sent bearer *** to it"),
        ("X-Vault-Token: Zk8q2LxTn4vR, next", "X-Vault-Token: ***, next"),
        ("VAULT_TOKEN=hvs.CAESIZk8q2LxTn4vR", "VAULT_TOKEN=***"),
        ("using hvs.CAESIZk8q2LxTn4vR now", "using *** now"),
        ("using s.Zk8q2LxTn4vRZk8q2LxTn4vR now", "using *** now"),
        ("Unseal Key 3: Zk8q2LxTn4vR", "Unseal Key 3: ***"),
        ('"unseal_keys_b64": ["Zk8q2LxTn4vR", "Zk8q"], "n": 5', '"unseal_keys_b64": ***, "n": 5'),
        ("id AKIAIOSFODNN7EXAMPLE", "id ***"),
        ("key wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "key ***"),
        ("aws_secret_access_key = wJalr", "aws_secret_access_key = ***"),
        ("GET /b?X-Amz-Signature=0a1b2c HTTP/1.1", "GET /b?X-Amz-Signature=*** HTTP/1.1"),
        ("SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy", "SCRAM-SHA-256$***"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\nvQ==\n-----END PRIVATE KEY-----\nok",
         "-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----\nok"),
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_shape(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert mask(masked) == masked, "masking twice changes nothing"


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  password authentication failed for user "gbuser"',
        "57P03 the database system is starting up",
        "-NOAUTH Authentication required.",
        "Started vault.service - HashiCorp Vault.",
        "listening on http://10.0.3.14:9100 and http://10.0.3.14:9101",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "open /opt/gbo/data/pgdata/base/16384/PG_VERSION: no such file",
        "minio.service: Main process exited, code=exited, status=1/FAILURE",
        "INFO core.seal: stored unseal keys supported, attempting fetch",
        "mail from gb@example.org, see https://example.org/a@b",
    ],
)
def test_what_people_need_stays(text: str) -> None:
    assert mask(text) == text


def test_long_log_lines_take_no_time() -> None:
    text = "token " * 20_000 + "a" * 100_000 + "://" * 10_000 + "Aa1" * 30_000
    began = time.monotonic()
    mask(text)
    assert time.monotonic() - began < 5


class TestMasker:
    def test_finds_known_secrets_anywhere(self) -> None:
        assert Masker([SECRET]).mask(f"x{SECRET}y {SECRET}") == "x***y ***"

    def test_takes_the_longest_of_secrets_that_begin_alike(self) -> None:
        assert Masker(["abcdef", "abcdefghi"]).mask("abcdefghi abcdef") == "*** ***"

    def test_passes_over_what_is_too_short_to_be_told_from_words(self) -> None:
        assert Masker(["main", " \n"]).mask("main exited") == "main exited"

    def test_masks_shapes_too(self) -> None:
        assert Masker([SECRET]).mask("password=somethingelse") == "password=***"

    def test_learns(self) -> None:
        masker = Masker()
        masker.add(SECRET)
        assert masker.mask(SECRET) == "***"

    def test_keeps_what_it_knows(self) -> None:
        masker = Masker([SECRET])
        assert repr(masker) == "Masker(1 secrets)"
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(masker)
