"""A secret gives credentials by one name, keeps what leads to production, and does not show itself."""

from __future__ import annotations

import pickle
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.credentials import Hidden, Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

PRODUCTION = IPv4Network("10.0.2.0/24")


def of_production(address: IPv4Address) -> bool:
    return address in PRODUCTION


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        pytest.param({"username": "gb"}, "user", "gb", id="username"),
        pytest.param({"user": "gb", "username": "other"}, "user", "gb", id="user-first"),
        pytest.param({"PASSWORD": "secret"}, "password", "secret", id="capitals"),
        pytest.param({"accesskey": "a", "secret": "s"}, "secret_key", "s", id="BotServer's-drive"),
        pytest.param({"AWS_ACCESS_KEY_ID": "a"}, "access_key", "a", id="AWS"),
        pytest.param({"api_key": "k"}, "token", "k", id="API"),
        pytest.param({"dbname": "db"}, "database", "db", id="libpq"),
        pytest.param({"password": 12345}, "password", "12345", id="a-number"),
        pytest.param({"password": None}, "password", "", id="null"),
        pytest.param({}, "password", "", id="missing"),
    ],
)
def test_a_field_is_found_under_its_usual_names(values: Mapping[str, object], field: str, expected: str) -> None:
    assert getattr(Secret(values), field) == expected


def test_all_keys_are_there_as_they_are_named() -> None:
    secret = Secret({"password": "pw", "pool_size": 5})
    assert dict(secret) == {"password": "pw", "pool_size": "5"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("host", "tables.production.example", id="a-name"),
        pytest.param("port", 5432, id="port"),
        pytest.param("db_host", "localhost", id="part-of-a-name"),
        pytest.param("url", "http://anything", id="url"),
        pytest.param("connection", "postgresql://gb:pw@10.0.2.11/botserver", id="an-address-within"),
        pytest.param("replicas", ["10.0.2.11", "10.0.2.21"], id="in-a-list"),
    ],
)
def test_what_leads_to_production_is_withheld(key: str, value: object) -> None:
    secret = Secret({key: value, "password": "pw"}, of_production=of_production)
    assert dict(secret) == {"password": "pw"}
    assert secret.withheld == (key,)
    assert secret.merged({"user": "me"}, "settings").withheld == (key,)


@pytest.mark.parametrize("value", ["110.0.2.11", "10.0.2.1112", "10.0.2.11.5", "10.0.20.11", "1.10.0.2.11"])
def test_what_only_looks_like_an_address_of_production_is_not(value: str) -> None:
    assert Secret({"note": value}, of_production=of_production)["note"] == value


def test_its_repr_shows_names_and_no_secret() -> None:
    secret = Secret({"username": "gbuser", "password": "hunter2", "other": "hidden"})
    assert repr(secret) == "Secret(username=gbuser, password=***, other=***)"
    assert "hunter2" not in repr(dict(secret))
    assert "hunter2" not in f"{[secret.password]}"


def test_a_hidden_text_is_a_text() -> None:
    text = Hidden("hunter2")
    assert (f"{text}", str(text), text + "") == ("hunter2",) * 3
    assert repr(text) == "'***'"


def test_it_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret({"password": "pw"}))


def test_settings_replace_a_field_under_all_its_names() -> None:
    secret = Secret({"username": "gbuser", "passwd": "old", "sslmode": "prefer"}, "Vault secret/gbo/tables")
    merged = secret.merged({"user": "me", "password": "new"}, "settings credentials.tables")
    assert dict(merged) == {"sslmode": "prefer", "user": "me", "password": "new"}
    assert merged.source == "settings credentials.tables, then Vault secret/gbo/tables"
