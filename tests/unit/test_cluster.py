"""Stages on a cluster: which member one is on, and what its plan says there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import SERVER, bare_host, clone, finished, network, source
from msgspec.structs import replace

from pytest_stagegbo.desired import marks, objects, ownership
from pytest_stagegbo.errors import MissingRequirement, NotOurs
from pytest_stagegbo.facts.placement import choose_member
from pytest_stagegbo.forward.way import StageWay
from pytest_stagegbo.incus.records import Member
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.plan.steps import CopyClone, RefreshClone
from pytest_stagegbo.settings import NetworkSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Instance

SETTINGS = Settings()
ONLINE = (Member("c1", "Online", "10.99.0.1"), Member("c2", "Online", "10.99.0.2"))
CUT = (ONLINE[0], replace(ONLINE[1], status="Offline"))


def sources(**locations: str) -> Mapping[str, Instance]:
    """Production's; those that are not named are on `c1`."""
    return {name: replace(source(name), location=locations.get(name, "c1")) for name in SETTINGS.containers}


def clones(member: str) -> Mapping[str, Instance]:
    return {name: replace(clone(name, SETTINGS), location=member) for name in SETTINGS.containers}


def on_cluster(facts: Facts, *, member: str = "c1", members: tuple[Member, ...] = ONLINE, **locations: str) -> Facts:
    server = replace(SERVER, clustered=True, name="c1")
    return replace(facts, server=server, sources=sources(**locations), member=member, members=members)


@pytest.mark.parametrize(
    ("there", "locations", "here", "member"),
    [
        pytest.param("c2", {}, "c1", "c2", id="its clones are there"),
        pytest.param("", {}, "c2", "c1", id="production is there"),
        pytest.param("", {"tables": "c2"}, "c2", "c1", id="most of production is there"),
        pytest.param("", {"tables": "c2", "cache": "c2", "llm": "c2"}, "c2", "c2", id="half of it, and this process"),
    ],
)
def test_the_member_of_a_stage(there: str, locations: dict[str, str], here: str, member: str) -> None:
    assert choose_member(SETTINGS, clones(there) if there else {}, sources(**locations), here) == member


def test_where_there_is_nothing_the_member_that_answers_is_as_good_as_any() -> None:
    assert choose_member(SETTINGS, {}, {}, "c2") == "c2"


def test_somebody_elses_instance_in_the_project_tells_nothing() -> None:
    assert choose_member(SETTINGS, {"web": replace(source("web"), location="c2")}, sources(), "c2") == "c1"


def test_clones_are_copied_where_the_stage_is_and_share_blocks_with_what_is_there() -> None:
    plan = make_plan(on_cluster(bare_host(SETTINGS), tables="c2"), SETTINGS)
    copies = {step.subject: step for step in plan.steps if isinstance(step, CopyClone)}
    assert {step.location for step in copies.values()} == {"c1"}
    assert [name for name, step in copies.items() if step.in_full] == ["tables"]
    assert copies["tables"].text == "copy tables from tables on pool tank of c1, limit 10GB"
    assert copies["cache"].text == "copy cache from cache on pool tank, limit 10GB"


def test_what_was_copied_from_another_member_is_copied_again_in_full() -> None:
    """Incus does not refresh from another member."""
    facts = replace(finished(SETTINGS), clones=clones("c1"))
    plan = make_plan(on_cluster(facts, tables="c2"), SETTINGS, to_replace=["tables", "cache"])
    copies = {step.subject: step.in_full for step in plan.steps if isinstance(step, CopyClone)}
    assert copies == {"tables": True, "cache": False}
    assert not [step for step in plan.steps if isinstance(step, RefreshClone)]


def test_without_a_bridge_a_member_that_is_away_keeps_a_stage_from_being_made() -> None:
    facts = on_cluster(bare_host(SETTINGS), members=CUT)
    with pytest.raises(MissingRequirement, match="stagebr0 can't be made while c2 is offline") as caught:
        make_plan(facts, SETTINGS)
    assert "incus cluster remove --force c2" in caught.value.remedy
    assert caught.value.seen == "c1 is online, c2 is offline"


def test_a_stage_whose_bridge_is_there_needs_no_other_member() -> None:
    facts = on_cluster(replace(finished(SETTINGS), clones=clones("c1")), members=CUT)
    assert not make_plan(facts, SETTINGS).changes


def test_a_bridge_that_some_member_did_not_make_is_made_again() -> None:
    facts = on_cluster(replace(finished(SETTINGS), clones=clones("c1")))
    bridge = replace(facts.networks["stagebr0"], status="Errored")
    plan = make_plan(replace(facts, networks={**facts.networks, "stagebr0": bridge}), SETTINGS)
    assert "create network stagebr0" in [step.text for step in plan.changes]


@pytest.mark.parametrize(
    ("acl", "own"),
    [
        pytest.param(objects.acl(SETTINGS), True, id="its access list is there"),
        pytest.param({**objects.acl(SETTINGS), "config": {}}, False, id="somebody's access list"),
        pytest.param(None, False, id="no access list"),
    ],
)
def test_whose_a_bridge_is_that_is_only_announced(acl: dict[str, object] | None, own: bool) -> None:
    """It has no configuration yet, so no mark: the access list is made before it, and has."""
    announced = replace(network("stagebr0", ""), config={}, status="Pending")
    found = ownership.with_marks(announced, acl)
    assert marks.is_ours(found.config) is own
    facts = on_cluster(bare_host(SETTINGS))
    facts = replace(facts, networks={**facts.networks, "stagebr0": found}, acl=acl and {"name": "x", **acl})
    if own:
        assert make_plan(facts, SETTINGS).changes
    else:
        with pytest.raises(NotOurs):
            make_plan(facts, SETTINGS)


def test_marks_are_read_of_a_bridge_that_is_made() -> None:
    made = network("stagebr0", "10.0.3.1/24")
    assert ownership.with_marks(made, objects.acl(SETTINGS)) == made


@pytest.mark.parametrize("here", [True, False])
def test_a_bridge_of_the_same_name_on_another_member_is_no_way_to_the_stage(here: bool) -> None:
    way = StageWay(Settings(network=NetworkSettings(name="lo")), "/nowhere/unix.socket", lambda *_: (), lambda: here)
    assert way.is_direct is here
