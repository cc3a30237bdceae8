"""Which baselines there are, read off the parts that containers have, and why one can't be used."""

from __future__ import annotations

import pytest
from fakes import clone
from msgspec import json, structs

from pytest_stagegbo.errors import BaselineMissing, SettingsError
from pytest_stagegbo.guest import moment
from pytest_stagegbo.plan.baselines import (
    About,
    Found,
    Part,
    check_name,
    chosen,
    clone_id,
    keepers,
    parse_parts,
    resolve,
    usable,
)
from pytest_stagegbo.settings import Layer, build

SETTINGS = build([])
CLONES = {name: clone(name, SETTINGS) for name in SETTINGS.containers}
TWO = ("cache", "tables")


def about(key: str, name: str = "demo", since: str = "1", build: tuple[str, ...] = (), run: str = "") -> About:
    clones = {each: clone_id(CLONES[each]) for each in TWO}
    return About(key, name, since, "me@here", TWO, build, clones, "2026", run)


def found(*parts: tuple[str, str, About | None], build: tuple[str, ...] = ()) -> Found:
    """Of containers, folders and what is written there."""
    of = {name: [Part(folder, 1, each) for at, folder, each in parts if at == name] for name in TWO}
    return resolve(of, CLONES, build)


def test_what_was_printed_is_read() -> None:
    one = about("a")
    text = f"a\t12\t{json.encode(one).decode()}\nb.new\t7\t\nc\t1\tnonsense\n"
    assert parse_parts(text) == (Part("a", 12, one), Part("b.new", 7, None), Part("c", 1, None))


def test_it_is_there_from_the_first_final_name_on() -> None:
    one = about("a")
    assert found(("cache", "a.new", one), ("tables", "a.new", one)).whole == {}
    assert found(("cache", "a.new", one), ("tables", "a.new", one)).garbage == {
        "cache": ("a.new",),
        "tables": ("a.new",),
    }
    there = found(("cache", "a", one), ("tables", "a.new", one))
    assert (there.whole, there.sizes, there.broken, there.garbage) == ({"demo": one}, {"demo": 2}, {}, {})


def test_the_latest_counts_and_the_one_before_is_garbage() -> None:
    old, new = about("b", since="1"), about("a", since="2")
    both = [(name, each.key, each) for each in (old, new) for name in TWO]
    assert found(*both).whole == {"demo": new}
    assert found(*both).garbage == {"cache": ("b",), "tables": ("b",)}
    unfinished = [(name, each.key + (".new" if each is new else ""), each) for each in (old, new) for name in TWO]
    assert found(*unfinished).whole == {"demo": old}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param(found(("cache", "a", about("a"))), "tables has no part of it any more", id="lost with its clone"),
        pytest.param(
            found(*((name, "a", about("a", build=("system botserver 12",))) for name in TWO)),
            "it is of the build system botserver 12, and the stage runs production's build",
            id="another build",
        ),
        pytest.param(
            resolve({"cache": [Part("a", 1, about("a"))]}, CLONES, ()), "tables does not run", id="does not run"
        ),
        pytest.param(found(), "the stage has no baseline demo", id="none"),
        pytest.param(
            found(*((name, "a", about("a", run="yesterday")) for name in TWO)),
            "another run of pytest has saved for itself",
            id="of another run",
        ),
    ],
)
def test_why_it_cannot_be_used(given: Found, reason: str) -> None:
    with pytest.raises(BaselineMissing, match=reason):
        usable(given, "demo", "today")


def test_a_part_of_a_clone_that_was_replaced_does_not_count() -> None:
    of = {name: [Part("a", 1, about("a"))] for name in TWO}
    clones = {**CLONES, "tables": structs.replace(CLONES["tables"], created_at="later")}
    replaced = resolve(of, clones, ())
    assert replaced.garbage == {"tables": ("a",)}
    with pytest.raises(BaselineMissing, match="tables has no part"):
        usable(replaced, "demo")


def test_a_run_uses_its_own() -> None:
    one = about("a", run="today")
    assert usable(found(*((name, "a", one) for name in TWO)), "demo", "today") == one


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", ".", "a" * 65, "ä"])
def test_names(name: str) -> None:
    with pytest.raises(SettingsError, match="no name of a baseline"):
        check_name(name)
    check_name("demo-data_1.0")


def test_what_a_baseline_can_have() -> None:
    assert {each.name for each in chosen(SETTINGS, ())} == {"tables", "cache", "drive", "system"}
    assert [each.name for each in chosen(SETTINGS, ["cache"])] == ["cache"]
    for name in ("vault", "nonsense"):
        with pytest.raises(SettingsError, match=name):
            chosen(SETTINGS, [name])
    restored = build([Layer.from_dotted("test", {"containers.cache.reset": "restore"})])
    assert "cache" not in {each.name for each in chosen(restored, ())}


def test_a_stage_that_can_keep_nothing_is_only_wrong_for_who_asks_for_a_baseline() -> None:
    """Its clones are replaced and restored as any other's."""
    layer = Layer.from_dotted("test", {f"containers.{name}.reset": "restore" for name in SETTINGS.containers})
    restored = build([layer])
    assert keepers(restored) == []
    with pytest.raises(SettingsError, match="any container of this stage"):
        chosen(restored, ())


def test_a_hold_ends_by_itself() -> None:
    assert f"sleep {moment.LONGEST} &" in moment.hold_script()
