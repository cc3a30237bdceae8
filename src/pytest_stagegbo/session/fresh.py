"""Gives tests whole clean stages, one test a stage: slots of the pool, whose disks are watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo import clocks
from pytest_stagegbo.realfiles import real_files
from pytest_stagegbo.slots.pool import Pool
from pytest_stagegbo.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.credentials import Credentials
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.session.guard import DiskGuard
    from pytest_stagegbo.session.session import StageSession
    from pytest_stagegbo.session.summary import Summary
    from pytest_stagegbo.slots.assignment import SlotAssignment
    from pytest_stagegbo.slots.pool import Pooled

__all__ = ["Fresh", "FreshStages"]


class Fresh(Struct, frozen=True):
    """A stage that one test has to itself."""

    slot: Pooled
    stage: Stage


class FreshStages:
    """The clean stages that the fixture `stage_fresh` gives to tests of this process.

    Args:
        own: This process's session.
        assignment: Its place among the slots; None where there are none.
        workers: How many processes run tests.
        session_of: Makes the session of another slot.
        watch: Begins to watch a stage's disk. Raises as `DiskGuard.check` does.
    """

    def __init__(
        self,
        own: StageSession,
        assignment: SlotAssignment | None,
        workers: int,
        session_of: Callable[[StageEngine], StageSession],
        watch: Callable[[StageEngine], DiskGuard],
        summary: Summary,
    ) -> None:
        self._own = own
        self._session_of = session_of
        self._monitor = watch
        self._summary = summary
        self._sessions = {own.engine.settings.project: own}
        self._stages: dict[int, Stage] = {}
        self._guards: dict[int, DiskGuard] = {}
        engines, number, places = {0: own.engine}, None, frozenset[int]()
        if assignment is not None:
            engines = assignment.engines()
            if assignment.lease is not None:
                number = assignment.number
                places = frozenset(assignment.capacity.numbers[:workers]) - {number}
        patience = own.engine.settings.timeouts.lock
        self._pool = Pool(engines, number, self._ensure, patience, places, check=self._check_kept)

    def _session(self, engine: StageEngine) -> StageSession:
        """The session of one slot, created once. Two threads never use the same slot at a time."""
        project = engine.settings.project
        if project not in self._sessions:
            self._sessions[project] = self._session_of(engine)
        return self._sessions[project]

    def _ensure(self, engine: StageEngine) -> None:
        session = self._session(engine)
        session.ensure()
        session.check()

    def _check_kept(self, engine: StageEngine) -> None:
        self._session(engine).check_kept()

    @real_files()
    def prepare(self, *, others_only: bool) -> None:
        """Begin to make them ready, behind the caller; see `Pool.prepare`."""
        self._pool.prepare(others_only=others_only)

    @real_files()
    def take(self, test: str, credentials: Credentials | None, *, others_only: bool) -> Fresh:
        """A clean stage that nobody else uses until it is given back. Or `keep` it.

        Args:
            others_only: Leave out this process's own, which the test uses in another way.

        Raises:
            StageGboError: none can be had.
        """
        began = clocks.monotonic()
        slot = self._pool.take(test, others_only=others_only)
        self._summary.fresh.append(clocks.monotonic() - began)
        try:
            if slot.number not in self._guards:
                self._guards[slot.number] = self._monitor(slot.engine)
        except BaseException:
            self._pool.give_back(slot)
            raise
        if slot.number not in self._stages:

            def reset(names: tuple[str, ...]) -> None:
                slot.engine.reset(names, already_locked=True)

            self._stages[slot.number] = Stage(slot.engine, credentials=credentials, reset=reset)
        return Fresh(slot, self._stages[slot.number])

    @real_files()
    def give_back(self, fresh: Fresh) -> None:
        """Have what a test left reset behind the next test."""
        self._pool.give_back(fresh.slot)

    @real_files()
    def keep(self, fresh: Fresh, test: str) -> None:
        """Have no test of this run get a stage any more, which is as a failed test left it; see `let_go`."""
        self._session(fresh.slot.engine).keep(test)

    @real_files()
    def let_go(self, fresh: Fresh) -> None:
        """Let go of a stage as it is, without a reset."""
        self._pool.keep(fresh.slot)

    @real_files()
    def close(self) -> None:
        """Wait a while for resets, and let go of the slots."""
        self._pool.close()
        for guard in self._guards.values():
            guard.close()

    def verify_events(self) -> None:
        """Prove that nothing happened to production since the first of the stages was provisioned, and listen no
        more. Raises `IsolationBroken`."""
        others = [session for session in self._sessions.values() if session is not self._own]
        try:
            for session in others:
                session.verify_events()
        finally:
            for session in others:
                session.stop_listening()
