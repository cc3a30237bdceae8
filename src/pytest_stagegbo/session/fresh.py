"""Clean stages that tests of one process have to themselves: slots of the pool, their disks watched."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.slots.pool import Pool
from pytest_stagegbo.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.session.guard import DiskGuard
    from pytest_stagegbo.session.session import StageSession
    from pytest_stagegbo.session.summary import Summary
    from pytest_stagegbo.slots.pool import Pooled
    from pytest_stagegbo.slots.seat import Seat
    from pytest_stagegbo.stage import Credentials

__all__ = ["FreshStages"]


class FreshStages:
    """What `stage_fresh` is taken from.

    Args:
        own: This process's session.
        seat: Its place among the slots; None where there are none.
        workers: How many processes run tests.
        session_of: Makes the session of another slot.
        watch: Begins to watch a stage's disk. Raises as `DiskGuard.check` does.
    """

    def __init__(
        self,
        own: StageSession,
        seat: Seat | None,
        workers: int,
        session_of: Callable[[StageEngine], StageSession],
        watch: Callable[[StageEngine], DiskGuard],
        summary: Summary,
    ) -> None:
        self._own = own
        self._session_of = session_of
        self._watch = watch
        self._summary = summary
        self._stages: dict[int, Stage] = {}
        self._guards: dict[int, DiskGuard] = {}
        engines, number, places = {0: own.engine}, None, frozenset[int]()
        if seat is not None:
            engines = seat.engines()
            if seat.lease is not None:
                number = seat.number
                places = frozenset(range(workers)) - {number}
        self._pool = Pool(engines, number, self._ensure, own.engine.settings.timeouts.lock, places)

    def _ensure(self, engine: StageEngine) -> None:
        session = self._own if engine is self._own.engine else self._session_of(engine)
        session.ensure()
        session.check()

    def prepare(self, *, others_only: bool) -> None:
        """Begin to make them ready, behind the caller; see `Pool.prepare`."""
        self._pool.prepare(others_only=others_only)

    @contextlib.contextmanager
    def taken(self, test: str, credentials: Credentials | None, *, others_only: bool) -> Iterator[Stage]:
        """A clean stage that nobody else uses until the block ends.

        Args:
            others_only: Leave out this process's own, which the test uses in another way.

        Raises:
            StageGboError: none can be had.
        """
        slot = self._take(test, others_only=others_only)
        try:
            if slot.number not in self._stages:

                def reset(names: tuple[str, ...]) -> None:
                    slot.engine.reset(names, held=True)

                self._stages[slot.number] = Stage(slot.engine, credentials=credentials, reset=reset)
            yield self._stages[slot.number]
        finally:
            self._pool.give_back(slot)

    def _take(self, test: str, *, others_only: bool) -> Pooled:
        began = clocks.monotonic()
        slot = self._pool.take(test, others_only=others_only)
        self._summary.fresh.append(clocks.monotonic() - began)
        try:
            if slot.number not in self._guards:
                self._guards[slot.number] = self._watch(slot.engine)
        except BaseException:
            self._pool.give_back(slot)
            raise
        return slot

    def close(self) -> None:
        self._pool.close()
        for guard in self._guards.values():
            guard.close()
