"""What became of a run's provisioning of a stage, for its other processes: a note beside the stage's locks."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks, errors, notes
from pytest_stagegbo.errors import StageGboError, StageMissing
from pytest_stagegbo.locks import FileLock

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine

__all__ = ["Outcome", "forget", "reminder", "was_used"]

OLDEST_SECONDS = 24 * 3600
"""Notes of runs that were killed are removed after this time."""


class Outcome:
    """The note of one run about one stage.

    Args:
        folder: Of the stage's locks.
        run: Identifies the run; the same in all its processes.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._path = folder / f"run-{run}.outcome"

    def exists(self) -> bool:
        """Whether any process of the run had the stage provisioned, or tried to."""
        return self._path.exists()

    def lock(self) -> FileLock:
        """Held by the process that provisions, while the run's others wait."""
        return FileLock(self._path.with_suffix(".outcome-lock"))

    def write(self, failure: StageGboError | None) -> None:
        """Note that provisioning failed; None: that it succeeded."""
        entry = {}
        if failure is not None:
            fields = {"message": failure.message, "seen": failure.seen, "remedy": failure.remedy}
            entry = {"type": type(failure).__name__, **fields}
        temporary = self._path.with_suffix(f".{os.getpid()}")
        notes.write(temporary, json.dumps(entry))
        temporary.replace(self._path)

    def read(self) -> StageGboError | None:
        """What `write` noted. Raises `OSError` when there is no note."""
        entry = json.loads(notes.read(self._path))
        if not entry:
            return None
        kind: type[StageGboError] = getattr(errors, entry["type"], StageGboError)
        return kind(entry["message"], seen=entry["seen"], remedy=entry["remedy"])


def was_used(engine: StageEngine, run: str) -> bool:
    """Whether any process of a run, dead or alive, had this stage provisioned, or tried to."""
    return Outcome(engine.lock().folder, run).exists()


def forget(folder: Path, run: str) -> None:
    """Remove what a run, and killed ones of yesterday, noted in the folder of a stage's locks."""
    with contextlib.suppress(OSError):
        for path in folder.glob("run-*"):
            mine = path.name.startswith(f"run-{run}.")
            if mine or clocks.now() - path.stat().st_mtime > OLDEST_SECONDS:
                path.unlink()


def reminder(failure: StageGboError) -> StageMissing:
    """Return the short error for tests that need the stage after the first of them got the whole error."""
    return StageMissing(
        f"the stage could not be provisioned: {failure.message}", remedy="see the first test that says so"
    )
