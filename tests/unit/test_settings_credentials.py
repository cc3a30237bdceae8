"""Where credentials come from: a table for each container, beside Vault's token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import Layer, Settings, build, load
from pytest_stagegbo.settings.build import resolve

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret-of-somebody"


def from_keys(*layers: dict[str, Any]) -> Settings:
    return build([Layer.from_dotted(f"f{number}", values) for number, values in enumerate(layers)])


def refusal(*layers: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        from_keys(*layers)
    return caught.value.message


def test_nothing_is_the_default() -> None:
    assert dict(Settings().credentials) == {}


def test_any_key_of_any_container_can_be_given() -> None:
    settings = from_keys({"credentials.tables.user": "me", "credentials.cache.password_env": "PW"})
    assert settings.credentials == {"tables": {"user": "me"}, "cache": {"password_env": "PW"}}


def test_layers_win_key_by_key() -> None:
    settings = from_keys(
        {"credentials.tables.user": "low", "credentials.tables.password_env": "PW"}, {"credentials.tables.user": "high"}
    )
    assert settings.credentials == {"tables": {"user": "high", "password_env": "PW"}}


def test_another_source_of_the_same_credential_silences_the_one_below() -> None:
    settings = from_keys({"credentials.tables.password_env": "PW"}, {"credentials.tables.password": "pw"})
    assert settings.credentials == {"tables": {"password": "pw"}}
    vault = from_keys({"vault.token_env": "TOKEN"}, {"vault.token_file": "/token"}).vault
    assert (vault.token_env, vault.token_file) == ("", "/token")


def test_a_token_leaves_the_unseal_keys_alone() -> None:
    vault = from_keys({"vault.unseal_env": "KEYS"}, {"vault.token_env": "TOKEN"}).vault
    assert (vault.unseal_env, vault.token_env) == ("KEYS", "TOKEN")


def test_each_has_its_origin() -> None:
    origins = resolve([Layer.from_dotted("f", {"credentials.tables.user": "me"})]).origins
    assert origins["credentials.tables.user"] == "f credentials.tables.user"
    assert [key for key in origins if key.startswith("credentials")] == ["credentials.tables.user"]


def test_variables_and_files_give_them(tmp_path: Path) -> None:
    (tmp_path / "stagegbo.toml").write_text(
        '[containers.my-db]\naddress = "10.0.3.40"\n[credentials.my-db]\npassword_file = "secrets/db"\n'
        '[vault]\ntoken_file = "token"\n'
    )
    environ = {"STAGEGBO_CREDENTIALS__MY_DB__USER": "me", "STAGEGBO_CREDENTIALS__TABLES__SECRET_KEY_ENV": "KEY"}
    settings = load(None, tmp_path, environ).settings
    assert settings.credentials == {
        "my-db": {"password_file": str(tmp_path / "secrets/db"), "user": "me"},
        "tables": {"secret_key_env": "KEY"},
    }
    assert settings.vault.token_file == str(tmp_path / "token")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(
            {"credentials.tbales.user": "me"},
            "f0 credentials.tbales.user: 'tbales' is not a container of the stage; "
            "there are cache, drive, llm, system, tables, vault",
            id="unknown-container",
        ),
        pytest.param(
            {"credentials.tables.password": SECRET, "credentials.tables.password_env": "PW"},
            "f0 credentials.tables.password: password comes from one place; credentials.tables.password and "
            "credentials.tables.password_env are set (see also f0 credentials.tables.password_env)",
            id="two-sources",
        ),
        pytest.param(
            {"credentials.tables.host": "10.0.2.11"},
            "f0 credentials.tables.host: where a service is does not come from its credentials; see "
            "containers.tables.address and .probes",
            id="host",
        ),
        pytest.param(
            {"credentials.tables.password_env": f"{SECRET}!"},
            "f0 credentials.tables.password_env: the value (not shown) is not the name of an environment variable",
            id="a-secret-for-a-name",
        ),
        pytest.param(
            {"credentials.tables._env": "PW"},
            "f0 credentials.tables._env: '_env' names no credential; write one such as password_env",
            id="no-name",
        ),
        pytest.param(
            {"credentials.tables.password": 12345678},
            "f0 credentials.tables.password: the value (not shown) is not text; put it in quotes",
            id="a-number",
        ),
        pytest.param(
            {"credentials.tables": SECRET},
            "f0 credentials.tables: credentials.tables is a table of settings, not one value",
            id="no-table",
        ),
        pytest.param(
            {"credentials.tables.password.deep": SECRET},
            "f0 credentials.tables.password: the value (not shown) is not text",
            id="too-deep",
        ),
        pytest.param(
            {"vault.token_env": "T", "vault.token_file": "/t"},
            "f0 vault.token_env: the token comes from one place; vault.token_env and vault.token_file are set "
            "(see also f0 vault.token_file)",
            id="two-tokens",
        ),
        pytest.param(
            {"vault.token_env": "hvs.a-token!"},
            "f0 vault.token_env: the value (not shown) is not the name of an environment variable",
            id="a-token-for-a-name",
        ),
        pytest.param(
            {"vault.kv_path": "secret//gbo"},
            "f0 vault.kv_path: this is not a mount and a folder such as secret/gbo",
            id="path",
        ),
        pytest.param(
            {"vault.env_file": ".env"}, "f0 vault.env_file: this is not an absolute path inside a container", id="file"
        ),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict[str, Any], expected: str) -> None:
    text = refusal(values)
    assert text == f"1 problem in the settings:\n  1. {expected}"
    assert SECRET not in text


def test_an_unknown_variable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\$STAGEGBO_CREDENTIALS: unknown variable"):
        load(None, tmp_path, {"STAGEGBO_CREDENTIALS": "x"})


def test_no_repr_shows_a_value() -> None:
    loaded = resolve([Layer.from_dotted("f", {"credentials.tables.password": SECRET})])
    assert SECRET not in repr(loaded)
    assert SECRET not in repr(loaded.settings)
