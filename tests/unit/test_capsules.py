"""Which capsules there are, and which have to go; what an opened one's settings are."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from fakes import clone
from msgspec import json
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import CapsuleMissing, SettingsError
from pytest_stagegbo.guest.capsules import folders_of
from pytest_stagegbo.plan.capsules import About, Capsule, Pinned, chosen, due, files_id, resolve
from pytest_stagegbo.settings import ContainerSettings, Settings, load
from pytest_stagegbo.settings.opened import MOST_OPENED, as_opened, opened_number

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.incus import Instance

SETTINGS = Settings()
NOW = 1_000_000.0


def about(key: str, *, age: float = 0.0, size: int = 1, **clones: Instance) -> About:
    since = datetime.fromtimestamp(NOW - age, timezone.utc).isoformat()
    ids = {name: files_id(each) for name, each in clones.items()}
    return About(key, "test", since, "me@here", tuple(clones), ids, {"cache": size})


def marked(instance: Instance, *found: About, **config: str) -> Instance:
    own = {marks.CAPSULE + each.key: json.encode(each).decode() for each in found}
    return replace(instance, config={**instance.config, **own, **config})


def kept(name: str, source: Instance, *keys: str, **config: str) -> Instance:
    """A copy of a clone, as it is made before the clone is replaced."""
    own = {
        marks.INSTANCE: marks.identity(SETTINGS.project, name),
        marks.KEPT_FROM: source.name,
        marks.HOLDS: " ".join(keys),
    }
    return replace(source, name=name, config={**source.config, **own, **config})


def test_it_is_whole_when_its_mark_is_there() -> None:
    cache, drive = clone("cache", SETTINGS), clone("drive", SETTINGS)
    one = about("00000001", cache=cache, drive=drive)
    (found,) = resolve({"cache": marked(cache, one), "drive": drive}, SETTINGS)
    assert found == Capsule(one, {"cache": "cache", "drive": "drive"}, ("cache",))
    assert found.lost == ()
    assert resolve({"cache": cache, "drive": drive}, SETTINGS) == []


def test_a_part_of_a_clone_that_was_replaced_is_in_the_copy_that_was_kept() -> None:
    cache, drive = clone("cache", SETTINGS), clone("drive", SETTINGS)
    one = about("00000001", cache=cache, drive=drive)
    new = replace(cache, created_at="2030-01-01T00:00:00Z")
    copy = kept("cache-kept-1", marked(cache, one), "00000001")
    (found,) = resolve({"cache": new, "drive": drive, copy.name: copy}, SETTINGS)
    assert found.holders == {"cache": "cache-kept-1", "drive": "drive"}
    unfinished = replace(copy, config={**copy.config, marks.STATE: marks.BUILDING})
    assert resolve({"cache": new, "drive": drive, copy.name: unfinished}, SETTINGS) == []
    (found,) = resolve({"cache": marked(new, one), "drive": drive}, SETTINGS)
    assert found.lost == ("cache",), "it was replaced by somebody else"


def test_marks_that_are_no_capsules_are_none() -> None:
    cache = clone("cache", SETTINGS)
    assert resolve({"cache": marked(cache, **{marks.CAPSULE + "00000001": "{"})}, SETTINGS) == []
    one = about("00000001", cache=cache)
    for changed in (replace(one, since="yesterday"), replace(one, containers=())):
        assert resolve({"cache": marked(cache, changed)}, SETTINGS) == []
    foreign = replace(cache, config={**marked(cache, about("00000001", cache=cache)).config, marks.OWNER: ""})
    assert resolve({"cache": foreign}, SETTINGS) == []


@pytest.mark.parametrize(
    ("limits", "pinned", "gone"),
    [
        pytest.param({"count": 3, "size": 100}, [], "", id="all"),
        pytest.param({"count": 1, "size": 100}, [], "32", id="count"),
        pytest.param({"count": 3, "size": 20}, [], "3", id="size"),
        pytest.param({"count": 3, "size": 100, "age": 25.0}, [], "3", id="age"),
        pytest.param({"count": 3, "size": 30}, [("3", 1)], "3", id="pinned"),
        pytest.param({"count": 3, "size": 30}, [("32", 11)], "32", id="pinned by two"),
        pytest.param({"count": 3, "size": 30}, [("0", 100)], "", id="pinned by none of them"),
    ],
)
def test_the_oldest_go_first(limits: dict[str, float], pinned: list[tuple[str, int]], gone: str) -> None:
    found = [Capsule(about(str(each), age=each * 10.0, size=10), {}, ()) for each in (3, 2, 1)]
    settings = replace(SETTINGS.capsules, count=int(limits["count"]))
    held = [Pinned(frozenset(keys), size) for keys, size in pinned]
    keys = due(found, settings, NOW, age=limits.get("age", 1e9), size=int(limits["size"]), pinned=held)
    assert "".join(keys) == gone


def test_one_is_named_by_the_beginning_of_its_identifier() -> None:
    found = [Capsule(about(key), {}, ()) for key in ("12ab0000", "12cd0000")]
    assert chosen(found, "12a") is found[0]
    with pytest.raises(CapsuleMissing, match="12 is the beginning of 12ab0000 and 12cd0000"):
        chosen(found, "12")
    with pytest.raises(CapsuleMissing, match="no capsule ff"):
        chosen(found, "ff")
    with pytest.raises(CapsuleMissing):
        chosen(found, "")


def test_what_is_kept_of_a_container() -> None:
    containers = SETTINGS.containers
    assert folders_of(containers["tables"]) == ("/opt/gbo/data/pgdata",)
    assert folders_of(containers["vault"]) == ("/opt/gbo/data/vault",)
    assert folders_of(containers["llm"]) == ()
    nested = ContainerSettings("x", containers["llm"].address, wipe=("/a/b", "/a"), state=("/a/c", "/d"))
    assert folders_of(nested) == ("/a", "/d")


def test_an_opened_capsule_is_named_by_its_project(tmp_path: Path) -> None:
    """All commands, and pytest, find its bridge and its addresses by that."""
    settings = load(None, tmp_path, {"STAGEGBO_PROJECT": "STAGE-GBO-CAPSULE-2", "STAGEGBO_CONFIG": ""}).settings
    assert (settings.project, settings.network.name) == ("STAGE-GBO-CAPSULE-2", "stagebrc2")
    assert str(settings.network.address) == "10.0.154.1/24"
    assert str(settings.containers["cache"].address) == "10.0.154.13"
    assert all(each.held for each in settings.containers.values())
    plain = load(None, tmp_path, {"STAGEGBO_CONFIG": ""}).settings
    assert as_opened(plain) is plain
    assert not any(each.held for each in plain.containers.values())


def test_what_an_opened_capsule_was_copied_from_makes_no_difference() -> None:
    settings = as_opened(replace(SETTINGS, project="STAGE-GBO-CAPSULE-1"))
    opening = replace(settings, source_project="STAGE-GBO-2")
    container = replace(settings.containers["tables"], source="tables-kept-1")
    assert marks.fingerprint(container, opening) == marks.fingerprint(settings.containers["tables"], settings)


@pytest.mark.parametrize(
    "name", ["STAGE-GBO", "STAGE-GBO-1", "STAGE-GBO-CAPSULE-0", f"STAGE-GBO-CAPSULE-{MOST_OPENED + 1}"]
)
def test_other_projects_are_no_opened_capsules(name: str) -> None:
    assert opened_number("STAGE-GBO", name) is None


def test_addresses_that_an_opened_capsule_can_not_have_are_an_error() -> None:
    capsules = replace(SETTINGS.capsules, address="10.0.2.1/24")
    with pytest.raises(SettingsError, match="opened capsule 1 of STAGE-GBO"):
        as_opened(replace(SETTINGS, project="STAGE-GBO-CAPSULE-1", capsules=capsules))
