"""Which members of a cluster slots are on, and what the golden copies there are copied from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from fakes import bare_host, clone, copied, finished, network, source
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.allowlist import at_rest_config, clone_config, violations
from pytest_stagegbo.engine.reset import our_clone
from pytest_stagegbo.errors import MemberAway, NoRoom, NotOurs, SettingsError
from pytest_stagegbo.facts.placement import away, refuse_away
from pytest_stagegbo.incus.records import Member
from pytest_stagegbo.plan.member_copy import plan_member_copy, unfit
from pytest_stagegbo.plan.placement import Site, choose_numbers, place
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.plan.steps import CopyClone, RemoveClone
from pytest_stagegbo.settings import Settings, SlotSettings
from pytest_stagegbo.slots.capacity import Host, capacity
from pytest_stagegbo.slots.layout import golden_settings, is_member_copy, member_copy_settings, number_of
from pytest_stagegbo.slots.placing import Placing, locations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Instance, Network

SETTINGS = Settings()
GOLDEN = golden_settings(SETTINGS)
COPY = member_copy_settings(GOLDEN, "c2")
GIB = 2**30
NAMES = [f"c{number}" for number in range(1, 7)]

sites = st.lists(
    st.builds(
        lambda name, easy, more, distance: Site(name, easy, easy + more, distance),
        st.sampled_from(NAMES),
        st.integers(0, 8),
        st.integers(0, 8),
        st.integers(0, 2),
    ),
    unique_by=lambda site: site.name,
    max_size=6,
)
existing = st.dictionaries(st.integers(0, 30), st.sampled_from(NAMES), max_size=12)
numbers = st.lists(st.integers(0, 30), unique=True, max_size=20)


class TestPlace:
    @hypothesis_settings(deadline=None)  # a busy machine takes its time
    @given(numbers, existing, sites)
    def test_a_slot_that_exists_stays_where_it_is(
        self, numbers: list[int], there: dict[int, str], sites: list[Site]
    ) -> None:
        places = place(numbers, there, sites)
        assert {n: places[n] for n in numbers if n in there} == {n: there[n] for n in numbers if n in there}

    @hypothesis_settings(deadline=None)  # a busy machine takes its time
    @given(numbers, existing, sites)
    def test_no_member_gets_more_than_fits_and_no_room_is_left_unused(
        self, numbers: list[int], there: dict[int, str], sites: list[Site]
    ) -> None:
        places = place(numbers, there, sites)
        used = Counter({**there, **places}.values())
        before = Counter(there.values())
        assert all(used[site.name] <= max(site.most, before[site.name]) for site in sites)
        if set(numbers) - places.keys():
            assert all(used[site.name] >= site.most for site in sites)

    @hypothesis_settings(deadline=None)  # a busy machine takes its time
    @given(numbers, existing, sites)
    def test_what_was_placed_is_placed_there_again(
        self, numbers: list[int], there: dict[int, str], sites: list[Site]
    ) -> None:
        """As a run that was killed has left it, with some of its slots made."""
        places = place(numbers, there, sites)
        made = {**there, **{number: places[number] for number in list(places)[::2]}}
        rest = place(numbers, {**there, **places}, sites)
        assert rest == places
        assert {n: place(numbers, made, sites)[n] for n in made if n in numbers} == {
            n: made[n] for n in made if n in numbers
        }

    @pytest.mark.parametrize(
        ("sites", "count", "expected"),
        [
            pytest.param([("c1", 4, 8, 0), ("c2", 9, 9, 2)], 3, {"c1": 3}, id="near the golden copy"),
            pytest.param([("c1", 4, 8, 0), ("c2", 9, 9, 2)], 6, {"c1": 4, "c2": 2}, id="then where processors are"),
            pytest.param(
                [("c1", 2, 8, 0), ("c2", 2, 2, 2), ("c3", 5, 5, 2)], 4, {"c1": 2, "c3": 2}, id="few golden copies"
            ),
            pytest.param(
                [("c1", 2, 8, 0), ("c2", 2, 2, 1), ("c3", 5, 5, 2)], 4, {"c1": 2, "c2": 2}, id="where a copy of it is"
            ),
            pytest.param([("c1", 1, 4, 0), ("c2", 1, 8, 2)], 6, {"c1": 1, "c2": 5}, id="processors are shared last"),
        ],
    )
    def test_further_slots_go(self, sites: list[Any], count: int, expected: dict[str, int]) -> None:
        places = place(range(count), {}, [Site(*each) for each in sites])
        assert Counter(places.values()) == expected


class TestNumbers:
    @hypothesis_settings(deadline=None)  # a busy machine takes its time
    @given(st.integers(0, 10), st.sets(st.integers(0, 20)))
    def test_slots_that_are_away_are_replaced_by_the_next(self, count: int, away: set[int]) -> None:
        found = choose_numbers(count, range(64), away)
        assert len(found) == count
        assert not away & set(found)
        assert [*found] == sorted(set(range(64)) - away)[:count]

    def test_while_no_bridge_can_be_made_there_are_fewer(self) -> None:
        assert choose_numbers(6, [0, 1, 2, 3, 4, 5], {4, 5}) == (0, 1, 2, 3)


def host(name: str, **values: Any) -> Host:
    return Host(
        **{"memory": 6 * GIB, "disk": 10 * 10**9, "floor": 5 * 10**9, "cores": 2, "there": 0, "name": name, **values}
    )


class TestCapacity:
    def test_the_arithmetic_is_shown_for_each_member(self) -> None:
        settings = replace(SETTINGS, slots=SlotSettings(count="auto"))
        found = capacity(settings, [host("c1"), host("c2", closed=True, there=1)], 9)
        assert found.count == 5
        assert found.explanation == (
            "c1: memory: 6 GiB available less 1 GiB (slots.memory_floor), 1 GiB each (slots.memory), "
            "0 there already: 5",
            "c1: disk: 9.31 GiB free less 4.66 GiB (disk_floor), 954 MiB each (slots.disk), 0 there already: 5",
            "c1: processor: 2 cores, 0.5 each (slots.cores): 4",
            "c2: 1 there already, and no more (slots.members)",
            "workers: 9",
            "so 5 slots",
        )

    def test_a_number_counts_all_members(self) -> None:
        settings = replace(SETTINGS, slots=SlotSettings(count=10))
        assert capacity(settings, [host("c1"), host("c2")], 1).count == 10
        with pytest.raises(NoRoom, match="10 slots are asked for, and 5 fit"):
            capacity(settings, [host("c1")], 1)

    def test_while_members_are_away_there_are_as_many_as_fit(self) -> None:
        settings = replace(SETTINGS, slots=SlotSettings(count=10))
        assert capacity(settings, [host("c1")], 1, lenient=True).count == 5
        assert capacity(settings, [host("c1")], 1, possible=3, lenient=True).count == 3


def slot_clones(number: int, *members: str) -> list[Instance]:
    """Clones of a slot, the first ones on the first member."""
    project = f"STAGE-GBO-{number}" if number else "STAGE-GBO"
    names = list(SETTINGS.containers)
    places = zip(names, [members[min(n, len(members) - 1)] for n in range(len(names))], strict=True)
    return [replace(clone(name, SETTINGS), project=project, location=member) for name, member in places]


def test_a_slot_is_where_most_of_its_clones_are() -> None:
    """An evacuation by an earlier version of this tool's clones may have taken some of them elsewhere."""
    foreign = replace(source("cache"), project="STAGE-GBO-3", location="c3")
    found = [*slot_clones(0, "c1"), *slot_clones(1, "c1", "c2"), foreign, replace(source("web"), project="other")]
    assert locations(found, SETTINGS) == {0: "c1", 1: "c2"}


class FakeCluster:
    """What `Placing` reads of a cluster, and how often."""

    def __init__(self, members: list[Member], instances: list[Instance], bridges: tuple[str, ...] = ()) -> None:
        self._members = members
        self._instances = instances
        self._bridges = bridges
        self.asked: Counter[str] = Counter()
        self.member = "c1"

    def members(self) -> tuple[Member, ...]:
        self.asked["members"] += 1
        return tuple(self._members)

    def instances_of_all_projects(self) -> list[Instance]:
        self.asked["instances"] += 1
        return self._instances

    def networks(self) -> dict[str, Network]:
        self.asked["networks"] += 1
        pending = replace(network("stagebr3", ""), status="Pending")  # its member went away while it was made
        return {"stagebr3": pending, **{name: network(name, "") for name in self._bridges}}


def placing(
    monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster, settings: Settings, **hosts: dict[str, Any]
) -> Placing:
    def measured(reader: Any, settings: Settings, there: int, *, closed: bool) -> Host:  # noqa: ARG001
        cluster.asked["measured"] += 1
        return host(reader.member, there=there, closed=closed, **hosts.get(reader.member, {}))

    class OfMember:
        def __init__(self, connection: object, locate: Any) -> None:  # noqa: ARG002
            self.member = locate(self)

    monkeypatch.setattr("pytest_stagegbo.slots.placing.measure", measured)
    monkeypatch.setattr("pytest_stagegbo.slots.placing.Reader", OfMember)
    return Placing(settings, object(), cluster)  # type: ignore[arg-type]


ONLINE = [Member(name, "Online", "") for name in ("c1", "c2", "c3")]


class TestPlacing:
    def test_slots_are_placed_and_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = replace(SETTINGS, slots=SlotSettings(count=6))
        found = placing(monkeypatch, FakeCluster(ONLINE, slot_clones(0, "c1")), settings).capacity(1)
        assert found.members == {0: "c1", 1: "c1", 2: "c1", 3: "c1", 4: "c2", 5: "c2"}
        assert found.explanation[-1] == "members: 4 on c1, 2 on c2"
        assert found.numbers == (0, 1, 2, 3, 4, 5)

    def test_slots_members_restricts_new_slots(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = replace(SETTINGS, slots=SlotSettings(count=4, members=("c2", "c3")))
        found = placing(monkeypatch, FakeCluster(ONLINE, slot_clones(0, "c1")), settings).capacity(1)
        assert found.members == {0: "c1", 1: "c2", 2: "c2", 3: "c2"}
        settings = replace(SETTINGS, slots=SlotSettings(count=4, members=("c2", "c9")))
        with pytest.raises(SettingsError, match="no member of the cluster: c9"):
            placing(monkeypatch, FakeCluster(ONLINE, []), settings).capacity(1)

    def test_the_slots_of_a_member_that_is_offline_are_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No bridge can be made meanwhile, so there are fewer."""
        settings = replace(SETTINGS, slots=SlotSettings(count=4))
        clones = [*slot_clones(0, "c1"), *slot_clones(1, "c2"), *slot_clones(2, "c3")]
        cut = [*ONLINE[:2], replace(ONLINE[2], status="Offline")]
        cluster = FakeCluster(cut, clones, ("stagebr0", "stagebr1", "stagebr2"))
        found = placing(monkeypatch, cluster, settings).capacity(1)
        assert found.members == {0: "c1", 1: "c2"}
        assert found.count == 2
        assert "c3 is offline, and 1 slot with it (2)" in found.explanation[-1]
        assert "incus cluster remove --force c3" in found.explanation[-1]

    def test_the_slots_of_a_member_that_is_evacuated_are_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = replace(SETTINGS, slots=SlotSettings(count=3))
        clones = [*slot_clones(0, "c1"), *slot_clones(1, "c2"), *slot_clones(2, "c3")]
        members = [*ONLINE[:2], replace(ONLINE[2], status="Evacuated")]
        found = placing(monkeypatch, FakeCluster(members, clones), settings).capacity(1)
        assert found.members == {0: "c1", 1: "c2", 3: "c1"}
        assert found.explanation[-1] == "c3 is evacuated, and 1 slot with it (2)"

    def test_once_it_is_removed_there_are_as_many_as_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = replace(SETTINGS, slots=SlotSettings(count=3))
        cluster = FakeCluster(ONLINE[:2], [*slot_clones(0, "c1"), *slot_clones(1, "c2")])
        assert placing(monkeypatch, cluster, settings).capacity(1).numbers == (0, 1, 2)

    def test_what_is_all_there_is_not_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = FakeCluster(ONLINE, [*slot_clones(0, "c1"), *slot_clones(1, "c2")])
        assert placing(monkeypatch, cluster, SETTINGS).places(2) == {0: "c1", 1: "c2"}
        assert cluster.asked == {"members": 1, "instances": 1}

    def test_a_large_cluster_is_looked_at_with_two_requests_and_once_each_member(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        members = [Member(f"m{number}", "Online", "") for number in range(20)]
        clones = [each for number in range(64) for each in slot_clones(number, f"m{number % 20}")]
        cluster = FakeCluster(members, clones)
        placing(monkeypatch, cluster, replace(SETTINGS, slots=SlotSettings(count=64))).capacity(64)
        assert cluster.asked == {"members": 1, "instances": 1, "measured": 20}


# -- the golden copy of one more member


def golden_clones(generation: str = "g1") -> Mapping[str, Instance]:
    found = {name: clone(name, GOLDEN, status="Stopped", generation=generation) for name in GOLDEN.containers}
    place = {"environment.STAGEGBO_PLACE": "golden:file"}
    return {
        name: replace(each, project=GOLDEN.project, location="c1", config={**each.config, **place})
        for name, each in found.items()
    }


def copies(golden: Mapping[str, Instance], **changes: str) -> Mapping[str, Instance]:
    """Whole ones, on c2."""
    found = {}
    for name, each in golden.items():
        made = copied(each, at_rest_config(each, COPY.containers[name], COPY), COPY)
        marked = {marks.STATE: marks.PREPARED, marks.GENERATION: each.config[marks.GENERATION], **changes}
        found[name] = replace(made, location="c2", config={**made.config, **marked})
    return found


def on_c2(golden: Mapping[str, Instance], clones: Mapping[str, Instance] | None = None) -> Facts:
    facts = finished(GOLDEN)
    return replace(
        facts,
        sources={GOLDEN.containers[name].source_name: each for name, each in golden.items()},
        clones=clones or {},
        golden=GOLDEN.project,
        member="c2",
        members=tuple(ONLINE),
    )


class TestMemberCopy:
    def test_its_names(self) -> None:
        assert COPY.project == "STAGE-GBO-GOLDEN-c2"
        assert is_member_copy(SETTINGS, COPY.project)
        assert not is_member_copy(SETTINGS, GOLDEN.project)
        assert number_of(SETTINGS, COPY.project) is None

    def test_members_whose_names_are_much_alike_have_copies_of_their_own(self) -> None:
        names = ("a_b_c", "a-b_c", "a_b-c", "a-b-c")
        projects = {member_copy_settings(GOLDEN, name).project for name in names}
        assert len(projects) == len(names)
        assert all("_" not in each and is_member_copy(SETTINGS, each) for each in projects)

    def test_every_byte_is_moved_to_a_member_that_has_none(self) -> None:
        steps = plan_member_copy(on_c2(golden_clones()), COPY, SETTINGS.project)
        assert steps[0].text == "create project STAGE-GBO-GOLDEN-c2"
        made = [step for step in steps if isinstance(step, CopyClone)]
        assert {step.subject for step in made} == set(SETTINGS.containers)
        assert all(step.in_full and step.at_rest and step.location == "c2" for step in made)

    def test_a_whole_one_is_left_as_it_is(self) -> None:
        golden = golden_clones()
        assert unfit(copies(golden), golden, COPY, "c2") == []

    @pytest.mark.parametrize(
        "change",
        [{marks.STATE: marks.BUILDING}, {marks.GENERATION: ""}, {marks.GENERATION: "g0"}],
        ids=["a run was killed in the copy", "or before it was marked", "the golden copy was refreshed"],
    )
    def test_one_that_is_not_whole_is_copied_again(self, change: dict[str, str]) -> None:
        golden = golden_clones()
        clones = {**copies(golden), "cache": copies(golden, **change)["cache"]}
        steps = plan_member_copy(on_c2(golden, clones), COPY, SETTINGS.project)
        assert [step.key for step in steps if isinstance(step, RemoveClone | CopyClone)] == [
            "remove:cache",
            "copy:cache",
        ]

    def test_one_that_is_elsewhere_by_now_is_none(self) -> None:
        golden = golden_clones()
        clones = {**copies(golden), "cache": replace(copies(golden)["cache"], location="c3")}
        assert [each.name for each in unfit(clones, golden, COPY, "c2")] == ["cache"]

    def test_somebody_elses_instance_is_left_alone(self) -> None:
        clones = {"cache": replace(source("cache"), project=COPY.project, location="c2")}
        with pytest.raises(NotOurs, match="instance cache in STAGE-GBO-GOLDEN-c2"):
            plan_member_copy(on_c2(golden_clones(), clones), COPY, SETTINGS.project)

    def test_it_is_on_no_network_and_slots_find_the_golden_files_in_it(self) -> None:
        golden, container = golden_clones()["cache"], COPY.containers["cache"]
        made = copies(golden_clones())["cache"]
        assert made.devices["eth0"] == {"type": "none"}
        assert made.config["environment.STAGEGBO_PLACE"] == "golden:file"
        slot = clone_config(made, container, SETTINGS, managed=True, golden=True)
        same = clone_config(golden, container, SETTINGS, managed=True, golden=True)
        differing = {marks.SOURCE, "environment.STAGEGBO_PLACE"}
        assert {key: value for key, value in slot.config.items() if key not in differing and value} == {
            key: value for key, value in same.config.items() if key not in differing and value
        }
        assert slot.devices["eth0"] == same.devices["eth0"]


# -- members that are away


@pytest.mark.parametrize(("status", "verb"), [("Offline", "start"), ("Evacuated", "restore")])
def test_a_stage_whose_member_is_away_is_not_looked_into(status: str, verb: str) -> None:
    cluster = FakeCluster([replace(ONLINE[0], status=status), ONLINE[1]], [])
    with pytest.raises(MemberAway, match=f"STAGE-GBO is on cluster member c1, which is {status.lower()}") as caught:
        refuse_away(cluster, "STAGE-GBO")  # type: ignore[arg-type]
    assert caught.value.remedy.startswith(f"{verb} that member")
    assert caught.value.seen == f"c1 is {status.lower()}, c2 is online"


def test_nor_is_one_whose_member_does_not_answer_and_has_yet_to_be_missed() -> None:
    """The list of instances shows it before the cluster counts the member as offline."""
    cluster = FakeCluster(list(ONLINE[:2]), [])
    refuse_away(cluster, "STAGE-GBO", slot_clones(0, "c1"))  # type: ignore[arg-type]
    with pytest.raises(MemberAway, match="STAGE-GBO is on cluster member c1, which does not answer"):
        refuse_away(cluster, "STAGE-GBO", [unknown(each) for each in slot_clones(0, "c1")])  # type: ignore[arg-type]


def test_a_clone_of_which_only_the_name_is_known_is_not_taken_for_somebody_elses() -> None:
    with pytest.raises(MemberAway, match="STAGE-GBO is on cluster member c3, which does not answer"):
        our_clone(unknown(slot_clones(0, "c3")[0]), SETTINGS, "tables")


def unknown(instance: Instance) -> Instance:
    """As a list shows one whose member is offline (6.0.4)."""
    return replace(instance, status="Error", config={}, devices={}, expanded_config={}, expanded_devices={})


def test_a_slot_whose_member_is_offline_is_known_by_its_name() -> None:
    assert locations([unknown(each) for each in slot_clones(4, "c3")], SETTINGS) == {4: "c3"}


def test_a_copy_of_a_golden_copy_that_is_away_is_as_good_as_it_was() -> None:
    golden = golden_clones()
    gone = {name: unknown(each) for name, each in golden.items()}
    assert unfit(copies(golden), gone, COPY, "c2") == []
    assert unfit(copies(golden, **{marks.GENERATION: ""}), gone, COPY, "c2")


def test_the_member_of_a_stage_is_away_when_it_is_not_online() -> None:
    cluster = FakeCluster([replace(ONLINE[0], status="Offline"), ONLINE[1]], [])
    assert away(cluster) == cluster.members()[0]  # type: ignore[arg-type]
    cluster.member = "c2"
    assert away(cluster) is None  # type: ignore[arg-type]


def test_an_evacuation_stops_clones_and_takes_them_nowhere() -> None:
    """Incus would take each clone to a member of its own choice, and a stage is whole on one."""
    origin = replace(source("cache"), location="c1")
    made = clone_config(origin, SETTINGS.containers["cache"], SETTINGS, managed=True, golden=False)
    assert made.config["cluster.evacuate"] == "stop"
    assert violations(copied(origin, made, SETTINGS), SETTINGS) == []
    alone = clone_config(source("cache"), SETTINGS.containers["cache"], SETTINGS, managed=True, golden=False)
    assert "cluster.evacuate" not in alone.config


def test_bare_facts_have_no_cluster() -> None:
    assert make_plan(bare_host(SETTINGS), SETTINGS).changes
