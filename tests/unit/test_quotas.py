"""Limits that hold, and room that comes back, against a simulated btrfs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import GIB, Journal, bare_host, clone, pool
from msgspec.structs import replace

from pytest_stagegbo.apply.room import await_room
from pytest_stagegbo.facts.quotas import Limits, blindness, burden, burdens, remedy
from pytest_stagegbo.facts.space import Room
from pytest_stagegbo.incus.localhost import LocalHost, Quotas
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.settings.model import StorageSettings

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Pool

RIGHT = Quotas("qgroup")
WRONG = Quotas("qgroup", inconsistent=True)
COUNTING = Quotas("qgroup", inconsistent=True, rescanning=True)


@dataclass
class Btrfs:
    """Answers one question after the other; the last answer stays."""

    counts: list[Quotas | None]
    left: list[int | None] = field(default_factory=lambda: [0])
    free: list[int] = field(default_factory=lambda: [100 * GIB])
    may: bool = True
    log: list[str] = field(default_factory=list)

    def quotas(self, pool: Pool) -> Quotas | None:
        assert pool.name == "tank"
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]

    def rescan(self, pool: Pool) -> bool:
        self.log.append(f"rescan {pool.name}")
        return self.may

    def uncleaned(self, pool: Pool) -> int | None:
        assert pool.name == "tank"
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def commit(self, pool: Pool) -> None:
        self.log.append(f"commit {pool.name}")

    def free_bytes(self, path: str) -> int | None:
        assert path.endswith("tank.img")
        return None

    def metadata_bytes(self, pool: Pool) -> int:
        assert pool.name == "tank"
        return 0

    def unwritten_bytes(self, pool: Pool) -> int:
        assert pool.name == "tank"
        return 0

    force: int | None = 0

    def limit(self, pool: Pool, volume: str) -> int | None:
        assert (pool.name, volume) == ("tank", "STAGE-GBO_cache")
        return self.force

    # the reader
    def pool(self, name: str) -> Pool:
        return pool(name, free=self.free.pop(0) if len(self.free) > 1 else self.free[0])


def limits(btrfs: Btrfs, journal: Journal) -> Limits:
    return Limits(cast("Any", btrfs), [pool()], journal, 5)


@pytest.mark.parametrize("counts", [RIGHT, Quotas("squota"), None], ids=["right", "simple", "unseen"])
def test_where_btrfs_counts_or_nobody_knows_nothing_is_done(counts: Quotas | None) -> None:
    btrfs, journal = Btrfs([counts]), Journal()
    limits(btrfs, journal).see()
    assert (btrfs.log, journal.notes) == ([], [])


def test_btrfs_counts_again_once_it_has_cleaned_up() -> None:
    btrfs, journal = Btrfs([WRONG, WRONG, COUNTING, RIGHT], left=[2, 0]), Journal()
    limits(btrfs, journal).see()
    assert btrfs.log == ["commit tank", "rescan tank"], "it begins to clean up at once"
    assert journal.notes == []


def test_who_may_not_have_it_count_is_told_the_command_once() -> None:
    btrfs, journal = Btrfs([WRONG], may=False), Journal()
    seen = limits(btrfs, journal)
    seen.see()
    seen.see()
    (note,) = journal.notes
    assert "DISK LIMITS DO NOT HOLD on pool tank" in note
    assert "`btrfs quota rescan -w /var/lib/incus/storage-pools/tank`" in note


def test_the_first_copy_on_a_pool_is_made_alone_and_its_count_waited_for() -> None:
    """The first limit has Incus turn quotas on; what is copied while btrfs counts is counted wrong."""
    btrfs, journal = Btrfs([Quotas("off"), COUNTING, COUNTING, RIGHT]), Journal()
    seen = limits(btrfs, journal)
    with seen.copying("tank"):
        assert seen._turn._is_owned(), "no other copy begins"  # type: ignore[attr-defined]
    assert btrfs.counts == [RIGHT], "it was waited for"
    with seen.copying("tank"):
        assert not seen._turn._is_owned()  # type: ignore[attr-defined]


def test_no_copy_is_made_while_btrfs_counts() -> None:
    btrfs = Btrfs([COUNTING, COUNTING, COUNTING, RIGHT])
    with limits(btrfs, Journal()).copying("tank"):
        assert btrfs.counts == [RIGHT]


def test_quotas_that_are_off_have_their_own_remedy() -> None:
    assert "btrfs quota enable" in remedy(pool(), Quotas("off"))


# -- room

SETTINGS = Settings(disk_floor="5GiB", disk_floor_share=0)


def room(btrfs: Btrfs, *, removed: bool = False) -> str:
    found = await_room(cast("Any", btrfs), cast("Any", btrfs), SETTINGS, "tank", 0, removed=removed)
    return "" if found is None else found.message


def test_room_that_is_there_is_not_waited_for() -> None:
    btrfs = Btrfs([RIGHT], left=[None])
    assert room(btrfs) == ""
    assert btrfs.log == []


def test_room_that_comes_back_is_waited_for() -> None:
    btrfs = Btrfs([RIGHT], left=[3, 1], free=[GIB, 2 * GIB, 3 * GIB, 6 * GIB])
    assert room(btrfs) == ""
    assert btrfs.log == ["commit tank"], "btrfs begins to clean up at once, and is not asked more than once"


def test_what_the_last_deleted_subvolume_had_is_free_once_it_is_written() -> None:
    btrfs = Btrfs([RIGHT], left=[0], free=[GIB, 6 * GIB])
    assert room(btrfs) == ""
    assert btrfs.log == ["commit tank"]


def test_where_nothing_is_left_to_clean_up_there_is_no_waiting() -> None:
    assert (
        room(Btrfs([RIGHT], left=[0], free=[GIB])) == "too little room on pool tank: 1 GiB free, 5 GiB must stay free"
    )


@pytest.mark.parametrize(("driver", "left"), [("dir", 0), ("zfs", None), ("btrfs", None)])
def test_a_folder_of_files_has_nothing_left_to_clean_up(driver: str, left: int | None) -> None:
    """Of pools that can't be asked nobody knows: the room that may come back is waited for."""
    assert LocalHost("https://far:8443").uncleaned(pool(driver=driver)) == left


@pytest.mark.parametrize(
    ("counts", "force", "lost"),
    [
        pytest.param(Quotas("squota"), 0, True, id="none"),
        pytest.param(Quotas("squota"), 5_000_000_000, True, id="another"),
        pytest.param(Quotas("squota"), 10_000_000_000 // 4096 * 4096, False, id="in force"),
        pytest.param(RIGHT, 0, True, id="ordinary"),
        pytest.param(Quotas("off"), 0, False, id="quotas that are off are not turned on"),
        pytest.param(None, None, None, id="unseen"),
    ],
)
def test_a_limit_is_lost_when_the_volume_has_another_than_its_device(
    counts: Quotas | None, force: int | None, lost: bool | None
) -> None:
    assert limits(Btrfs([counts], force=force), Journal()).lost(clone("cache", Settings())) is lost


@pytest.mark.parametrize(
    ("driver", "counts", "said"),
    [
        ("btrfs", RIGHT, "pool tank has ordinary btrfs quotas: "),
        ("btrfs", Quotas("off"), "pool tank gets ordinary btrfs quotas with the first limit: "),
        ("btrfs", Quotas("squota"), ""),
        ("btrfs", None, ""),
        ("zfs", None, ""),
    ],
)
def test_ordinary_quotas_are_a_burden(driver: str, counts: Quotas | None, said: str) -> None:
    text = burden(pool(driver=driver), counts, Settings())
    assert text.startswith(said) if said else not text
    own = Settings(storage=StorageSettings(pool="tank"))
    assert not burden(pool(driver=driver), counts, own), "production is not on it"


def test_the_plan_says_once_what_copies_cost_production() -> None:
    settings = Settings()
    sources = bare_host(settings, rooms={"tank": Room(pool(), None, quotas=RIGHT)})
    (note,) = (text for text in make_plan(sources, settings).notes if "ordinary btrfs quotas" in text)
    assert "doctor" in note
    simple = bare_host(settings, rooms={"tank": Room(pool(), None, quotas=Quotas("squota"))})
    assert not [text for text in make_plan(simple, settings).notes if "quotas" in text]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param(RIGHT, True, id="ordinary"),
        pytest.param(Quotas("off"), True, id="off-until-the-first-limit"),
        pytest.param(None, True, id="unseen"),
        pytest.param(Quotas("squota"), False, id="simple"),
    ],
)
def test_deletions_burden_production_unless_its_pool_counts_simply(counts: Quotas | None, expected: bool) -> None:
    assert burdens(pool(), counts, Settings()) is expected
    own = replace(Settings(), storage=StorageSettings("stage"))
    assert not burdens(pool(), counts, own)
    assert not burdens(replace(pool(), driver="zfs"), counts, Settings())


@pytest.mark.parametrize(
    ("driver", "quotas", "blind"),
    [
        pytest.param("btrfs", None, True, id="nobody-may-look"),
        pytest.param("btrfs", RIGHT, False, id="they-count"),
        pytest.param("btrfs", WRONG, False, id="they-do-not"),
        pytest.param("zfs", None, False, id="another-driver"),
    ],
)
def test_it_is_said_where_nobody_can_know_whether_limits_hold(driver: str, quotas: Quotas | None, blind: bool) -> None:
    text = blindness(Room(pool("tank", driver=driver), None, quotas=quotas))
    assert bool(text) is blind
    assert not blind or "pool tank" in text
