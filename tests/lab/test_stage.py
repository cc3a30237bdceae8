"""The stage that tests get, against a real one: clients, credentials, a child's environment, logs."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import CommandFailed
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.settings import Layer, load
from pytest_stagegbo.stage import Stage, clients

if TYPE_CHECKING:
    import subprocess

    from tests.lab.conftest import InNetwork, StageGbo

    from pytest_stagegbo.lab import Lab

pytestmark = pytest.mark.lab


def open_stage(lab: Lab, **values: str) -> Stage:
    """The stage of the default lab, with further settings."""
    layer = Layer.from_dotted("lab", {"incus.endpoint": str(lab.socket), **values})
    settings = load(None, Path("/"), {}, options=[layer]).settings

    def reset(names: tuple[str, ...]) -> None:
        pytest.fail(f"nobody asked to reset {names}", pytrace=False)

    return Stage(StageEngine(settings, Connection(settings.incus)), reset=reset)


@pytest.fixture(scope="module")
def there(stagegbo: StageGbo) -> subprocess.CompletedProcess[str]:
    """The stage is there and answers, its Vault open."""
    return stagegbo("provision")


@pytest.fixture(scope="module")
def stage(lab: Lab, there: subprocess.CompletedProcess[str]) -> Stage:
    assert there.returncode == 0
    return open_stage(lab)


def test_rows_go_to_postgresql_and_come_back(stage: Stage, in_network: InNetwork) -> None:
    pytest.importorskip("psycopg")

    def work() -> None:
        with clients.postgres(stage) as connection:
            assert connection.execute("SELECT count(*) FROM users").fetchone() == (500,)
            server = connection.execute("SELECT host(inet_server_addr()), current_database()").fetchone()
            assert server == ("10.0.3.11", "botserver")
            connection.execute("CREATE TABLE of_a_test (id integer)")
        with clients.postgres(stage) as connection:
            assert connection.execute("SELECT to_regclass('of_a_test')").fetchone() == (None,)

    in_network(work)


def test_a_key_goes_to_valkey_and_comes_back(stage: Stage, in_network: InNetwork) -> None:
    pytest.importorskip("valkey")
    key = f"test:{uuid.uuid4()}"

    def work() -> None:
        with clients.valkey(stage, decode_responses=True) as client:
            assert client.set(key, "value", ex=60)
            assert client.get(key) == "value"
            assert client.delete(key) == 1

    in_network(work)


def test_an_object_goes_to_drive_and_comes_back(stage: Stage, in_network: InNetwork, tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    bucket = f"test-{uuid.uuid4()}"
    file = tmp_path / "big"
    file.write_bytes(os.urandom(9 * 1024 * 1024))  # in two parts

    def work() -> None:
        with clients.s3(stage) as client:
            client.create_bucket(Bucket=bucket)
            try:
                client.put_object(Bucket=bucket, Key="folder/a file.bas", Body=b'TALK "Hello"')
                assert client.get_object(Bucket=bucket, Key="folder/a file.bas")["Body"].read() == b'TALK "Hello"'
                client.upload_file(str(file), bucket, "big")
                client.download_file(bucket, "big", str(tmp_path / "back"))
                listed = client.list_objects_v2(Bucket=bucket)["Contents"]
                assert {entry["Key"] for entry in listed} == {"folder/a file.bas", "big"}
            finally:
                for entry in client.list_objects_v2(Bucket=bucket).get("Contents", ()):
                    client.delete_object(Bucket=bucket, Key=entry["Key"])
                client.delete_bucket(Bucket=bucket)

    in_network(work)
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_vault_gives_what_botserver_may_read(stage: Stage, in_network: InNetwork) -> None:
    hvac = pytest.importorskip("hvac")

    def work() -> None:
        with clients.vault(stage) as client:
            assert client.is_authenticated()
            store = client.secrets.kv.v2
            found = store.read_secret_version(path="gbo/tables", raise_on_deleted_version=True)["data"]["data"]
            assert found["host"] == "10.0.2.11"
            with pytest.raises(hvac.exceptions.Forbidden):
                store.create_or_update_secret(path="gbo/tables", secret={})

    in_network(work)


def test_the_model_answers(stage: Stage, in_network: InNetwork) -> None:
    pytest.importorskip("openai")

    def work() -> None:
        with clients.llm(stage, timeout=60) as client:
            (model,) = client.models.list()
            answer = client.chat.completions.create(
                model=model.id, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, temperature=0
            )
            assert answer.choices[0].message.content

    in_network(work, timeout=120)


def test_credentials_are_those_that_botserver_finds(stage: Stage, lab: Lab, in_network: InNetwork) -> None:
    made = json.loads(lab.paths.credentials.read_text())

    def work() -> None:
        tables, drive = stage.tables.credentials, stage.drive.credentials
        assert (tables.user, tables.password) == (made["tables"]["username"], made["tables"]["password"])
        assert stage.cache.credentials.password == made["cache"]["password"]
        assert (drive.access_key, drive.secret_key) == (made["drive"]["access_key"], made["drive"]["secret_key"])
        assert tables.withheld == ("host", "port")
        assert tables.source == "Vault secret/gbo/tables"
        assert f"VAULT_TOKEN={stage.vault.credentials.token}\n" in stage.system.exec("cat", "/opt/gbo/bin/.env").stdout

    in_network(work)


def test_a_child_is_sent_to_the_stage_and_gets_no_token(stage: Stage, in_network: InNetwork) -> None:
    """The secrets name production's addresses, and a child on the host would follow them."""
    env = in_network(stage.env)
    assert env["STAGEGBO_ENDPOINT_TABLES_HOST"] == "10.0.3.11"
    assert env["DATABASE_URL"] == f"postgresql://gbuser:{stage.tables.credentials.password}@10.0.3.11:5432/botserver"
    assert env["REDIS_URL"] == f"redis://:{stage.cache.credentials.password}@10.0.3.13:6379/0"
    assert env["AWS_ENDPOINT_URL"] == "http://10.0.3.14:9100"
    assert env["OPENAI_BASE_URL"] == "http://10.0.3.15:8081/v1"
    assert env["VAULT_ADDR"] == "http://10.0.3.12:8200"
    assert "VAULT_TOKEN" not in env
    assert not [value for value in env.values() if "10.0.2." in value]
    with_token = in_network(lambda: stage.env(vault_token=True))
    assert with_token == {**env, "VAULT_TOKEN": stage.vault.credentials.token}


def test_nor_with_a_token_that_may_see_all_of_them(
    lab: Lab, there: subprocess.CompletedProcess[str], in_network: InNetwork, tmp_path: Path
) -> None:
    """Vault's own root token, which may list: production's addresses are found, not assumed."""
    assert there.returncode == 0
    file = tmp_path / "token"
    file.write_text(json.loads(lab.vault_init.read_text())["root_token"])
    stage = open_stage(lab, **{"vault.token_file": str(file)})
    assert "VAULT_TOKEN" not in in_network(stage.env)
    assert stage.vault.credentials.token == file.read_text()


def test_settings_win(lab: Lab, there: subprocess.CompletedProcess[str], in_network: InNetwork) -> None:
    assert there.returncode == 0
    stage = open_stage(lab, **{"credentials.tables.user": "somebody", "credentials.tables.database": "other"})
    found = in_network(lambda: stage.tables.credentials)
    assert (found.user, found.database) == ("somebody", "other")
    assert len(found.password) == 32


def test_no_repr_shows_a_secret(stage: Stage, lab: Lab, in_network: InNetwork) -> None:
    env = in_network(lambda: stage.env(vault_token=True))
    found = [service.credentials for service in stage.services.values()]
    text = repr(
        (stage, stage.credentials, stage.services, found, [dict(each) for each in found], env, stage.tables.dsn)
    )
    made = json.loads(lab.paths.credentials.read_text())
    secrets = [
        made[name][key] for name in made for key in ("password", "access_key", "secret_key") if key in made[name]
    ]
    assert len(secrets) == 4
    assert not [secret for secret in (*secrets, stage.vault.credentials.token) if secret in text]


def test_logs_since_a_moment_are_those_written_since(stage: Stage, in_network: InNetwork) -> None:
    log = f"/opt/gbo/logs/botserver/test-{uuid.uuid4()}.log"
    password = in_network(lambda: stage.tables.credentials.password)
    write = 'echo "$(date -u +%FT%T.%3N) $2" >> "$1"'
    try:
        stage.system.exec("sh", "-c", write, "sh", log, "before the moment")
        time.sleep(0.05)
        since = time.time()
        time.sleep(0.05)
        stage.system.exec("sh", "-c", write, "sh", log, f"after it, {password}")
        recent = in_network(lambda: stage.system.logs(since=since))
        everything = in_network(stage.system.logs)
    finally:
        stage.system.exec("rm", "-f", log)
    assert f"file {log}:" in recent
    assert "after it, ***" in recent
    assert "before the moment" not in recent
    assert "before the moment" in everything
    assert password not in everything


def test_the_journal_is_part_of_the_logs(stage: Stage, in_network: InNetwork) -> None:
    """Of the unit: systemd writes there that it started it."""
    assert "postgresql" in in_network(stage.tables.logs)


@pytest.mark.both_lts
@pytest.mark.parametrize("status", [126, 127])
def test_a_script_may_end_with_the_status_of_a_missing_program(
    stage: Stage, in_network: InNetwork, status: int
) -> None:
    """Incus takes the operation for failed: its output was lost."""

    def check() -> None:
        done = stage.cache.exec("sh", "-c", f"echo out; echo err >&2; exit {status}", check=False)
        assert (done.status, done.stdout, done.stderr) == (status, "out\n", "err\n")
        with pytest.raises(CommandFailed, match="nosuch in cache ended with status 127") as failed:
            stage.cache.exec("nosuch")
        assert "nosuch: there is no such program" in failed.value.seen

    in_network(check)


@pytest.mark.parametrize("name", ["system", "tables", "vault", "cache", "drive", "llm"])
def test_a_command_runs_in_its_container(stage: Stage, name: str) -> None:
    assert stage[name].exec("hostname").stdout.strip() == name


def test_beside_the_stage_s_network_clients_reach_the_services_through_the_daemon(
    lab: Lab, there: subprocess.CompletedProcess[str]
) -> None:
    """As in a container that has the daemon's socket and no way to the clones. Addresses are of loopback then; the
    signatures of S3 cover them, and the services see the clone's own address."""
    assert there.returncode == 0
    for client in ("psycopg", "valkey", "boto3", "hvac"):
        pytest.importorskip(client)
    bucket = f"test-{uuid.uuid4()}"

    stage = open_stage(lab)
    assert not stage._engine.way.is_direct  # this process is in another network than the lab's daemon
    try:
        env = stage.env()
        assert env["STAGEGBO_ENDPOINT_TABLES_HOST"] == "127.0.0.1"
        assert env["AWS_ENDPOINT_URL"] == f"http://127.0.0.1:{stage.drive.port}"
        assert not [value for value in env.values() if "10.0." in value]
        with clients.postgres(stage) as connection:
            asked = "SELECT host(inet_server_addr()), host(inet_client_addr()), count(*) FROM users"
            assert connection.execute(asked).fetchone() == ("10.0.3.11", "10.0.3.11", 500)
        with clients.valkey(stage) as cache:
            assert cache.ping()
        with clients.s3(stage) as drive:
            drive.create_bucket(Bucket=bucket)
            drive.put_object(Bucket=bucket, Key="key", Body=bytes(6_000_000))
            assert len(drive.get_object(Bucket=bucket, Key="key")["Body"].read()) == 6_000_000
            drive.delete_object(Bucket=bucket, Key="key")
            drive.delete_bucket(Bucket=bucket)
        with clients.vault(stage) as vault:
            assert vault.is_authenticated()
    finally:
        stage._engine.close()
