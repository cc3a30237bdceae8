"""Credentials come from the settings, then from the stage's Vault with BotServer's token; errors say what to do."""

from __future__ import annotations

import threading
import traceback
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from msgspec import structs
from stage_fakes import PASSWORD, TOKEN, FakeEngine, FakeReader, Vault, serving, settings_for

from pytest_stagegbo.credentials import Credentials
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import (
    MissingRequirement,
    NotReady,
    ServerRefused,
    SettingsError,
    StageGboError,
    VaultSealed,
)
from pytest_stagegbo.settings.model import ProbeSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pytest_stagegbo.settings import Settings


@pytest.fixture
def vault() -> Iterator[Vault]:
    with serving() as vault:
        yield vault


def credentials(
    settings: Settings, reader: FakeReader | None = None, environ: Mapping[str, str] | None = None
) -> Credentials:
    return Credentials(settings, (reader or FakeReader()).as_reader(), environ=environ or {})


def test_nothing_is_asked_before_somebody_wants_it(vault: Vault) -> None:
    reader = FakeReader()
    repr(credentials(settings_for(vault), reader))
    assert vault.asked == []
    assert reader.asked == []


def test_the_token_is_that_of_botserver_in_the_stage(vault: Vault) -> None:
    reader = FakeReader()
    assert credentials(settings_for(vault), reader)["tables"].password == PASSWORD
    assert reader.asked == [("STAGE-GBO", "system", "/opt/gbo/bin/.env")]
    assert vault.asked == ["/v1/secret/data/gbo/tables"]


@pytest.mark.parametrize(
    "env",
    [
        pytest.param(f"VAULT_TOKEN={TOKEN}", id="plain"),
        pytest.param(f'export VAULT_TOKEN="{TOKEN}"\r\n', id="exported"),
        pytest.param(f"# VAULT_TOKEN=old\nVAULT_TOKEN = '{TOKEN}' # comment", id="quoted"),
        pytest.param(f"VAULT_TOKEN=old\nVAULT_TOKEN={TOKEN} # the last wins", id="twice"),
    ],
)
def test_the_token_is_found_however_it_is_written(vault: Vault, env: str) -> None:
    assert credentials(settings_for(vault), FakeReader(env))["tables"].user == "gbuser"


def test_vault_is_found_at_whichever_probe_of_its_container_speaks_its_protocol(vault: Vault) -> None:
    settings = settings_for(vault)
    both = settings.containers["vault"]
    both = structs.replace(both, probes=(ProbeSettings("tcp", 8300), *both.probes))
    settings = structs.replace(settings, containers=MappingProxyType({**settings.containers, "vault": both}))
    found = credentials(settings)
    assert found["tables"].password == PASSWORD
    assert found["vault"].token == TOKEN
    assert marks.vault_container(settings) == both
    stage = FakeEngine(settings).stage()
    assert stage.env(vault_token=True)["VAULT_ADDR"] == f"http://127.0.0.1:{both.probes[1].port}"


def test_a_token_of_the_settings_wins(vault: Vault, tmp_path: Path) -> None:
    reader = FakeReader(None)
    by_env = credentials(settings_for(vault, token_env="MY_TOKEN"), reader, {"MY_TOKEN": TOKEN})
    assert by_env["vault"].token == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert credentials(settings_for(vault, token_file=str(file)), reader).token() == TOKEN
    given = settings_for(vault, credentials={"vault": {"token_env": "MY_TOKEN"}})
    assert credentials(given, reader, {"MY_TOKEN": TOKEN})["cache"].password == "password-of-cache"
    assert reader.asked == []


def test_a_secret_is_fetched_once_by_however_many_threads(vault: Vault) -> None:
    found = credentials(settings_for(vault))
    threads = [threading.Thread(target=lambda: found["tables"]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert vault.asked == ["/v1/secret/data/gbo/tables"]


def test_a_service_without_a_secret_has_empty_credentials(vault: Vault) -> None:
    assert dict(credentials(settings_for(vault))["system"]) == {}


def test_settings_that_say_it_all_make_vault_superfluous() -> None:
    settings = settings_for(None, credentials={"tables": {"user": "me", "password_env": "PW"}})
    reader = FakeReader(None)
    secret = credentials(settings, reader, {"PW": "mine"})["tables"]
    assert (secret.user, secret.password, secret.source) == ("me", "mine", "settings credentials.tables")
    assert reader.asked == []


def test_settings_win_key_by_key(vault: Vault) -> None:
    settings = settings_for(vault, credentials={"tables": {"password": "mine"}})
    secret = credentials(settings)["tables"]
    assert (secret.user, secret.password, secret.database) == ("gbuser", "mine", "botserver")


def test_a_file_holds_a_credential(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" mine\n")
    settings = settings_for(None, credentials={"cache": {"password_file": str(file)}})
    assert credentials(settings)["cache"].password == "mine"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        pytest.param(
            "password_env", "NOT_THERE", "credentials.cache.password_env: $NOT_THERE is not set", id="variable"
        ),
        pytest.param("password_file", "/not/there", "/not/there: No such file or directory", id="file"),
    ],
)
def test_a_setting_with_nothing_in_it_is_an_error(key: str, value: str, expected: str) -> None:
    settings = settings_for(None, credentials={"cache": {key: value}})
    with pytest.raises(SettingsError, match=expected.replace("$", r"\$")):
        credentials(settings)["cache"]


def test_an_unset_token_variable_is_an_error(vault: Vault) -> None:
    with pytest.raises(SettingsError, match=r"vault\.token_env: \$MY_TOKEN is not set"):
        credentials(settings_for(vault, token_env="MY_TOKEN"))["tables"]


class TestWhatGoesWrong:
    def test_sealed(self, vault: Vault) -> None:
        vault.sealed = True
        with pytest.raises(VaultSealed) as caught:
            credentials(settings_for(vault))["tables"]
        assert "vault is sealed, so the credentials in secret/gbo/tables can't be read" in str(caught.value)
        assert "unseal_file" in caught.value.remedy

    def test_and_it_is_asked_again_once_it_is_open(self, vault: Vault) -> None:
        found = credentials(settings_for(vault))
        vault.sealed = True
        with pytest.raises(VaultSealed):
            found["tables"]
        vault.sealed = False
        assert found["tables"].user == "gbuser"

    def test_denied(self, vault: Vault) -> None:
        vault.forbidden.add("tables")
        with pytest.raises(MissingRequirement) as caught:
            credentials(settings_for(vault))["tables"]
        assert str(caught.value).startswith("vault denies reading secret/gbo/tables\nlast seen: HTTP 403")
        assert "vault.token_env or vault.token_file" in caught.value.remedy

    def test_no_env_file(self, vault: Vault) -> None:
        with pytest.raises(MissingRequirement, match=r"there is no /opt/gbo/bin/\.env of system in STAGE-GBO"):
            credentials(settings_for(vault), FakeReader(None))["tables"]

    def test_no_token_in_it(self, vault: Vault) -> None:
        with pytest.raises(MissingRequirement, match="has no VAULT_TOKEN"):
            credentials(settings_for(vault), FakeReader("PORT=5858\nMY_VAULT_TOKEN=x"))["tables"]

    def test_a_daemon_that_refuses(self, vault: Vault) -> None:
        class Refusing(FakeReader):
            def file(self, project: str, instance: str, path: str) -> bytes | None:
                raise ServerRefused("no", status=500, seen=f"{project} {instance} {path}")

        with pytest.raises(MissingRequirement, match="can't be read"):
            credentials(settings_for(vault), Refusing())["tables"]

    def test_nobody_there(self) -> None:
        with serving() as gone:
            pass
        with pytest.raises(
            NotReady, match="vault gave no usable answer about secret/gbo/tables\nlast seen: connection"
        ):
            credentials(settings_for(gone))["tables"]

    def test_a_token_that_no_header_can_carry(self, vault: Vault) -> None:
        found = credentials(settings_for(vault, token_env="T"), environ={"T": "hvs.evil\nX-Other: 1"})
        with pytest.raises(NotReady) as caught:
            found["tables"]
        assert "evil" not in str(caught.value)

    def test_an_unknown_container(self, vault: Vault) -> None:
        with pytest.raises(SettingsError, match="no container tbales"):
            credentials(settings_for(vault))["tbales"]

    @pytest.mark.parametrize("how", ["wrong token", "forbidden", "sealed"])
    def test_no_secret_is_in_an_error_or_in_what_its_frames_show(self, vault: Vault, how: str) -> None:
        """As `pytest --showlocals` prints them."""
        token = "hvs.AnotherTokenThatIsWrong" if how == "wrong token" else TOKEN
        vault.sealed = how == "sealed"
        vault.forbidden.add("cache")
        found = credentials(settings_for(vault), FakeReader(f"VAULT_TOKEN={token}"))
        if how == "forbidden":
            assert found["tables"]
        with pytest.raises(StageGboError) as caught:
            found["cache"]
        frames = caught.value.__traceback__
        assert frames is not None
        shown = traceback.TracebackException(StageGboError, caught.value, frames.tb_next, capture_locals=True)
        text = "".join(shown.format())
        assert "found = " in text
        assert token not in text
        assert PASSWORD not in text


class TestDoSecretsLeadToProduction:
    """Whether a child process may have the token."""

    @pytest.fixture(autouse=True)
    def _harmless(self, vault: Vault) -> None:
        vault.may_list = True
        vault.secrets = {"tables": {"host": "10.0.3.11", "password": "pw"}, "email": {"user": "me"}}

    def test_no(self, vault: Vault) -> None:
        assert not credentials(settings_for(vault)).leads_to_production()

    def test_yes_by_a_secret_of_a_service(self, vault: Vault) -> None:
        vault.secrets["drive"] = {"host": "10.0.2.14"}
        assert credentials(settings_for(vault)).leads_to_production()

    def test_yes_by_any_other_secret(self, vault: Vault) -> None:
        vault.secrets["analytics"] = {"dsn": "postgresql://me:pw@10.0.2.99:5432/db"}
        assert credentials(settings_for(vault)).leads_to_production()

    def test_yes_by_one_in_a_folder(self, vault: Vault) -> None:
        vault.secrets["bots/sales/crm"] = {"nested": {"list": ["http://10.0.2.20/"]}}
        assert credentials(settings_for(vault)).leads_to_production()

    def test_yes_when_they_cant_be_listed(self, vault: Vault) -> None:
        vault.may_list = False
        assert credentials(settings_for(vault)).leads_to_production()

    def test_yes_when_one_cant_be_read(self, vault: Vault) -> None:
        vault.forbidden.add("email")
        assert credentials(settings_for(vault)).leads_to_production()

    def test_yes_when_there_are_too_many(self, vault: Vault) -> None:
        vault.secrets |= {f"bots/{number}": {"name": "bot"} for number in range(501)}
        assert credentials(settings_for(vault)).leads_to_production()

    def test_sealed_is_an_error(self, vault: Vault) -> None:
        vault.sealed = True
        with pytest.raises(VaultSealed):
            credentials(settings_for(vault)).leads_to_production()


class TestMasking:
    def test_what_was_fetched_is_masked(self, vault: Vault) -> None:
        found = credentials(settings_for(vault))
        found.load()
        assert found.mask(f"login {PASSWORD} with {TOKEN} and access-of-drive") == "login *** with *** and ***"

    def test_a_vault_that_gives_nothing_is_asked_once_a_minute(self, vault: Vault) -> None:
        vault.sealed = True
        found = credentials(settings_for(vault, credentials={"cache": {"password": "of-the-settings"}}))
        found.load()
        asked = len(vault.asked)
        found.load()
        assert asked == len(vault.asked) == 1
        assert found.mask("of-the-settings") == "***"

    def test_its_repr_tells_names_only(self, vault: Vault) -> None:
        found = credentials(settings_for(vault))
        assert repr(found) == "Credentials(of nothing yet)"
        found.load()
        assert PASSWORD not in repr(found)
        assert TOKEN not in repr(found)
