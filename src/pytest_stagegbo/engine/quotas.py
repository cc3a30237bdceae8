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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_stagegbo.incus import Pool
    from pytest_stagegbo.incus.localhost import Host, Quotas
    from pytest_stagegbo.progress import Progress

__all__ = ["Limits", "remedy"]

POLL = 0.1
CLEANING = 20.0
"""Seconds to wait for btrfs to clean up first: a subvolume that goes later may make the quotas inconsistent again."""


def remedy(pool: Pool, quotas: Quotas) -> str:
    """What a person does about limits that do not hold."""
    folder = pool_folder(pool)
    if quotas.mode == "off":
        return (
            f"as root on the daemon's host: `btrfs quota enable {folder}`, set every limit on this pool again, "
            "production's too, then `python -m pytest_stagegbo provision --recreate`"
        )
    if quotas.rescanning:
        return f"wait for it: as root on the daemon's host, `btrfs quota rescan -W {folder}`"
    return f"as root on the daemon's host: `btrfs quota rescan -w {folder}`"


class Limits:
    """Sees to it that the limits on some pools hold. Used by several threads at once.

    Args:
        patience: Seconds to wait for btrfs to have counted again.
    """

    def __init__(self, host: Host, pools: Iterable[Pool], progress: Progress, patience: float) -> None:
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

    def _mend(self, pool: Pool, quotas: Quotas) -> Quotas:
        began = clocks.monotonic()
        while not quotas.hold and clocks.monotonic() - began < self._patience:
            cleaning = clocks.monotonic() - began < CLEANING and not quotas.rescanning and self._host.uncleaned(pool)
            if not quotas.rescanning and not cleaning and not self._host.rescan(pool):
                break
            clocks.sleep(POLL)  # a poll with a deadline: btrfs announces nothing
            quotas = self._host.quotas(pool) or quotas
        return quotas
