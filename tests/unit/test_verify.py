"""What the checks decide without a daemon, and that the documents list them all."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import bare_host, finished, pool, project
from msgspec.structs import replace

from pytest_stagegbo.errors import ServerRefused, SettingsError
from pytest_stagegbo.facts import inventory
from pytest_stagegbo.facts.dialling import Answer, Target, read_answers
from pytest_stagegbo.incus import CommandResult, Pool, Project
from pytest_stagegbo.incus.hostview import HostView
from pytest_stagegbo.incus.localhost import LocalHost
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.verify import Check, chosen
from pytest_stagegbo.verify.certificate import run
from pytest_stagegbo.verify.context import VerifyContext
from pytest_stagegbo.verify.exposure import excused, foreign_legacy_rules, foreign_rules
from pytest_stagegbo.verify.finding import Result, Sight, Skipped, Unseen
from pytest_stagegbo.verify.table import CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Reader, Writer

DOCUMENT = (Path(__file__).parents[2] / "docs/isolation.md").read_text()
SCENE = cast("VerifyContext", SimpleNamespace(settings=Settings()))


def test_the_document_lists_every_check_with_its_meaning_and_remedy() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| (.+?) \| (.+?) \| (.+?) \|$", DOCUMENT, re.MULTILINE)
    assert rows == [(check.id, check.title, check.means, check.remedy) for check in CHECKS]


def test_a_check_that_is_not_known_is_an_error_that_lists_them() -> None:
    with pytest.raises(SettingsError, match=r"reach\.host"):
        chosen(["reach.everything"])
    assert chosen(None) is None
    assert [check.id for check in chosen(["limits.disk", "limits.disk"]) or ()] == ["limits.disk"]


def refuse(_: VerifyContext) -> Result:
    raise ServerRefused("Incus refused GET /1.0/x", status=500, seen="500 broken")


def skip(_: VerifyContext) -> Result:
    raise Skipped("not here")


def blind(_: VerifyContext) -> Result:
    raise Unseen("no nft")


ALL = {"cache": Sight(3, 3)}


@pytest.mark.parametrize(
    ("look", "state", "evidence"),
    [
        pytest.param(lambda _: Result((), "3 tried", ALL), "green", ("3 tried",), id="nothing bad"),
        pytest.param(lambda _: Result(("a hole",), "3 tried", ALL), "red", ("a hole", "3 tried"), id="a fault"),
        pytest.param(
            lambda _: Result((), "0 tried", {"cache": Sight(3, 0)}, "perl is missing"),
            "red",
            ("nothing was looked at (perl is missing)", "0 tried"),
            id="nothing seen",
        ),
        pytest.param(
            lambda _: Result((), "0 of 0", {}), "red", ("nothing was looked at", "0 of 0"), id="nothing there"
        ),
        pytest.param(
            lambda _: Result((), "5 tried", {"cache": Sight(3, 3), "llm": Sight(3, 2), "drive": Sight(3, 0)}, "killed"),
            "red",
            ("llm: only 2 of 3 looked at (killed)", "drive: not looked at (killed)", "5 tried"),
            id="not all seen",
        ),
        pytest.param(blind, "red", ("nothing was looked at: no nft",), id="it can't look"),
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


class MuteReader:
    """A daemon that has nothing to tell."""

    is_local = is_here = True
    elsewhere = ""
    endpoint = "/nowhere/unix.socket"

    def host(self) -> LocalHost:
        return LocalHost(self.endpoint)

    def documents(self, *_: str, **__: str | int) -> list[Any]:
        return []

    def document(self, *_: str, **__: str | int) -> dict[str, Any]:
        return {}

    def networks(self) -> dict[str, Any]:
        return {}

    def link(self, _: str) -> None:
        return None

    def pool(self, _: str) -> Pool:
        return pool()

    def volume_usage(self, *_: str) -> None:
        return None


class MuteWriter:
    """Commands that end well and print nothing."""

    def execute(self, *_: object, **__: object) -> CommandResult:
        return CommandResult(0, "", "")


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> Callable[[Facts], VerifyContext]:
    """A stage that nothing can be learnt of. Nothing is connected to."""

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(HostView, "nft", lambda *_: "")

    def context(facts: Facts) -> VerifyContext:
        return VerifyContext(Settings(), facts, cast("Reader", MuteReader()), cast("Writer", MuteWriter()))

    return context


@pytest.mark.parametrize("check", [pytest.param(check, id=check.id) for check in CHECKS])
def test_a_line_is_red_when_there_is_nothing_to_see(check: Check, mute: Callable[[Facts], VerifyContext]) -> None:
    settings = Settings()
    empty = Project(settings.project, "", {}, ())
    facts = replace(bare_host(settings), projects={"default": project("default"), settings.project: empty})
    found = run(check, mute(facts))
    assert found.state == "red", found
    assert found.remedy


READ_FROM_FACTS = {"locked.project", "locked.instances", "locked.filters"}
NEEDS_EVENTS = {"production.events"}
"""Whose sentinels are tested in test_watch.py."""


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=check.id) for check in CHECKS if check.id not in READ_FROM_FACTS | NEEDS_EVENTS]
)
def test_a_line_is_red_when_commands_print_nothing(check: Check, mute: Callable[[Facts], VerifyContext]) -> None:
    """Perl, find, nft and others that are broken end well, too."""
    found = run(check, mute(finished(Settings())))
    assert found.state == "red", found


def test_answers_are_read_back() -> None:
    said = (
        "10.0.2.1/22 refused \n10.0.2.11/20001/name answered abc\n192.0.2.1/443 silent \n2001:db8::1/443 unreachable \n"
    )
    assert read_answers(said) == {
        Target("10.0.2.1", 22): Answer("refused"),
        Target("10.0.2.11", 20001, name=True): Answer("answered", "abc"),
        Target("192.0.2.1", 443): Answer("silent"),
        Target("2001:db8::1", 443): Answer("unreachable"),
    }
    assert [str(each) for each in read_answers(said)][-1] == "[2001:db8::1]:443"


@pytest.mark.parametrize(
    "said",
    ["", "10.0.2.1/22", "10.0.2.1/22 ", "10.0.2.1/22 refus", "10.0.2.1/22 error-24", "Killed", "perl: not found"],
)
def test_what_is_cut_off_or_went_wrong_is_no_answer(said: str) -> None:
    assert read_answers(said) == {}


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
        pytest.param("ip filter", 'iifname "stagebr0" oifname "stagebr0" accept', 0, id="within the stage"),
        pytest.param("inet incus", 'ip version 4 oifname "stagebr0" accept', 0, id="Incus's own"),
    ],
)
def test_rules_of_the_host_that_lead_to_the_stage(table: str, rule: str, count: int) -> None:
    assert len(foreign_rules(f"table {table} {{\n\tchain x {{\n\t\t{rule}\n\t}}\n}}\n", SCENE)) == count


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        ("-A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.3.10:5858", 1),
        ("-A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.2.10:5858", 0),
        ("-A FORWARD -i eth0 -o stagebr0 -j ACCEPT", 1),
        ("-A FORWARD -i stagebr0 -o stagebr0 -j ACCEPT", 0),
        ("-A OUTPUT -o stagebr0 -j ACCEPT", 0),
    ],
)
def test_rules_of_the_old_iptables_that_lead_to_the_stage(rule: str, count: int) -> None:
    assert len(foreign_legacy_rules(f"*nat\n:DOCKER - [0:0]\n{rule}\nCOMMIT\n", SCENE)) == count


def test_a_zone_of_firewalld_leads_into_the_stage_once_another_interface_is_in_it() -> None:
    """Its rule names the bridge as a way out, and only packets from the bridge get to it."""
    rules = (Path(__file__).parents[1] / "lab/rulesets/firewalld-let-through.nft").read_text()
    assert foreign_rules(rules, SCENE) == []
    own = 'iifname "stagebr0" goto filter_FWD_trusted\n'
    assert rules.count(own) == 1
    for other in (
        'iifname "eth1" goto filter_FWD_trusted',
        "goto filter_FWD_trusted",
        'iifname "eth1" jump filter_FWD_x',
    ):
        more = rules.replace(own, f"{own}\t\t{other}\n")
        assert len(foreign_rules(more, SCENE)) == ("_x" not in other)


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
