"""Leases slots to processes. A lease is a lock of the kernel, so it ends with its process, however that ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.errors import LockTimeout
from pytest_stagegbo.locks import SLOT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.locks import StageLock
    from pytest_stagegbo.slots.fleet import Fleet

__all__ = ["Lease", "order", "take", "take_free"]

PATIENCE = 0.05
"""Seconds. A lease is held for a whole session, or for a test: who finds it taken takes another."""


class Lease(Struct, frozen=True):
    """A slot that only this process uses, until `release` or until the process ends."""

    number: int
    lock: StageLock

    def release(self) -> None:
        self.lock.release()


def take(fleet: Fleet, numbers: Iterable[int], doing: str) -> Lease | None:
    """Lease the first of these slots that nobody has; None when all are taken."""
    for number in numbers:
        lock = fleet.engine(number).lock(PATIENCE)
        try:
            lock.acquire(doing, exclusive=[SLOT])
        except LockTimeout:
            continue
        return Lease(number, lock)
    return None


def take_free(fleet: Fleet, doing: str) -> Lease | None:
    """Lease a slot: one that exists and that nobody uses, or a further one if it fits, or one that is used without a
    lease. None when all are leased.

    Raises:
        StageGboError: a further slot can't have its names.
    """
    there = fleet.usable(max(1, fleet.count_there()))
    idle = [number for number in there if not fleet.engine(number).lock().holders()]
    found = take(fleet, idle, doing)
    if found is None:
        further = [number for number in fleet.capacity(len(there) + 1).numbers if number not in there][:1]
        fleet.refuse_others(further)
        found = take(fleet, further, doing)
    return found or take(fleet, there, doing)


def order(count: int, index: int) -> list[int]:
    """Return the slots in the order in which worker `index` tries them: that of its own number first."""
    return [(index + step) % count for step in range(count)]
