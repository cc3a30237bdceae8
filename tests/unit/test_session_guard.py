"""The disk guard against a strict world with a clock of its own."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import GIB, clone, pool, refused, source
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import NoRoom, ServerRefused
from pytest_stagegbo.facts.space import Space, floor_bytes, look, pool_names
from pytest_stagegbo.incus.localhost import Quotas
from pytest_stagegbo.session.guard import FASTEST, NEAR, DiskGuard, growers, pause
from pytest_stagegbo.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance, Pool

MIB = 2**20


@dataclass
class World:
    """A daemon and its machine, as far as the guard may look."""

    settings: Settings = field(default_factory=lambda: Settings(disk_floor="5GiB", disk_floor_share=0))
    free: int = 100 * GIB
    seen: int | None = None
    """Free bytes that the host itself sees."""
    counted: bool = False
    """Whether the host itself sees what each volume uses."""
    known: dict[str, Pool] = field(default_factory=dict)
    """What provisioning has seen of the pools."""
    below: int | None = None
    unwritten: int = 0
    metadata: int = 0
    counts: Quotas | None = field(default_factory=lambda: Quotas("qgroup"))
    time: float = 1000.0
    used: dict[str, int | None] = field(default_factory=dict)
    clones: dict[str, Instance] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    fails: Mapping[str, Exception] = field(default_factory=dict)
    endpoint: str = "/nowhere/unix.socket"
    prepared: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    """Frozen by the kernel, without the daemon's knowledge for certain."""

    def __post_init__(self) -> None:
        self.clones = self.clones or {name: clone(name, self.settings) for name in self.settings.containers}
        self.used = self.used or dict.fromkeys(self.settings.containers, MIB)

    capsules: int = 0
    """How many there are; each has so many bytes."""
    capsule_bytes: int = GIB
    dropped: threading.Event = field(default_factory=threading.Event)

    def guard(self, stopped: list[NoRoom] | None = None) -> DiskGuard:
        stop = (stopped if stopped is not None else []).append
        drop = self.drop_capsule
        return DiskGuard(cast("StageEngine", self), stop, host=self, drop_capsule=drop, clock=lambda: self.time)

    def drop_capsule(self) -> bool:
        self._ask("drop a capsule")
        if self.capsules:
            self.capsules -= 1
            self.free += self.capsule_bytes
            self.done.append("drop a capsule")
            self.dropped.set()
            return True
        return False

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.fails:
            raise self.fails[what]

    # engine
    @property
    def reader(self) -> World:
        return self

    def clone_writer(self) -> World:
        return self

    def known_pools(self) -> dict[str, Pool]:
        return self.known

    # freezer
    @property
    def freezer(self) -> World:
        return self

    def prepare(self, names: Iterable[str]) -> None:
        self.prepared = set(names)

    def freeze_now(self, names: Iterable[str], doing: str) -> tuple[str, ...]:
        assert doing == "the pool is full"
        self.done += [f"at-once {name}" for name in names]
        self.held |= set(names)
        return tuple(names)

    def let_go(self, names: Iterable[str]) -> None:
        self.held -= set(names)

    # reader
    def pool(self, name: str) -> Pool:
        assert name == "tank"
        self._ask("pool")
        return pool(free=self.free)

    def instances(self, project: str) -> dict[str, Instance]:
        self._ask(f"instances {project}")
        if project == self.settings.source_project:
            return {name: source(name) for name in self.settings.containers}
        assert project == self.settings.project
        return self.clones

    def volume_usage(self, pool: str, project: str, instance: str) -> int | None:
        assert (pool, project) == ("tank", self.settings.project)
        self._ask(f"usage {instance}")
        return self.used[instance]

    # writer
    def set_state(self, name: str, action: str, *, force: bool = False) -> None:
        self.done.append(f"{action} {name}" + (" now" if force else ""))
        if f"{action} {name}" in self.fails:
            raise self.fails[f"{action} {name}"]

    # host
    def free_bytes(self, path: str) -> int | None:
        assert path == "/var/lib/incus/disks/tank.img"
        return self.below

    def used_bytes(self, pool: Pool) -> int | None:
        assert pool.name == "tank"
        return None if self.seen is None else pool.total - self.seen

    def exclusive_bytes(self, pool: Pool, volume: str) -> int | None:
        assert pool.name == "tank"
        project, _, name = volume.rpartition("_")
        assert project == self.settings.project
        return self.used[name] if self.counted else None

    def unwritten_bytes(self, pool: Pool) -> int:
        assert pool.name == "tank"
        return self.unwritten

    def metadata_bytes(self, pool: Pool) -> int:
        assert pool.name == "tank"
        return self.metadata

    def quotas(self, pool: Pool) -> Quotas | None:
        assert pool.name == "tank"
        return self.counts

    def rescan(self, pool: Pool) -> bool:
        assert pool.name == "tank"
        self.done.append("rescan")
        return True

    def uncleaned(self, pool: Pool) -> int | None:
        assert pool.name == "tank"
        return 0

    def commit(self, pool: Pool) -> None:
        raise AssertionError(f"a guard waits for no room on {pool.name}")

    def flush(self, seconds: float) -> None:
        assert seconds <= 10
        self.done.append("flush")


def started(world: World, stopped: list[NoRoom] | None = None) -> DiskGuard:
    """A guard that has noted the sizes and whose looks are the test's to make."""
    guard = world.guard(stopped)
    guard._begin()
    world.asked.clear()
    return guard


# -- looking


def test_a_look_costs_one_question_about_the_pool() -> None:
    """Where the pool is, is asked once."""
    world = World()
    guard = world.guard()
    guard.check()
    world.asked.clear()
    guard.check()
    assert world.asked == ["pool"]


def test_room_enough_is_silence() -> None:
    World(free=5 * GIB, below=5 * GIB).guard().check()


@pytest.mark.parametrize(
    ("room", "where"),
    [
        pytest.param({"free": 5 * GIB - 1}, "pool tank: 5 GiB free", id="pool"),
        pytest.param(
            {"below": 3 * GIB}, "the host's file system that holds the file of pool tank: 3 GiB free", id="host"
        ),
        pytest.param({"free": 50 * GIB, "unwritten": 46 * GIB}, "pool tank: 4 GiB free", id="promised-to-writers"),
        pytest.param({"free": 9 * GIB, "metadata": 5 * GIB}, "pool tank: 4 GiB free", id="kept-for-metadata"),
        pytest.param(
            {"below": 6 * GIB, "unwritten": 2 * GIB},
            "that holds the file of pool tank: 4 GiB free",
            id="promised-on-host",
        ),
    ],
)
def test_check_raises_below_the_floor_and_says_where(room: dict[str, Any], where: str) -> None:
    with pytest.raises(NoRoom, match=where):
        World(**room).guard().check()


def test_capsules_go_before_a_test_is_refused() -> None:
    world = World(free=4 * GIB, capsules=3)
    world.guard().check()
    assert (world.done, world.capsules) == (["drop a capsule"], 2)


def test_capsules_go_while_the_floor_is_near() -> None:
    """And nothing is frozen for that."""
    world = World(free=5 * GIB + MIB, capsules=1)
    guard = started(world)
    guard._look()
    assert world.dropped.wait(10)
    guard.close()
    assert (world.done, world.capsules) == (["drop a capsule"], 0)


def test_the_next_capsule_waits_until_the_room_of_the_one_before_can_be_free() -> None:
    world = World(free=5 * GIB + MIB, capsules=3, capsule_bytes=0)
    guard = started(world)
    guard._look()
    assert world.dropped.wait(10)
    for _ in range(5):
        guard._look()
    guard.close()
    assert world.capsules == 2


def test_a_capsule_that_can_not_be_deleted_is_trouble() -> None:
    world = World(free=4 * GIB, capsules=1, fails={"drop a capsule": refused(500)})
    guard = world.guard()
    with pytest.raises(NoRoom):
        guard.check()
    assert guard.trouble()


def test_check_names_who_grew_by_how_much_largest_first() -> None:
    world = World()
    guard = started(world)
    world.used.update(tables=2 * GIB + MIB, cache=500 * MIB + MIB, drive=MIB + 1)
    world.free, world.time = GIB, world.time + 90
    with pytest.raises(NoRoom) as caught:
        guard.check()
    assert caught.value.seen == "since the guard began 90 s ago tables grew by 2 GiB, cache grew by 500 MiB"
    assert world.done == [], "looking changes nothing"


def test_a_busy_daemon_does_not_keep_the_guard_of_its_own_host_from_seeing_the_pool_fill() -> None:
    world = World()
    guard = started(world)
    guard._look()
    world.seen, world.fails = 50 * GIB, {"pool": refused(500)}
    guard._look()
    world.seen = GIB
    guard._look()
    assert guard.trouble() == ""
    assert "freeze tables" in world.done


def test_check_passes_on_that_the_daemon_refuses() -> None:
    with pytest.raises(ServerRefused):
        World(fails={"pool": refused(500)}).guard().check()


@pytest.mark.parametrize(
    ("floor", "share", "expected"),
    [
        pytest.param("5GiB", 0.1, 20 * GIB, id="share-of-200"),
        pytest.param("50GiB", 0.1, 50 * GIB, id="floor"),
        pytest.param("1", 0.0, 1, id="no-share"),
        pytest.param("0", 0.0, 0, id="nothing"),
    ],
)
def test_the_floor_is_the_larger_of_size_and_share(floor: str, share: float, expected: int) -> None:
    assert floor_bytes(Settings(disk_floor=floor, disk_floor_share=share), pool()) == expected


def test_a_block_device_has_no_file_system_below() -> None:
    disk = replace(pool(), source="/dev/sdb")
    reader = SimpleNamespace(pool={"tank": disk}.get)
    room = look(cast("Any", reader), "tank", World(below=1))
    assert [each.where for each in room.spaces(Settings())] == ["pool tank"]


def test_pools_are_those_of_the_clones_and_of_production_before_there_are_any() -> None:
    world = World()
    assert pool_names(cast("Any", world), world.settings) == ["tank"]
    world.clones.clear()
    world.asked.clear()
    assert pool_names(cast("Any", world), world.settings) == ["tank"]
    assert world.asked == ["instances STAGE-GBO", "instances default"]


def test_a_pool_that_provisioning_has_seen_is_asked_of_nobody_but_the_host() -> None:
    world = World(seen=50 * GIB, known={"tank": pool()})
    guard = world.guard()
    guard.check()
    assert world.asked == ["instances STAGE-GBO"]
    assert [space.free for space in guard.spaces] == [50 * GIB]


# -- growth


def test_growth_that_the_host_sees_is_asked_of_nobody_else() -> None:
    world = World(counted=True)
    guard = world.guard()
    guard.check()
    guard._begin()
    world.used.update(cache=3 * MIB, drive=None)
    world.asked.clear()
    assert guard.growth() == {"system": 0, "tables": 0, "vault": 0, "cache": 2 * MIB, "llm": 0}
    assert world.asked == ["instances STAGE-GBO", "usage drive"]


def test_growth_is_counted_from_the_start() -> None:
    world = World(used={**dict.fromkeys(Settings().containers, 5), "llm": None})
    guard = started(world)
    world.used.update(cache=25, drive=1)
    assert guard.growth() == {"system": 0, "tables": 0, "vault": 0, "cache": 20, "drive": -4}


def test_a_clone_made_since_then_counts_whole_and_one_that_is_gone_is_left_out() -> None:
    world = World()
    guard = started(world)
    world.clones["cache"] = replace(world.clones["cache"], created_at="2027-01-01T00:00:00Z")
    world.used["cache"] = 7
    del world.clones["llm"]
    assert guard.growth() == {"system": 0, "tables": 0, "vault": 0, "cache": 7, "drive": 0}


def test_growth_never_raises() -> None:
    world = World()
    guard = started(world)
    world.fails = {"instances STAGE-GBO": refused(500)}
    assert guard.growth() == {}
    assert "500" in guard.trouble()


def test_nothing_is_known_of_growth_before_the_start() -> None:
    assert World().guard().growth() == {}


# -- acting


def test_what_grew_is_stopped_and_the_others_go_on() -> None:
    """Everything is frozen first, since a container goes on writing while others are measured."""
    world = World()
    stopped: list[NoRoom] = []
    guard = started(world, stopped)
    world.free, world.used["tables"] = GIB, 3 * GIB
    guard._look()
    names = list(world.settings.containers)
    assert world.prepared == set(names)
    at_once, world.done = world.done[: len(names)], world.done[len(names) :]
    assert at_once == [f"at-once {name}" for name in names], "a busy daemon is slower than what fills a pool"
    assert sorted(world.done[: len(names)]) == sorted(f"freeze {name}" for name in names)
    assert world.held == set()
    assert world.done[len(names) : len(names) + 2] == ["flush", "stop tables now"]
    assert sorted(world.done[len(names) + 2 :]) == sorted(f"unfreeze {name}" for name in names if name != "tables")
    (error,) = stopped
    assert error.message == (
        "too little room on pool tank: 1 GiB free, 5 GiB must stay free. Stopped, with its data kept: tables"
    )
    assert "tables grew by 3 GiB" in error.seen
    assert guard.trouble() == ""


def test_only_containers_with_our_mark_are_touched() -> None:
    world = World(used=dict.fromkeys(Settings().containers))
    foreign = {key: value for key, value in world.clones["cache"].config.items() if key != marks.OWNER}
    world.clones["cache"] = replace(world.clones["cache"], config=foreign)
    world.clones["llm"] = replace(world.clones["llm"], status="Stopped")
    world.clones["another"] = world.clones["tables"]
    guard = started(world)
    world.free = 0
    guard._look()
    touched = {entry.split()[1] for entry in world.done if " " in entry}
    assert touched == {"system", "tables", "vault", "drive"}


def test_a_container_that_another_guard_froze_is_stopped_or_left_to_it() -> None:
    world = World()
    guard = started(world)
    for name in ("tables", "cache"):
        world.clones[name] = replace(world.clones[name], status="Frozen")
    world.free, world.used["tables"] = GIB, 3 * GIB
    guard._look()
    assert "stop tables now" in world.done
    assert not {"freeze tables", "freeze cache", "unfreeze cache"} & set(world.done)


def test_the_session_is_stopped_once_and_a_failed_stop_is_tried_again() -> None:
    world = World(fails={"stop tables": refused(500)})
    stopped: list[NoRoom] = []
    guard = started(world, stopped)
    world.free, world.used["tables"] = GIB, 3 * GIB
    guard._look()
    assert not guard._closing.is_set()
    assert "500" in guard.trouble()
    world.fails = {}
    guard._look()
    assert guard._closing.is_set(), "nothing left to do"
    assert len(stopped) == 1
    assert "Stopped" not in stopped[0].message


@pytest.mark.parametrize("fails", ["freeze cache", "unfreeze cache", "stop tables"])
def test_what_may_stay_frozen_is_known_to_the_next_user(fails: str) -> None:
    world = World(fails={fails: refused(500)})
    guard = started(world)
    world.free, world.used["tables"] = GIB, 3 * GIB
    guard._look()
    assert world.held == {fails.split()[1]}


def test_the_session_is_stopped_even_if_the_daemon_does_nothing() -> None:
    world = World()
    stopped: list[NoRoom] = []
    guard = started(world, stopped)
    world.free, world.fails = GIB, {"instances STAGE-GBO": refused(500)}
    guard._pools = ["tank"]
    guard._look()
    assert "is not known" in stopped[0].seen


def test_when_something_else_fills_the_pool_no_container_is_stopped() -> None:
    world = World()
    stopped: list[NoRoom] = []
    guard = started(world, stopped)
    world.free = GIB
    guard._look()
    assert not [entry for entry in world.done if entry.startswith("stop")]
    assert "something else fills it" in stopped[0].seen


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        pytest.param(
            Quotas("qgroup", inconsistent=True), "pool tank: btrfs quotas are inconsistent", id="inconsistent"
        ),
        pytest.param(Quotas("qgroup", rescanning=True), "pool tank: btrfs is counting its quotas again", id="rescan"),
        pytest.param(Quotas("off"), "pool tank: btrfs quotas are off", id="off"),
        pytest.param(None, "the pools lost 99 GiB, which what is counted", id="unseen"),
    ],
)
def test_where_counts_are_not_to_be_relied_on_everything_of_the_stage_is_stopped(
    counts: Quotas | None, why: str
) -> None:
    """Nobody grew, by what is counted, and the pool is full all the same: production goes first."""
    world = World()
    stopped: list[NoRoom] = []
    guard = started(world, stopped)
    guard._look()
    world.free, world.counts = GIB, counts
    guard._look()
    names = list(world.settings.containers)
    assert {entry for entry in world.done if entry.startswith("stop")} == {f"stop {name} now" for name in names}
    assert not [entry for entry in world.done if entry.startswith("unfreeze")]
    assert stopped[0].seen.startswith(f"how much each container of the stage grew is not known ({why}")
    assert stopped[0].seen.endswith("so all of them are stopped")


def test_counts_that_were_wrong_once_are_not_relied_on_later() -> None:
    """A rescan that ends corrects them, and what each container had before is not known."""
    world = World(counts=Quotas("qgroup", inconsistent=True))
    stopped: list[NoRoom] = []
    guard = started(world, stopped)
    guard._look()
    assert world.done == ["rescan"]
    guard._look()
    assert world.done == ["rescan"], "asked for once a minute"
    assert guard.doubt().startswith("pool tank: btrfs quotas are inconsistent")
    world.free, world.counts = GIB, Quotas("qgroup")
    guard._look()
    assert "stop cache now" in world.done
    assert "not known" in stopped[0].seen


def test_growth_that_explains_what_the_pool_lost_is_known_wherever_it_is_counted() -> None:
    world = World(counts=None)
    guard = started(world)
    guard._look()
    world.free, world.used["tables"] = GIB, 90 * GIB
    guard._look()
    assert [entry for entry in world.done if entry.startswith("stop")] == ["stop tables now"]


def test_an_unreachable_daemon_is_trouble_and_no_end() -> None:
    world = World()
    guard = started(world)
    world.fails = {"pool": refused(502)}
    assert guard._look() == 0.5
    assert "502" in guard.trouble()
    world.fails = {}
    guard._look()
    assert world.done == []


def test_a_thread_of_its_own_looks_and_stops() -> None:
    """The whole of it, once."""
    world, called = World(), threading.Event()
    guard = DiskGuard(cast("StageEngine", world), lambda _: called.set(), interval=0.01, host=world)
    guard.start()
    guard.start()
    world.free = 0
    assert called.wait(10)
    guard.close()
    guard.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "stagegbo disk guard"]


def test_a_callback_that_raises_is_trouble() -> None:
    def stop(error: NoRoom) -> None:
        raise RuntimeError(f"cannot: {error.code}")

    world = World()
    guard = DiskGuard(cast("StageEngine", world), stop, host=world)
    world.free = 0
    guard._look()
    assert guard.trouble() == "cannot: SG210"


# -- when and whom


@pytest.mark.parametrize(
    ("margin", "rate", "expected"),
    [
        pytest.param(100 * GIB, 0.0, 0.5, id="far"),
        pytest.param(GIB, 0.0, 0.5, id="a-second-of-sudden-filling"),
        pytest.param(GIB // 2, 0.0, 0.25, id="near"),
        pytest.param(1, 0.0, NEAR, id="at-the-floor"),
        pytest.param(8 * GIB, 8.0 * GIB, 0.5, id="filling-far"),
        pytest.param(4 * GIB, 8.0 * GIB, 0.25, id="filling-fast"),
        pytest.param(1, 8.0 * GIB, FASTEST, id="filling-at-the-floor"),
        pytest.param(100 * GIB, -1.0 * GIB, 0.5, id="emptying"),
    ],
)
def test_looks_come_closer_as_the_floor_does(margin: int, rate: float, expected: float) -> None:
    assert pause(margin, rate, 0.5) == pytest.approx(expected)


def test_the_pace_of_filling_is_measured_between_two_looks() -> None:
    world = World(free=41 * GIB)
    guard = started(world)
    assert guard._look() == 0.5
    world.free, world.time = 13 * GIB, world.time + 0.5
    assert guard._look() == pytest.approx(8 / (2 * 56))


@pytest.mark.parametrize(
    ("grown", "expected"),
    [
        pytest.param({"a": 100 * MIB, "b": 11 * MIB, "c": 9 * MIB}, ["a", "b"], id="a-tenth-of-the-most"),
        pytest.param({"a": 5 * MIB, "b": MIB - 1}, ["a"], id="breathing"),
        pytest.param({"a": 0, "b": -5}, [], id="nobody"),
        pytest.param({}, ["a", "b", "c"], id="not-known"),
        pytest.param({"foreign": 100 * MIB}, [], id="not-ours"),
    ],
)
def test_who_is_stopped(grown: dict[str, int], expected: list[str]) -> None:
    assert growers(["a", "b", "c"], grown) == expected


def test_a_space_reads_well() -> None:
    assert str(Space("pool tank", -5, GIB)) == "pool tank: 0 B free, 1 GiB must stay free"
