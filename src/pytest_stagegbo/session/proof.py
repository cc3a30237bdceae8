"""Ends a run: proves every stage that one of its processes used, and removes the run's notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.session.outcome import was_used
from pytest_stagegbo.session.session import StageSession
from pytest_stagegbo.session.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.slots.assignment import SlotAssignment
    from pytest_stagegbo.slots.fleet import Fleet

__all__ = ["forget", "prove"]


def prove(own: StageSession, assignment: SlotAssignment | None, run: str, lost: Iterable[str] = ()) -> list[str]:
    """Prove the isolation of every stage of the run, and return what is broken: a text for each stage.

    Stages are proven one after the other, because two checks of disk limits at the same time would need the room of
    both.

    Args:
        own: Of the process that ends last.
        assignment: Its place among the slots; None where there are none.
        run: Identifies the run; the same in all its processes.
        lost: Workers that ended without a proof of what they did to production.
    """
    from pytest_stagegbo.verify import verify  # most sessions only forget

    engines = {0: own.engine} if assignment is None else assignment.engines()
    used = {
        number: engine
        for number, engine in engines.items()
        if was_used(engine, run) or (engine is own.engine and own.began)
    }
    broken = []
    for number, engine in sorted(used.items()):
        try:
            own.verify() if engine is own.engine else verify(engine).check()
        except StageGboError as error:
            broken.append(error.text if assignment is None else f"slot {number}: {error.text}")
    if used and assignment is not None:
        try:
            _prove_golden(assignment.fleet)
        except StageGboError as error:
            broken.append(f"golden copy: {error.text}")
    if used:
        broken += [f"production.events: {each} died, and what it did to production is not proven" for each in lost]
    return broken


def forget(own: StageSession, assignment: SlotAssignment | None, run: str) -> None:
    """Remove what a run noted about its stages. For its last process."""
    own.forget(run)
    for engine in assignment.engines().values() if assignment is not None else ():
        if engine is not own.engine:
            StageSession(engine, run, Summary()).forget(run)


def _prove_golden(fleet: Fleet) -> None:
    from pytest_stagegbo.verify import AT_REST, chosen, verify

    if fleet.has_golden():
        verify(fleet.golden.engine, None if fleet.golden_runs() else chosen(AT_REST)).check()
