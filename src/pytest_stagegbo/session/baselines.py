"""The baseline that the test which runs begins with, and those that a run of pytest saves for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.errors import BaselineMissing, NotHeld

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine

__all__ = ["SessionBaselines"]


class SessionBaselines:
    """Of one process of a run and its stage.

    Args:
        run: Identifies the run. What it saves is for its own tests only, and goes when it ends.
        folder: Of the stage's locks.
        held: Tells which containers the test that runs keeps to itself.
    """

    def __init__(self, engine: StageEngine, run: str, folder: Path, held: Callable[[], Collection[str]]) -> None:
        self._engine = engine
        self._run = run
        self._held = held
        self._noted = folder / f"run-{run}.baselines"
        """There if this run has saved a baseline in this stage."""
        self._wanted = ""
        self._missing: BaselineMissing | None = None

    def begin(self, name: str) -> None:
        """Have resets go to a baseline from now on; empty: to the plain clean state."""
        self._wanted, self._missing = name, None

    def reset(self, names: Sequence[str], left_by: Mapping[str, str]) -> None:
        """Reset containers whose locks are held.

        A baseline that is not there may be saved by a fixture of the test, which finds the plain clean state: `check`
        says whether it was.
        """
        engine = self._engine
        if self._wanted and self._missing is None:
            engine.baselines.run = self._run
            try:
                engine.reset(names, already_locked=True, left_by=left_by, baseline=self._wanted)
            except BaselineMissing as error:  # said before anything was done
                self._missing = error
            else:
                return
        engine.reset(names, already_locked=True, left_by=left_by)

    def check(self) -> None:
        """Raise `BaselineMissing` if the test that runs did not begin with its baseline, and has not saved it."""
        if self._missing is not None:
            raise self._missing

    def save(self, name: str) -> None:
        """Keep what the containers hold that a baseline may have.

        Raises:
            NotHeld: the test that runs does not keep all of them to itself.
            StageGboError: it could not be done.
        """
        from pytest_stagegbo.plan.baselines import chosen

        held = self._held()
        names = [each.name for each in chosen(self._engine.settings, ())]
        if not set(names).issubset(held):
            raise NotHeld(
                f"this test does not keep {', '.join(names)} to itself, so it may not save their state",
                seen="it keeps " + (", ".join(sorted(held)) or "nothing"),
                remedy=f'mark it: @pytest.mark.stage_baseline("{name}")',
            )
        self._noted.parent.mkdir(exist_ok=True, mode=0o770)
        self._noted.touch(mode=0o660)
        self._engine.baselines.save(name, replace=True, run=self._run, already_locked=True)
        if name == self._wanted:
            self._missing = None

    def needs(self, name: str) -> bool:
        """Whether this stage has no baseline of that name that this run may use."""
        from pytest_stagegbo.plan.baselines import usable

        try:
            usable(self._engine.baselines.found(), name, self._run)
        except BaselineMissing:
            return True
        return False

    def forget(self) -> None:
        """Delete what this run has saved for itself. For its last process."""
        if self._noted.exists():
            self._engine.baselines.delete_of(self._run)
