"""Whose a thing is: which stage it was made for. What is another's, or nobody knows whose, is never removed."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, Any

import pytest
from fakes import StrictConnection, bare_host, clone, finished, network, project, refused
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.ownership import belongs, is_free_for
from pytest_stagegbo.errors import NotOurs, SettingsError
from pytest_stagegbo.facts.former import Former, find_former
from pytest_stagegbo.facts.subnets import free_place
from pytest_stagegbo.incus import Reader
from pytest_stagegbo.incus.hostnet import HostNetwork
from pytest_stagegbo.plan.destroy import plan_destroy
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.slots.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Project

SETTINGS = Settings()
OTHER = replace(SETTINGS, project="STAGE-2")
OURS = {marks.OWNER: marks.OWNER_VALUE}


def of(name: str, parent: str = "", **config: str) -> dict[str, str]:
    """The marks of a bridge that was made for a stage, or a slot."""
    return {**OURS, marks.PROJECT: name, **({marks.FAMILY: parent} if parent else {}), **config}


def stages(*names: str) -> dict[str, Project]:
    """Projects of an earlier version's stages, all on one bridge."""
    return {name: project(name, **OURS, **{"restricted.networks.access": "stagebr0"}) for name in names}


@pytest.mark.parametrize(
    ("config", "projects", "own", "free"),
    [
        pytest.param(of("STAGE-GBO"), {}, True, True, id="this-stage's"),
        pytest.param(of("STAGE-2"), {}, False, False, id="another-stage's"),
        pytest.param(of("STAGE-2"), stages("STAGE-GBO"), False, False, id="another-stage's-though-this-one-uses-it"),
        pytest.param(of("STAGE-GBO", "STAGE"), {}, False, False, id="a-slot's-of-this-name"),
        pytest.param({}, stages("STAGE-GBO"), False, False, id="not-this-tool's"),
        pytest.param(OURS, stages("STAGE-GBO"), True, True, id="an-earlier-version's-that-this-stage-uses"),
        pytest.param(OURS, {}, False, True, id="an-earlier-version's-that-nobody-uses"),
        pytest.param(OURS, stages("STAGE-2"), False, False, id="an-earlier-version's-that-another-uses"),
        pytest.param(OURS, stages("STAGE-GBO", "STAGE-2"), False, False, id="an-earlier-version's-that-two-use"),
    ],
)
def test_whose_a_bridge_is(config: Mapping[str, str], projects: dict[str, Project], own: bool, free: bool) -> None:
    assert belongs(config, SETTINGS, "", projects) is own
    assert is_free_for(config, SETTINGS, "", projects) is free


@pytest.mark.parametrize(
    ("name", "config", "own"),
    [
        pytest.param("cache", {"instance": "STAGE-GBO/cache"}, True, id="not-proven-yet"),
        pytest.param("cache", {"instance": "STAGE-GBO/cache 1234"}, True, id="proven"),
        pytest.param("cache", {"instance": "STAGE-GBO/cache 9999"}, False, id="copied-under-the-name"),
        pytest.param("kept", {"instance": "STAGE-GBO/cache 1234"}, False, id="copied-or-renamed"),
        pytest.param("cache", {"instance": "STAGE-2/cache 1234"}, False, id="moved-from-another-stage"),
        pytest.param("cache", {"instance": "STAGE-GBO/cache", "owner": ""}, False, id="without-the-tool's-mark"),
        pytest.param("cache", {"instance": ""}, True, id="an-earlier-version's"),
        pytest.param("kept", {"instance": ""}, False, id="copied-from-an-earlier-version's"),
        pytest.param(
            "web", {"instance": "", "source": "default/web"}, True, id="an-earlier-version's-that-was-dropped"
        ),
    ],
)
def test_whose_an_instance_is(name: str, config: dict[str, str], own: bool) -> None:
    made = clone("cache", SETTINGS, **config)
    found = replace(made, name=name, config={**made.config, "volatile.uuid": "1234"})
    assert marks.is_clone(found, SETTINGS) is own


# -- a second stage


def beside(address: str = "10.0.3.1/24") -> Facts:
    """Facts of a stage by its name alone, beside a living one."""
    living = finished(SETTINGS)
    bridge = living.networks["stagebr0"]
    moved = replace(bridge, config={**bridge.config, "ipv4.address": address})
    return bare_host(OTHER, projects=living.projects, networks={**living.networks, "stagebr0": moved}, acl=living.acl)


@pytest.mark.parametrize("address", ["10.0.3.1/24", "10.0.9.1/24"])
def test_a_second_stage_is_told_which_bridge_and_subnet_it_may_have(address: str) -> None:
    with pytest.raises(NotOurs, match="network stagebr0 belongs to stage STAGE-GBO, so stage STAGE-2 can't") as caught:
        make_plan(beside(address), OTHER)
    for setting in ('project = "STAGE-2"', 'network.name = "stagebrb0"', 'network.address = "10.0.11.1/24"'):
        assert setting in caught.value.remedy


def test_an_access_list_of_another_stage_is_refused_as_well() -> None:
    with pytest.raises(NotOurs, match="access list stagebr0-isolation belongs to stage STAGE-GBO"):
        make_plan(replace(beside(), networks={"prodbr0": network("prodbr0", "10.0.2.1/24")}), OTHER)


def test_two_stages_of_an_earlier_version_on_one_bridge_are_told_how_to_part() -> None:
    facts = finished(SETTINGS, projects=stages("STAGE-GBO", "STAGE-2"))
    bridge = replace(facts.networks["stagebr0"], config=OURS)
    with pytest.raises(NotOurs, match="belongs to stage STAGE-2") as caught:
        make_plan(replace(facts, networks={**facts.networks, "stagebr0": bridge}), SETTINGS)
    assert "remove the other stage: `stagegbo --project STAGE-2 destroy`" in caught.value.remedy


def test_what_a_stage_left_that_is_gone_is_named_with_the_command_that_removes_it() -> None:
    facts = beside()
    with pytest.raises(NotOurs, match="belongs to stage STAGE-GBO") as caught:
        make_plan(replace(facts, projects={"default": facts.projects["default"]}), OTHER)
    assert "`stagegbo --project STAGE-GBO destroy`" in caught.value.remedy


def test_what_is_suggested_is_free_and_leaves_room_for_slots() -> None:
    """For those of the new stage, and for those that the living one may get."""
    networks = {"stagebrb0": network("stagebrb0", "10.0.14.1/24"), "ovn": network("ovn", "none")}
    host = [HostNetwork(IPv4Network("10.0.112.0/20"), "vpn0")]
    assert free_place(SETTINGS, {}, []) == ("stagebrb0", IPv4Interface("10.0.11.1/24"))
    assert free_place(SETTINGS, networks, []) == ("stagebrc0", IPv4Interface("10.0.15.1/24"))
    assert free_place(SETTINGS, networks, host) == ("stagebrc0", IPv4Interface("10.0.28.1/24"))


def test_a_bridge_gets_no_other_address_under_somebody_s_instance() -> None:
    moved = replace(SETTINGS, network=replace(SETTINGS.network, address=IPv4Interface("10.0.9.1/24")))
    with pytest.raises(NotOurs, match="default/guest would lose its network"):
        make_plan(replace(finished(SETTINGS), neighbours=("default/guest",)), moved)


@pytest.mark.parametrize(("status", "refuses"), [("Running", True), ("Stopped", False)])
def test_a_copy_that_runs_with_a_clone_s_address_is_named(status: str, refuses: bool) -> None:
    facts = finished(SETTINGS)
    kept = replace(clone("cache", SETTINGS, status=status), name="kept")
    facts = replace(facts, clones={**facts.clones, "kept": kept})
    if refuses:
        with pytest.raises(NotOurs, match="instance kept in STAGE-GBO has the address of cache"):
            make_plan(facts, SETTINGS)
    else:
        assert make_plan(facts, SETTINGS).changes == ()


# -- destroying

IN_PROJECT = {
    "/1.0/instances/kept?project=STAGE-GBO": ("instance kept", "delete --force kept"),
    "/1.0/images/e08a?project=STAGE-GBO": ("image e08a", "image delete e08a"),
    "/1.0/profiles/extra?project=STAGE-GBO": ("profile extra", "profile delete extra"),
    "/1.0/network-acls/list?project=STAGE-GBO": ("access list list", "network acl delete list"),
    "/1.0/network-zones/z.org?project=STAGE-GBO": ("network zone z.org", "network zone delete z.org"),
    "/1.0/storage-pools/tank/volumes/custom/a%20b?project=STAGE-GBO&target=m1": (
        "volume tank/a b",
        "storage volume delete tank 'a b'",
    ),
    "/1.0/storage-pools/tank/buckets/b?project=STAGE-GBO": ("bucket tank/b", "storage bucket delete tank b"),
}


def destroying(settings: Settings = SETTINGS, **answers: Any) -> list[str]:
    """What destroying would do to a finished stage with one clone."""
    facts = finished(SETTINGS)
    stage, bridge = facts.projects["STAGE-GBO"], facts.networks["stagebr0"]
    cache = facts.clones["cache"]
    one = {"name": "cache", "project": "STAGE-GBO", "config": dict(cache.config), "devices": dict(cache.devices)}
    used_by = ["/1.0/instances/cache?project=STAGE-GBO", "/1.0/profiles/default?project=STAGE-GBO"]
    used_by += answers.pop("used_by", [])
    replies: dict[tuple[str, str], Any] = {
        ("GET", "projects"): [{"name": stage.name, "config": dict(stage.config), "used_by": used_by}],
        ("GET", "instances"): [one, *answers.pop("instances", [])],
        ("GET", "instances/cache/snapshots"): ["/1.0/instances/cache/snapshots/stagegbo-clean"],
        ("GET", "instances/cache/backups"): [],
        ("GET", "networks/stagebr0"): {"name": "stagebr0", "config": dict(bridge.config), "managed": True},
        ("GET", "networks/stagebr0/forwards"): [],
        ("GET", "networks"): [],
        ("GET", "network-acls"): [],
        ("GET", "network-acls/stagebr0-isolation"): {**(facts.acl or {}), "used_by": ["/1.0/networks/stagebr0"]},
    }
    replies |= {("GET", path): {**replies[("GET", path)], **more} for path, more in answers.pop("more", {}).items()}
    replies |= {("GET", path): answer for path, answer in answers.pop("instead", {}).items()}
    return [step.key for step in plan_destroy(Reader(StrictConnection(replies).as_connection()), settings)]


def test_a_stage_is_removed_with_all_that_was_made_for_it() -> None:
    assert destroying() == [
        "remove:cache",
        "remove-project:STAGE-GBO",
        "remove-network:stagebr0",
        "remove-access-list:stagebr0-isolation",
    ]


def test_a_stage_that_never_was_has_nothing_to_remove() -> None:
    assert destroying(OTHER) == []


@pytest.mark.parametrize(
    ("answers", "named", "command"),
    [
        *(
            pytest.param({"used_by": [url]}, text, f"incus {command} --project STAGE-GBO", id=url)
            for url, (text, command) in IN_PROJECT.items()
        ),
        pytest.param(
            {"instead": {"instances/cache/snapshots": ["/1.0/instances/cache/snapshots/mine"]}},
            "snapshot cache/mine",
            "incus snapshot delete cache mine --project STAGE-GBO",
            id="snapshot",
        ),
        pytest.param(
            {"instead": {"instances/cache/backups": [{"name": "cache/b0"}]}},
            "backup cache/b0",
            "incus query -X DELETE '/1.0/instances/cache/backups/b0?project=STAGE-GBO'",
            id="backup",
        ),
        pytest.param(
            {
                "instances": [
                    {
                        "name": "guest",
                        "project": "default",
                        "devices": {"eth1": {}},
                        "expanded_devices": {"eth1": {"type": "nic", "parent": "stagebr0"}},
                    }
                ]
            },
            "instance guest of project default on stagebr0",
            "incus config device remove guest eth1",
            id="on-the-bridge",
        ),
        pytest.param(
            {"more": {"networks/stagebr0": {"used_by": ["/1.0/profiles/lab?project=dev"]}}},
            "profile lab of project dev",
            "incus profile delete lab --project dev",
            id="profile-on-the-bridge",
        ),
        pytest.param(
            {"more": {"network-acls/stagebr0-isolation": {"used_by": ["/1.0/networks/stagebr0", "/1.0/networks/x"]}}},
            "network x of project default, which uses stagebr0-isolation",
            "incus network delete x",
            id="uses-the-access-list",
        ),
    ],
)
def test_what_somebody_else_made_is_named_before_anything_is_removed(
    answers: dict[str, Any], named: str, command: str
) -> None:
    with pytest.raises(NotOurs) as caught:
        destroying(**answers)
    assert caught.value.message == f"stage STAGE-GBO can't be destroyed: pytest-stagegbo did not make {named}"
    assert f"  {command}\n" in caught.value.remedy


# -- slots


def others(*projects: dict[str, Any], network: Any = None) -> Fleet:
    """The slots of a stage beside other projects."""
    replies: dict[tuple[str, str], Any] = {("GET", "projects"): list(projects)}
    for name in ("stagebr1", "stagebrg"):
        replies["GET", f"networks/{name}"] = network or refused(404)
        replies["GET", f"network-acls/{name}-isolation"] = refused(404)
    return Fleet(SETTINGS, StrictConnection(replies).as_connection())


@pytest.mark.parametrize("name", ["STAGE-GBO-1", "STAGE-GBO-GOLDEN"])
def test_a_stage_that_is_named_like_a_slot_is_not_taken_for_one(name: str) -> None:
    independent = {"name": name, "config": of(name)}
    with pytest.raises(NotOurs, match=f"project {name} is a stage of its own, and no slot"):
        others(independent).refuse_others([1])
    others(independent).refuse_others([0])  # which has other names


def test_another_stage_s_slot_is_not_taken_for_one() -> None:
    with pytest.raises(SettingsError, match="is a slot of stage STAGE,"):
        others({"name": "STAGE-GBO-1", "config": of("STAGE-GBO-1", "STAGE")}).refuse_others([1])


def test_a_bridge_named_like_a_slot_s_is_refused_before_anything_is_made() -> None:
    bridge = {"name": "stagebr1", "config": of("STAGE-3"), "managed": True}
    with pytest.raises(NotOurs, match="network stagebr1 belongs to stage STAGE-3"):
        others(network=bridge).refuse_others(range(2))


def test_names_that_are_free_or_the_slots_own_are_fine() -> None:
    others().refuse_others(range(2))
    others({"name": "STAGE-GBO-1", "config": of("STAGE-GBO-1", "STAGE-GBO")}).refuse_others([1])


class TestFormerName:
    """`network.name` has changed, or a run that was killed has left what had the former one."""

    MOVED = replace(SETTINGS, network=replace(SETTINGS.network, name="stagebr7"))

    @pytest.mark.parametrize(
        ("name", "config", "found"),
        [
            pytest.param("stagebr0", of("STAGE-GBO"), True, id="its-own"),
            pytest.param("stagebr7", of("STAGE-GBO"), False, id="the-one-that-it-has"),
            pytest.param("stagebr0", of("STAGE-2"), False, id="another-stage-s"),
            pytest.param("stagebr0", of("STAGE-GBO-1", "STAGE-GBO"), False, id="a-slot-s"),
            pytest.param("stagebr0", {marks.PROJECT: "STAGE-GBO"}, False, id="not-this-tool-s"),
            pytest.param("kept", of("STAGE-GBO"), False, id="renamed-by-somebody"),
        ],
    )
    def test_only_what_was_made_for_this_stage_is_found(self, name: str, config: dict[str, str], found: bool) -> None:
        list_of = "stagebr0-isolation" if name == "kept" else f"{name}-isolation"
        bridge = network(name, "10.0.3.1/24", **{**config, "security.acls": list_of})
        acls = {f"{name}-isolation": {"config": config}}
        former = find_former({name: bridge}, acls, self.MOVED, "", {}, acls.get)
        assert former == (Former((name,), (f"{name}-isolation",)) if found else Former())

    def test_an_access_list_whose_bridge_is_gone_is_found_and_one_of_another_bridge_is_not(self) -> None:
        acls = {"stagebr0-isolation": {"config": of("STAGE-GBO")}, "mine": {"config": of("STAGE-GBO")}}
        assert find_former({}, acls, self.MOVED, "", {}, acls.get) == Former((), ("stagebr0-isolation",))
        somebodys = {"stagebr0": network("stagebr0", "10.9.9.1/24")}
        assert not find_former(somebodys, acls, self.MOVED, "", {}, acls.get)

    @pytest.mark.parametrize(
        "former",
        [
            pytest.param(Former(("stagebr0",), ("stagebr0-isolation",)), id="nothing-done"),
            pytest.param(Former((), ("stagebr0-isolation",)), id="killed-after-the-bridge"),
            pytest.param(Former(), id="killed-after-both"),
        ],
    )
    def test_clones_go_first_then_the_bridge_and_then_what_restricts_the_project(self, former: Former) -> None:
        facts = replace(finished(SETTINGS), former=former, networks={}, acl=None)
        plan = make_plan(facts, self.MOVED)
        steps = {step.key: step for step in plan.steps}
        removals = {f"remove:{name}" for name in SETTINGS.containers}
        gone = {*(f"remove-network:{name}" for name in former.networks)}
        lists = {*(f"remove-access-list:{name}" for name in former.acls)}
        assert removals | gone | lists <= steps.keys()
        assert not any(steps[key].after & steps.keys() for key in removals)
        assert all(removals <= steps[key].after for key in gone | lists)
        assert all(gone <= steps[key].after for key in lists)
        for key in ("project:STAGE-GBO", "network:stagebr7", "access-list:stagebr7-isolation"):
            assert removals | gone | lists <= steps[key].after
