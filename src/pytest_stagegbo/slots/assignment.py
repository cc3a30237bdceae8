"""Assigns a slot to a pytest process, and counts once a run how many slots there are."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo import notes
from pytest_stagegbo.locks import FileLock
from pytest_stagegbo.slots.capacity import Capacity
from pytest_stagegbo.slots.fleet import Fleet
from pytest_stagegbo.slots.lease import Lease, order, take

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Settings

__all__ = ["SlotAssignment", "assignment"]


class SlotAssignment(Struct, frozen=True):
    """The slot that one process uses.

    A process that found every slot taken has no lease. It shares the slot of its place with who has it, test by test,
    as workers share one stage: the locks of its containers keep tests out of each other's resets.
    """

    fleet: Fleet
    engine: StageEngine
    number: int
    capacity: Capacity
    lease: Lease | None

    def engines(self) -> dict[int, StageEngine]:
        """The engine of every slot of the run, this process's own first."""
        others = [number for number in self.in_order(self.number) if number != self.number]
        return {self.number: self.engine, **{number: self.fleet.engine(number) for number in others}}

    def in_order(self, first: int) -> list[int]:
        """The slots of the run, that of number `first` before the others."""
        numbers = self.capacity.numbers
        return [numbers[place] for place in order(len(numbers), numbers.index(first))]

    def lines(self) -> list[str]:
        """Return lines about the slots for the head of the session."""
        count = self.capacity.count
        return [f"stage-gbo: {count} {'slot' if count == 1 else 'slots'}; " + "; ".join(self.capacity.explanation)]


def assignment(
    settings: Settings,
    connection: Connection,
    run: str,
    index: int,
    workers: int,
    *,
    lease: bool,
    progress: Progress | None = None,
) -> SlotAssignment:
    """Find this process's slot. It does not provision the slot.

    Args:
        run: Identifies the run; the same in all its processes.
        index: Of this worker, from 0.
        workers: How many the run has.
        lease: False for a process that runs no tests.

    Raises:
        StageGboError: the slots that are asked for can't be had; with `recreate`, production could not be copied.
    """
    fleet = Fleet(settings, connection, progress=progress)
    lock = fleet.engine(0).lock()
    lock.make_folder()
    noted = lock.folder / f"run-{run}.slots"
    with FileLock(noted.with_suffix(".slots-lock")):
        found = _read(noted)
        if found is None:
            found = fleet.capacity(workers)
            fleet.refuse_others(found.numbers)
            if lease and settings.pytest.provision == "recreate" and not settings.storage.own:
                fleet.golden.make(recreate=True)
            if lease:
                _write(noted, found)
    fleet.places = found.members
    numbers = [found.numbers[place] for place in order(found.count, index)]
    held = take(fleet, numbers, f"slot of worker {index} of run {run[:8]}") if lease else None
    number = held.number if held is not None else numbers[0]
    return SlotAssignment(fleet, fleet.engine(number), number, found, held)


def _read(path: Path) -> Capacity | None:
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        entry = json.loads(notes.read(path))
        members = {int(number): str(member) for number, member in entry["members"].items()}
        return Capacity(int(entry["count"]), tuple(entry["arithmetic"]), members)
    return None


def _write(path: Path, found: Capacity) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    entry = {"count": found.count, "arithmetic": found.explanation, "members": found.members}
    notes.write(temporary, json.dumps(entry))
    temporary.replace(path)
