"""Replacing secrets in a KV store: only named fields, only once, and nothing older stays."""

from __future__ import annotations

import pickle
from typing import Any, cast

import pytest

from pytest_stagegbo.credentials.kv import Failure, KeyValue
from pytest_stagegbo.credentials.replacements import Replaced, Replacements, read_replacements
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import Layer, build

PATH = "secret/gbo/mail"
NEW = "the-new-value"


class Store:
    """One secret, as a KV store of version 2 keeps it."""

    def __init__(self, *versions: dict[str, Any]) -> None:
        self.contents: dict[int, dict[str, Any] | None] = dict(enumerate(versions, 1))
        self.conflicts = 0
        self.keeps_older = False

    def newest(self, name: str) -> tuple[dict[str, Any], int] | None:
        assert name == "gbo/mail"
        last = max(self.contents, default=0)
        content = self.contents.get(last)
        return None if content is None else (content, last)

    def write(self, name: str, content: dict[str, Any], version: int) -> Failure | None:
        assert name == "gbo/mail"
        if self.conflicts:
            self.conflicts -= 1
            self.contents[max(self.contents) + 1] = {"password": "somebody's", "user": "other"}
        if version != max(self.contents):
            return Failure(400, "check-and-set parameter did not match")
        self.contents[version + 1] = content
        return None

    def versions(self, name: str) -> dict[int, bool]:
        assert name == "gbo/mail"
        return {number: content is None for number, content in self.contents.items()}

    def destroy(self, name: str, versions: list[int]) -> Failure | None:
        assert name == "gbo/mail"
        if not self.keeps_older:
            self.contents.update(dict.fromkeys(versions))
        return None


def apply(store: Store, **values: str) -> Replaced | Failure | str:
    return Replacements({PATH: values or {"password": NEW}}).apply(cast("KeyValue", store), PATH)


def test_named_fields_are_replaced_and_the_others_stay() -> None:
    store = Store({"password": "production's", "user": "me", "port": 25})
    assert apply(store) == Replaced(written=True, destroyed=1)
    assert store.contents == {1: None, 2: {"password": NEW, "user": "me", "port": 25}}


def test_the_second_time_nothing_is_written() -> None:
    store = Store({"password": "production's"})
    apply(store)
    assert apply(store) == Replaced(written=False, destroyed=0)
    assert list(store.contents) == [1, 2]


def test_a_run_that_was_killed_before_it_destroyed_older_versions_is_made_good() -> None:
    store = Store({"password": "older"}, {"password": "production's"}, {"password": NEW})
    assert apply(store) == Replaced(written=False, destroyed=2)
    assert store.contents == {1: None, 2: None, 3: {"password": NEW}}


def test_somebody_else_s_write_in_between_is_kept() -> None:
    store = Store({"password": "production's", "user": "me"})
    store.conflicts = 1
    assert apply(store) == Replaced(written=True, destroyed=2)
    assert store.contents[3] == {"password": NEW, "user": "other"}


def test_a_store_that_keeps_changing_is_given_up() -> None:
    store = Store({"password": "production's", "user": "me"})
    store.conflicts = 9
    assert isinstance(apply(store), Failure)


@pytest.mark.parametrize(
    ("store", "said"),
    [
        pytest.param(Store(), "there is no such secret", id="no secret"),
        pytest.param(Store({"pass": "x", "user": "me"}), "it has no field password; it has pass, user", id="no field"),
    ],
)
def test_what_is_not_there_is_not_made(store: Store, said: str) -> None:
    before = dict(store.contents)
    assert apply(store) == said
    assert store.contents == before


def test_versions_that_stay_are_told() -> None:
    store = Store({"password": "production's"})
    store.keeps_older = True
    assert apply(store) == "versions 1 are still there after they were destroyed"


class TestReading:
    def test_from_variables_files_and_the_settings_themselves(self, tmp_path: Any) -> None:
        (tmp_path / "token").write_text("from-a-file\n")
        keys = {"password_env": "PW", "token_file": str(tmp_path / "token"), "user": "me"}
        settings = build([Layer("f", {"secrets": {PATH: keys}})])
        found = read_replacements(settings, {"PW": NEW})
        store = Store({"password": "1", "token": "2", "user": "3"})
        found.apply(cast("KeyValue", store), PATH)
        assert store.contents[2] == {"password": NEW, "token": "from-a-file", "user": "me"}

    def test_what_is_missing_is_an_error_with_its_setting(self) -> None:
        settings = build([Layer("f", {"secrets": {PATH: {"password_env": "PW"}}})])
        with pytest.raises(SettingsError, match=r"secrets\.secret/gbo/mail\.password_env: \$PW is not set"):
            read_replacements(settings, {})

    def test_values_are_nowhere_to_be_seen(self) -> None:
        found = Replacements({PATH: {"password": NEW}})
        assert repr(found) == f"Replacements({PATH})"
        with pytest.raises(TypeError):
            pickle.dumps(found)


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("mail", {"password": "x"}, "'mail' is not the whole path of a secret"),
        ("secret/../mail", {"password": "x"}, "is not the whole path of a secret"),
        (PATH, {"_env": "X"}, "names no field"),
        (PATH, {"password_env": "X", "password": "y"}, "password comes from one place"),
        (PATH, {"password_env": "s3cret value"}, "the value (not shown) is not the name of an environment variable"),
        ("a.b/c.d", {"password_env": "-"}, "f secrets.a.b/c.d.password_env: "),
    ],
)
def test_settings_that_can_t_be(path: str, fields: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build([Layer("f", {"secrets": {path: fields}})])
    assert said in caught.value.message
    assert "s3cret" not in caught.value.message


def test_there_must_be_a_vault() -> None:
    with pytest.raises(SettingsError, match="there is no Vault"):
        build([Layer("f", {"secrets": {PATH: {"password": "x"}}, "containers": {"vault": False}})])
