"""One service at a time, each with the client that BotServer's people use for it.

A test gets what it names as an argument. It shares the containers behind its arguments with other tests, and keeps
those that its marker resets to itself until it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import hvac
    import openai
    import valkey

    from pytest_stagegbo.changes import Changes
    from pytest_stagegbo.stage import Stage

Connection = psycopg.Connection[tuple[Any, ...]]


def test_tables_have_productions_rows(stage_psycopg: Connection) -> None:
    row = stage_psycopg.execute("SELECT count(*) FROM users").fetchone()
    assert row is not None
    assert row[0] > 0


def test_what_is_not_committed_is_gone_after_the_test(stage_psycopg: Connection) -> None:
    # The connection ends with the test, and rolls back: the cheapest way to leave production's copy as it was.
    stage_psycopg.execute("INSERT INTO bots (id, name) VALUES (1000, 'nobody')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        stage_psycopg.execute("INSERT INTO bots (id, name) VALUES (1001, 'nobody')")


@pytest.mark.stage_reset("cache")  # stopped, emptied, started, and it answers: all before the test begins
def test_cache_has_no_session_of_production(stage_valkey: valkey.Valkey) -> None:
    assert list(stage_valkey.scan_iter("session:*")) == []
    stage_valkey.set("session:mine", "hello", ex=60)
    assert stage_valkey.get("session:mine") == b"hello"


@pytest.mark.stage_quiet  # BotServer, which writes to tables and cache by itself, is frozen meanwhile
@pytest.mark.stage_reset("cache", "tables")
def test_a_log_in_changes_one_row_and_one_key(
    stage_psycopg: Connection, stage_valkey: valkey.Valkey, stage_changes: Callable[..., Changes]
) -> None:
    stage_psycopg.execute("UPDATE users SET name = 'Ada' WHERE id = 1")
    stage_psycopg.commit()
    stage_valkey.set("session:4711", "Ada", ex=60)
    changes = stage_changes()
    assert [str(each) for each in changes] == [
        "session:*: 1 key added (string)",
        "botserver.public.users: 1 row changed",
    ]
    assert changes.rows["botserver.public.users"].changed == 1


@pytest.mark.stage_reset("drive")
class TestDrive:
    """The marker of a class counts for each of its tests: all of them begin with an empty drive."""

    def test_has_no_bucket_of_production(self, stage_s3: Any) -> None:
        assert stage_s3.list_buckets()["Buckets"] == []

    def test_gives_back_what_was_put(self, stage_s3: Any) -> None:
        stage_s3.create_bucket(Bucket="mine.gbai")
        stage_s3.put_object(Bucket="mine.gbai", Key="mine.gbkb/handbook.md", Body=b"# Handbook\n")
        assert stage_s3.get_object(Bucket="mine.gbai", Key="mine.gbkb/handbook.md")["Body"].read() == b"# Handbook\n"


def test_vault_is_open_and_has_productions_secrets(stage_hvac: hvac.Client) -> None:
    assert not stage_hvac.sys.is_sealed()
    found = stage_hvac.secrets.kv.v2.read_secret_version("gbo/tables", raise_on_deleted_version=True)
    # Its addresses are production's. Within the stage these belong to the clones; from here, use `stage_tables.host`.
    assert {"host", "port", "password"} <= found["data"]["data"].keys()


def test_llm_answers(stage_openai: openai.OpenAI) -> None:
    question: Any = {"role": "user", "content": "Say hello."}
    model = stage_openai.models.list().data[0].id
    answer = stage_openai.chat.completions.create(model=model, messages=[question], max_tokens=8, temperature=0)
    assert answer.choices[0].message.content


def test_botserver_is_healthy(stage_gbo: Stage, eventually: Callable[[Callable[[], Any]], Any]) -> None:
    # It uses the other five, so the test asks for all: then nobody resets any of them while it runs. A reset just
    # before may have cost BotServer a connection, and BotServer connects again within seconds.
    def status() -> bool:
        try:
            with urlopen(f"{stage_gbo.system.url}/health") as answer:
                return bool(json.load(answer)["status"] == "ok")
        except HTTPError:  # 503: it lacks one of them
            return False

    assert eventually(status)


def test_a_program_of_this_host_uses_the_stage(stage_gbo: Stage) -> None:
    # The way to run a BotServer under test: its addresses and credentials, without Vault's token, because what it
    # would read in Vault are production's addresses.
    code = "import os, psycopg; print(psycopg.connect(os.environ['DATABASE_URL']).info.host)"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env={**os.environ, **stage_gbo.env()}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == stage_gbo.tables.host
    assert "VAULT_TOKEN" not in stage_gbo.env()
