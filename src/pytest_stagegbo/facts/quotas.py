"""Disk limits that hold: a clone is not started while btrfs does not count what it uses, where that can be mended.

After subvolumes that shared blocks were deleted, btrfs (Linux 6.18: "to be deleted qgroup has non-zero numbers") may
declare its quotas inconsistent, some seconds later. From then on it counts nothing: a clone fills the pool past its
limit, and every usage is reported as it was. Only a rescan ends that; Incus starts one when it turns quotas on.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.incus.localhost import pool_folder
from pytest_stagegbo.progress import task
from pytest_stagegbo.settings import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_stagegbo.facts.space import Room
    from pytest_stagegbo.incus import Instance, Pool, Writer
    from pytest_stagegbo.incus.localhost import LocalHost, Quotas
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Settings

__all__ = [
    "HOW_TO_SEE",
    "Limits",
    "blindness",
    "burden",
    "burdens",
    "counts_deletions",
    "relief",
    "remedy",
    "unseen",
]

ROUNDING = 4096
"""Bytes by which a limit in force may differ."""
POLL = 0.1
CLEANING = 20.0
"""Seconds to wait for btrfs to clean up first: a subvolume that goes later may make the quotas inconsistent again."""


HOW_TO_SEE = "`stagegbo verify --check limits.disk` writes in each clone, and sees whether it is counted"
"""What a person does about a pool whose quotas can't be read."""


def remedy(pool: Pool, quotas: Quotas) -> str:
    """What a person does about limits that do not hold."""
    folder = pool_folder(pool)
    if quotas.mode == "off":
        return (
            f"as root on the daemon's host: `btrfs quota enable {folder}`, set every limit on this pool again, "
            "production's too, then `stagegbo provision --recreate`"
        )
    if quotas.rescanning:
        return f"wait for it: as root on the daemon's host, `btrfs quota rescan -W {folder}`"
    return f"as root on the daemon's host: `btrfs quota rescan -w {folder}`"


def burdens(pool: Pool, quotas: Quotas | None, settings: Settings) -> bool:
    """Whether a volume that is deleted makes production wait. Where nobody can know which quotas a btrfs has, they are
    taken for ordinary ones. On a pool of the stage's own they cost production nothing: it is not there."""
    return not settings.storage.own and pool.driver == "btrfs" and (quotas is None or quotas.mode != "squota")


def counts_deletions(quotas: Quotas | None) -> bool:
    """Whether btrfs counts again what a volume shared when that is deleted, and all that writes to the pool waits for
    it; False where nobody can know."""
    return quotas is not None and quotas.mode == "qgroup" and not quotas.inconsistent


def blindness(room: Room) -> str:
    """What can't be known of a pool's limits from here; empty: whether btrfs counts can be read."""
    if room.pool.driver != "btrfs" or room.quotas is not None:
        return ""
    return f"whether btrfs counts on pool {room.pool.name} can't be read from here: root on the daemon's host can"


def unseen(room: Room) -> str:
    """What a person has to know of a pool whose quotas can't be read, with what to do; empty: they can be read."""
    text = blindness(room)
    return f"{text}; {HOW_TO_SEE}" if text else ""


def burden(pool: Pool, quotas: Quotas | None, settings: Settings) -> str:
    """What a pool's quotas cost production while stages come and go; empty: nothing, or nobody can know."""
    if quotas is None or not burdens(pool, quotas, settings):
        return ""
    has = "gets" if quotas.mode == "off" else "has"
    first = " with the first limit" if quotas.mode == "off" else ""
    return (
        f"pool {pool.name} {has} ordinary btrfs quotas{first}: whenever a clone or a snapshot is deleted there, "
        "all that writes to the pool waits, production's databases too, for up to some seconds; run as root on the "
        "daemon's host, stagegbo empties clones before it deletes them, which takes longer and leaves waits of tenths "
        "of a second"
    )


def relief(pool: Pool) -> str:
    """What an administrator can do about `burden`."""
    folder = pool_folder(pool)
    return (
        'give the stage a pool of its own: `storage.pool = "stage"` and `storage.create = "20GB"` in the settings, '
        "then `stagegbo provision --recreate`. Or have an administrator turn to simple quotas: they "
        "(Linux and btrfs-progs 6.7 or newer) cost nothing of that, and count "
        f"what each container writes from then on. As root on the daemon's host: `btrfs quota disable {folder}; btrfs "
        f"quota enable --simple {folder}`. That drops every limit on the pool. The stage's are set again by "
        f"`stagegbo provision`, production's by `btrfs qgroup limit SIZE {folder}/containers/NAME` for each "
        "container that had one"
    )


class Limits:
    """Sees to it that the limits on some pools hold. Used by several threads at once.

    Args:
        patience: Seconds to wait for btrfs to have counted again.
    """

    def __init__(self, host: LocalHost, pools: Iterable[Pool], progress: Progress, patience: float) -> None:
        self._host = host
        self._pools = [pool for pool in pools if pool.driver == "btrfs"]
        self._progress = progress
        self._patience = patience
        self._told: set[str] = set()
        self._turn = threading.RLock()

    def see(self) -> None:
        """Have btrfs count again where it does not, and wait for it; a note where that can't be had."""
        with self._turn:
            for pool in self._pools:
                quotas = self._host.quotas(pool)
                if quotas is None or quotas.hold:
                    continue
                if quotas.mode != "off" and pool.name not in self._told:
                    text = f"pool {pool.name}: {quotas}; limits do not hold until it has counted again"
                    with task(self._progress, f"quotas:{pool.name}", text):
                        quotas = self._mend(pool, quotas)
                if not quotas.hold and pool.name not in self._told:
                    self._told.add(pool.name)
                    advice = remedy(pool, quotas)
                    self._progress.note(f"DISK LIMITS DO NOT HOLD on pool {pool.name}: {quotas}; {advice}")

    @contextlib.contextmanager
    def copying(self, name: str) -> Iterator[None]:
        """Around a copy to a pool: none is made while btrfs counts what was there before.

        The first limit on a pool has Incus turn quotas on, and btrfs count all that is there. A subvolume that is made
        meanwhile is counted wrong by some kilobytes, which shows when it is deleted: btrfs then declares the quotas
        inconsistent. So the first copy is made alone, and its count waited for.
        """
        with self._turn:
            pool = next((each for each in self._pools if each.name == name), None)
            quotas = self._host.quotas(pool) if pool is not None else None
            if quotas is not None and not quotas.hold:
                if quotas.mode != "off":
                    self.see()
                else:
                    yield
                    self.see()
                    return
        yield

    def lost(self, clone: Instance) -> bool | None:
        """Whether a clone's volume lacks the limit that its root device names; None where that can't be seen.

        With simple quotas a volume that was restored from a snapshot has none (Incus 6.0 and 7.0): ordinary ones hand
        it on in the kernel, simple ones do not, and Incus sets a limit only when the device changes.
        """
        pool = next((each for each in self._pools if each.name == clone.pool), None)
        size = clone.devices.get("root", {}).get("size", "")
        if pool is None or not size:
            return False
        quotas = self._host.quotas(pool)
        if quotas is not None and quotas.mode == "off":
            return False  # `see` speaks of it
        found = self._host.limit(pool, f"{clone.project}_{clone.name}")
        return None if quotas is None or found is None else abs(found - parse_size(size)) > ROUNDING

    def set_again(self, writer: Writer, clone: Instance) -> None:
        """Have Incus set the limit that the root device names. Whoever is killed in between leaves one that is as good,
        and that the next provisioning corrects."""
        devices = {name: dict(device) for name, device in clone.devices.items()}
        size = devices["root"]["size"]
        for each in (str(parse_size(size) + ROUNDING), size):
            writer.set_instance_devices(clone.name, {**devices, "root": {**devices["root"], "size": each}})

    def _mend(self, pool: Pool, quotas: Quotas) -> Quotas:
        began, hurried = clocks.monotonic(), False
        while not quotas.hold and clocks.monotonic() - began < self._patience:
            cleaning = clocks.monotonic() - began < CLEANING and not quotas.rescanning and self._host.uncleaned(pool)
            if cleaning and not hurried:  # else btrfs begins with it up to 30 s later
                self._host.commit(pool)
                hurried = True
            if not quotas.rescanning and not cleaning and not self._host.rescan(pool):
                break
            clocks.sleep(POLL)  # a poll with a deadline: btrfs announces nothing
            quotas = self._host.quotas(pool) or quotas
        return quotas
