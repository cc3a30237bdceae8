"""Clients are made for the stage's own services, close themselves, and say what to install when they can't be."""

from __future__ import annotations

import datetime
import ssl
import sys
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from stage_fakes import HERE, PASSWORD, FakeEngine, Vault, at, serving, settings_for

from pytest_stagegbo.errors import MissingRequirement, NotReady
from pytest_stagegbo.stage import clients

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_stagegbo.stage import Stage


@pytest.fixture
def vault() -> Iterator[Vault]:
    with serving() as vault:
        yield vault


@pytest.fixture
def stage(vault: Vault) -> Stage:
    return FakeEngine(settings_for(vault)).stage()


@pytest.mark.parametrize(
    ("factory", "library", "extra"),
    [
        pytest.param(clients.postgres, "psycopg", "postgres", id="postgres"),
        pytest.param(clients.valkey, "valkey", "valkey", id="valkey"),
        pytest.param(clients.s3, "boto3", "s3", id="s3"),
        pytest.param(clients.vault, "hvac", "vault", id="vault"),
        pytest.param(clients.llm, "openai", "llm", id="llm"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, factory: Callable[[Stage], Any], library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingRequirement) as caught, factory(stage):
        pass
    assert f"pip install 'pytest-stagegbo[{extra}]'" in caught.value.remedy
    assert "pip install 'pytest-stagegbo[clients]'" in caught.value.remedy


def test_importing_the_stage_imports_no_client() -> None:
    import subprocess

    program = (
        "import sys, pytest_stagegbo.stage.clients; "
        "print({'psycopg', 'valkey', 'boto3', 'botocore', 'hvac', 'openai', 'requests', 'pylxd'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_refused_connection_says_so_without_the_password(vault: Vault) -> None:
    pytest.importorskip("psycopg")
    with serving() as gone:
        pass
    stage = FakeEngine(at(settings_for(vault), "tables", "postgresql", gone.port)).stage()
    with pytest.raises(NotReady) as caught, clients.postgres(stage):
        pass
    assert "refused" in caught.value.seen
    assert PASSWORD not in str(caught.value)


def test_missing_credentials_are_named(stage: Stage, vault: Vault) -> None:
    pytest.importorskip("boto3")
    vault.secrets["drive"] = {"access_key": "a"}
    with pytest.raises(MissingRequirement, match="drive: no secret_key among its credentials"), clients.s3(stage):
        pass


class TestThePersonsOwnSurroundings:
    """Proxies, profiles and keys of whoever runs the tests have no part in it."""

    @pytest.fixture(autouse=True)
    def _surroundings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
            monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-person")
        monkeypatch.setenv("VAULT_TOKEN", "hvs.of-the-person")
        monkeypatch.setenv("VAULT_ADDR", "http://10.0.2.12:8200")

    def test_vault(self, stage: Stage) -> None:
        pytest.importorskip("hvac")
        with clients.vault(stage) as client:
            found = client.secrets.kv.v2.read_secret_version(path="gbo/tables", raise_on_deleted_version=True)
        assert found["data"]["data"]["username"] == "gbuser"

    def test_s3(self, vault: Vault) -> None:
        pytest.importorskip("boto3")
        stage = FakeEngine(at(settings_for(vault), "drive", "s3", vault.port)).stage()
        with clients.s3(stage, retries={"max_attempts": 0}) as client:
            answer = client.meta.endpoint_url, client.meta.config.s3["addressing_style"]
            with pytest.raises(client.exceptions.ClientError):
                client.get_object(Bucket="bucket", Key="some key")
        assert answer == (f"http://{HERE}:{vault.port}", "path")
        assert vault.asked[-1] == "/bucket/some%20key"

    def test_llm(self, vault: Vault) -> None:
        openai = pytest.importorskip("openai")
        stage = FakeEngine(at(settings_for(vault), "llm", "http", vault.port)).stage()
        with clients.llm(stage, max_retries=0) as client:
            assert client.api_key == "none"
            with pytest.raises(openai.APIStatusError):
                client.models.list()
        assert vault.asked[-1] == "/v1/models"
        assert client.is_closed()


def test_valkey_connects_to_the_stage_with_its_password(vault: Vault) -> None:
    pytest.importorskip("valkey")
    stage = FakeEngine(settings_for(vault)).stage()
    with clients.valkey(stage, db=1) as client:
        options = client.connection_pool.connection_kwargs
    assert (options["host"], options["port"], options["db"]) == ("10.0.3.13", 6379, 1)
    assert options["password"] == "password-of-cache"


def test_vault_over_tls_with_a_private_authority(tmp_path: Path) -> None:
    """No warning of an unchecked certificate, which pytest may turn into an error."""
    pytest.importorskip("hvac")
    with serving(certificate(tmp_path)) as vault:
        stage = FakeEngine(settings_for(vault, tls=True)).stage()
        assert stage.tables.credentials.user == "gbuser"
        with clients.vault(stage) as client:
            found = client.secrets.kv.v2.read_secret_version(path="gbo/cache", raise_on_deleted_version=True)
        assert found["data"]["data"]["password"] == "password-of-cache"


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate for production's address, signed by itself."""
    from cryptography import x509  # pylxd brings it
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vault")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("10.0.2.12"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "vault.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
