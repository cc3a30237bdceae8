"""What the checks decide without a daemon, and that the documents list them all."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from pytest_stagegbo.engine import inventory
from pytest_stagegbo.errors import ServerRefused, SettingsError
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.verify import Check, chosen
from pytest_stagegbo.verify.certificate import run
from pytest_stagegbo.verify.dialling import Answer, Target, read_answers
from pytest_stagegbo.verify.exposure import excused, foreign_rules
from pytest_stagegbo.verify.finding import Result, Skipped
from pytest_stagegbo.verify.table import CHECKS

if TYPE_CHECKING:
    from pytest_stagegbo.verify.scene import Scene

DOCUMENT = (Path(__file__).parents[2] / "docs/isolation.md").read_text()
SCENE = cast("Scene", SimpleNamespace(settings=Settings()))


def test_the_document_lists_every_check_with_its_meaning_and_remedy() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| (.+?) \| (.+?) \| (.+?) \|$", DOCUMENT, re.MULTILINE)
    assert rows == [(check.id, check.title, check.means, check.remedy) for check in CHECKS]


def test_a_check_that_is_not_known_is_an_error_that_lists_them() -> None:
    with pytest.raises(SettingsError, match=r"reach\.host"):
        chosen(["reach.everything"])
    assert chosen(None) is None
    assert [check.id for check in chosen(["limits.disk", "limits.disk"]) or ()] == ["limits.disk"]


def refuse(_: Scene) -> Result:
    raise ServerRefused("Incus refused GET /1.0/x", status=500, seen="500 broken")


def skip(_: Scene) -> Result:
    raise Skipped("not here")


@pytest.mark.parametrize(
    ("look", "state", "evidence"),
    [
        pytest.param(lambda _: Result((), "3 tried"), "green", ("3 tried",), id="nothing bad"),
        pytest.param(lambda _: Result(("a hole",), "3 tried"), "red", ("a hole", "3 tried"), id="a fault"),
        pytest.param(skip, "skipped", ("not here",), id="can't be made here"),
        pytest.param(
            refuse,
            "red",
            ("could not be checked: Incus refused GET /1.0/x: 500 broken",),
            id="what failed is not proven",
        ),
    ],
)
def test_a_line_is_what_its_check_saw(look: object, state: str, evidence: tuple[str, ...]) -> None:
    check = Check("a.b", "it holds", "it doesn't", "mend it", cast("Check", look))  # type: ignore[arg-type]
    found = run(check, SCENE)
    assert (found.state, found.evidence) == (state, evidence)
    assert bool(found.means and found.remedy) == (state == "red")


def test_answers_are_read_back() -> None:
    said = "10.0.2.1:22 refused \n10.0.2.11:20001:name answered abc\n192.0.2.1:443 silent \n"
    assert read_answers(said) == {
        Target("10.0.2.1", 22): Answer("refused"),
        Target("10.0.2.11", 20001, name=True): Answer("answered", "abc"),
        Target("192.0.2.1", 443): Answer("silent"),
    }


@pytest.mark.parametrize(
    ("config", "known"),
    [
        pytest.param({}, False, id="no mark"),
        pytest.param({"user.stagegbo.expose.web": "expires=2000"}, True, id="not expired"),
        pytest.param({"user.stagegbo.expose": "1970-01-01T01:00:00Z"}, True, id="ISO 8601"),
        pytest.param({"user.stagegbo.expose.web": "expires=999"}, False, id="expired"),
        pytest.param({"user.stagegbo.expose.web": "true"}, False, id="no expiry"),
        pytest.param({"user.note": "expires=2000"}, False, id="another mark"),
    ],
)
def test_what_was_exposed_on_purpose_is_known_until_it_expires(config: dict[str, str], known: bool) -> None:
    assert bool(excused(config, 1000)) is known


@pytest.mark.parametrize(
    ("table", "rule", "count"),
    [
        pytest.param("ip nat", "tcp dport 80 dnat to 10.0.3.10:5858", 1, id="to the stage"),
        pytest.param("ip nat", "tcp dport 80 dnat to 10.0.2.10:5858", 0, id="to production"),
        pytest.param("inet fw", 'oifname "stagebr0" accept', 1, id="the bridge let in"),
        pytest.param("inet incus", 'ip version 4 oifname "stagebr0" accept', 0, id="Incus's own"),
    ],
)
def test_rules_of_the_host_that_lead_to_the_stage(table: str, rule: str, count: int) -> None:
    assert len(foreign_rules(f"table {table} {{\n\tchain x {{\n\t\t{rule}\n\t}}\n}}\n", SCENE)) == count


def test_an_inventory_tells_what_is_new_gone_and_different() -> None:
    before, after = {"config a": "1", "config b": "1"}, {"config b": "2", "config c": "1"}
    found = ["config a is gone", "config c is new", "config b changed"]
    assert inventory.differences(before, after) == found
    record = inventory.read(inventory.text(before, after))
    assert record is not None
    assert (record.things, record.changed) == (after, tuple(found))


@pytest.mark.parametrize("value", ["", "no JSON", "{}", "[]"])
def test_a_note_that_cannot_be_read_is_none(value: str) -> None:
    assert inventory.read(value) is None
