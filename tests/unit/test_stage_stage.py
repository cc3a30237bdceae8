"""The stage that tests get: addresses of the stage, commands, logs, and the environment of a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from stage_fakes import HERE, PASSWORD, TOKEN, FakeEngine, FakeReader, Vault, at, serving, settings_for

from pytest_stagegbo.errors import CommandFailed, MissingRequirement, SettingsError, StageMissing
from pytest_stagegbo.incus import CommandResult
from pytest_stagegbo.settings import Layer, Settings, build
from pytest_stagegbo.stage import service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.stage import Stage


@pytest.fixture
def vault() -> Iterator[Vault]:
    with serving() as vault:
        yield vault


@pytest.fixture
def stage(vault: Vault) -> Stage:
    return FakeEngine(settings_for(vault)).stage()


def test_making_one_asks_nobody(vault: Vault) -> None:
    engine = FakeEngine(settings_for(vault))
    stage = engine.stage()
    repr((stage, stage.tables, stage.services, stage.tables.url, stage.tables.ports))
    assert vault.asked == []
    assert engine.reader.asked == []
    assert engine.executed == []


def test_services_are_where_the_settings_say_and_not_where_vault_says(stage: Stage) -> None:
    assert (stage.tables.host, stage.tables.port, stage.tables.url) == (
        "10.0.3.11",
        5432,
        "postgresql://10.0.3.11:5432",
    )
    assert stage.system.ports == (5858, 5859)
    assert stage.llm.url == "http://10.0.3.15:8081"
    assert "10.0.2." not in str(dict(stage.tables.credentials)) + stage.tables.dsn


def test_any_container_is_there_by_its_name(stage: Stage) -> None:
    assert [*stage.services] == ["system", "tables", "vault", "cache", "drive", "llm"]
    for name in stage.services:
        assert stage[name] is stage.services[name] is getattr(stage, name)
    with pytest.raises(SettingsError, match="the stage has no container crm"):
        stage["crm"]


def test_services_and_settings_stay_as_they_are(stage: Stage) -> None:
    with pytest.raises(AttributeError):
        stage.tables = stage.cache  # type: ignore[misc]
    with pytest.raises(AttributeError):
        stage.tables.host = "10.0.2.11"  # type: ignore[misc]
    assert isinstance(stage.services, MappingProxyType)


def test_a_container_without_a_probe_has_a_host_and_no_port() -> None:
    values = {"containers.files.address": "10.0.3.20"}
    stage = FakeEngine(build([Layer.from_dotted("f", values)])).stage()
    assert stage["files"].host == "10.0.3.20"
    assert stage["files"].ports == ()
    with pytest.raises(SettingsError, match=r"set containers\.files\.probes"):
        stage["files"].port  # noqa: B018
    assert repr(stage["files"]) == "<Service files at 10.0.3.20>"


class TestDsn:
    def test_of_postgresql(self, stage: Stage) -> None:
        assert str(stage.tables.dsn) == "postgresql://gbuser:p%40ss%2Fword%20of%20tables@10.0.3.11:5432/botserver"

    def test_of_valkey(self, stage: Stage) -> None:
        assert str(stage.cache.dsn) == "redis://:password-of-cache@10.0.3.13:6379/0"

    def test_of_valkey_without_a_password(self, vault: Vault) -> None:
        del vault.secrets["cache"]
        assert str(FakeEngine(settings_for(vault)).stage().cache.dsn) == "redis://10.0.3.13:6379/0"

    def test_with_tls(self, vault: Vault) -> None:
        settings = at(at(settings_for(vault), "cache", "valkey", 1, tls=True), "tables", "postgresql", 2, tls=True)
        stage = FakeEngine(settings).stage()
        assert stage.cache.dsn.startswith("rediss://")
        assert stage.tables.dsn.endswith("/botserver?sslmode=require")

    def test_the_database_is_botservers_if_nobody_names_one(self) -> None:
        settings = settings_for(None, credentials={"tables": {"user": "me", "password": "pw"}})
        assert str(FakeEngine(settings).stage().tables.dsn) == "postgresql://me:pw@10.0.3.11:5432/botserver"

    def test_of_others_there_is_none(self, stage: Stage) -> None:
        with pytest.raises(SettingsError, match="drive speaks s3, which has no dsn"):
            stage.drive.dsn  # noqa: B018

    def test_without_credentials_there_is_none(self, vault: Vault) -> None:
        vault.secrets["tables"] = {"username": "gbuser"}
        with pytest.raises(MissingRequirement) as caught:
            FakeEngine(settings_for(vault)).stage().tables.dsn  # noqa: B018
        assert caught.value.text == (
            "tables: no password among its credentials\n"
            "last seen: Vault secret/gbo/tables: username\n"
            "what to do: write it to Vault, or give it with the setting credentials.tables.password_env"
        )


def test_no_repr_shows_a_secret(stage: Stage) -> None:
    stage.credentials.load()
    env = stage.env(vault_token=True)
    found = stage.tables.credentials
    text = repr(
        (stage, stage.services, stage.tables, stage.tables.dsn, stage.credentials, found, [*found.values()], env)
    )
    text += f"{stage} {stage.tables} {found}"
    for secret in (PASSWORD, "p%40ss", TOKEN, "password-of-cache", "secret-of-drive", "access-of-drive"):
        assert secret not in text


class TestExec:
    def test_it_returns_what_the_command_printed(self, vault: Vault) -> None:
        engine = FakeEngine(settings_for(vault), result=CommandResult(0, "out\n", "err\n"))
        assert engine.stage().tables.exec("echo", "x y", timeout=3) == CommandResult(0, "out\n", "err\n")
        assert engine.executed == [("tables", ("echo", "x y"), 3)]

    def test_a_failure_is_an_error_with_the_end_of_what_was_printed_masked(self, vault: Vault) -> None:
        engine = FakeEngine(settings_for(vault), result=CommandResult(3, "", f"no {PASSWORD}, password=hunter22"))
        stage = engine.stage()
        assert stage.tables.credentials
        with pytest.raises(CommandFailed) as caught:
            stage.tables.exec("psql")
        assert caught.value.message == "psql in tables ended with status 3"
        assert caught.value.seen == "no ***, password=***"

    def test_which_may_be_expected(self, vault: Vault) -> None:
        engine = FakeEngine(settings_for(vault), result=CommandResult(3, "", ""))
        assert engine.stage().tables.exec("false", check=False).status == 3

    def test_a_container_that_does_not_run_is_an_error(self, vault: Vault) -> None:
        with pytest.raises(StageMissing, match="tables is stopped"):
            FakeEngine(settings_for(vault), status="Stopped").stage().tables.exec("true")


class TestLogs:
    @pytest.fixture(autouse=True)
    def token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "token", lambda: "t0ken")

    def test_they_are_masked_and_cut_at_the_moment(self, vault: Vault) -> None:
        lines = f"2020-01-01 00:00:00 old\n2020-01-01 00:00:09 login with {PASSWORD}"
        engine = FakeEngine(settings_for(vault), result=CommandResult(0, f"t0ken file 7 99 /a.log\n{lines}\n", ""))
        logs = engine.stage().tables.logs(since=1577836805.5, lines=7)
        assert logs == "file /a.log:\n2020-01-01 00:00:09 login with ***"
        ((name, argv, _),) = engine.executed
        assert (name, *argv[:2]) == ("tables", "sh", "-c")
        assert "--since=@1577836805.500000" in argv[2]

    def test_a_sealed_vault_does_not_keep_them_away(self, vault: Vault) -> None:
        vault.sealed = True
        printed = "t0ken journal\nRoot Token: hvs.abcdefghijkl"
        engine = FakeEngine(settings_for(vault), result=CommandResult(0, printed, ""))
        assert engine.stage().vault.logs() == "journal:\nRoot Token: ***"


def test_a_reset_is_handed_on(vault: Vault) -> None:
    engine = FakeEngine(settings_for(vault))
    stage = engine.stage()
    stage.reset("cache", "drive")
    stage.reset()
    assert engine.resets == [("cache", "drive"), ("all",)]


class TestEnvironment:
    """Of child processes."""

    def test_addresses_and_credentials(self, stage: Stage, vault: Vault) -> None:
        address = f"http://{HERE}:{vault.port}"
        expected = {
            "STAGEGBO_ENDPOINT_TABLES_HOST": "10.0.3.11",
            "STAGEGBO_ENDPOINT_TABLES_PORT": "5432",
            "STAGEGBO_ENDPOINT_TABLES_URL": "postgresql://10.0.3.11:5432",
            "STAGEGBO_ENDPOINT_SYSTEM_PORT": "5858",
            "STAGEGBO_ENDPOINT_SYSTEM_2_PORT": "5859",
            "STAGEGBO_ENDPOINT_VAULT_URL": address,
            "DATABASE_URL": stage.tables.dsn,
            "REDIS_URL": stage.cache.dsn,
            "AWS_ENDPOINT_URL": "http://10.0.3.14:9100",
            "AWS_ACCESS_KEY_ID": "access-of-drive",
            "AWS_SECRET_ACCESS_KEY": "secret-of-drive",
            "AWS_REGION": "us-east-1",
            "OPENAI_BASE_URL": "http://10.0.3.15:8081/v1",
            "OPENAI_API_KEY": "none",
            "VAULT_ADDR": address,
        }
        env = stage.env()
        assert {name: env.get(name) for name in expected} == expected
        assert not [value for value in env.values() if "10.0.2." in value]

    def test_a_process_gets_them(self, stage: Stage) -> None:
        program = "import os; print(os.environ['DATABASE_URL'])"
        environ = {**os.environ, **stage.env()}
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(stage.tables.dsn)

    def test_no_token_while_vault_names_addresses_of_production(self, stage: Stage, vault: Vault) -> None:
        vault.may_list = True
        assert "VAULT_TOKEN" not in stage.env()

    def test_unless_it_is_asked_for(self, stage: Stage) -> None:
        assert stage.env(vault_token=True)["VAULT_TOKEN"] == TOKEN

    def test_a_token_when_vault_names_none(self, stage: Stage, vault: Vault) -> None:
        vault.may_list = True
        vault.secrets = {name: {**found, "host": "10.0.3.9", "url": ""} for name, found in vault.secrets.items()}
        assert stage.env()["VAULT_TOKEN"] == TOKEN
        assert "VAULT_TOKEN" not in stage.env(vault_token=False)

    def test_no_token_when_they_cant_be_listed(self, stage: Stage, vault: Vault) -> None:
        vault.secrets = {}
        assert "VAULT_TOKEN" not in stage.env()

    def test_what_has_no_credentials_is_left_out(self, stage: Stage, vault: Vault) -> None:
        vault.secrets = {}
        env = stage.env()
        assert not {"DATABASE_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & set(env)
        assert env["AWS_ENDPOINT_URL"] == "http://10.0.3.14:9100"

    def test_a_stage_without_vault_works_with_settings_alone(self) -> None:
        values = {"containers": {"vault": False, "system": False}, "credentials": {"cache": {"password": "of-cache"}}}
        settings: Settings = build([Layer("f", values)])
        env = FakeEngine(settings, FakeReader(None)).stage().env()
        assert env["REDIS_URL"] == "redis://:of-cache@10.0.3.13:6379/0"
        assert not {"VAULT_ADDR", "VAULT_TOKEN", "DATABASE_URL"} & set(env)
