"""Keeps clean stages in stock. A test takes one at once, and it is reset in the background when the test ends.

Each slot is handed out to one test, and is proven clean at that moment. A note marks it as clean beforehand: it is
written after a verified reset of the whole slot, and removed before the slot is used. So a process that is killed with
a slot leaves it without a note, and the slot is reset before its next use.
"""

from __future__ import annotations

import contextlib
import json
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import LockTimeout, NotHeld, StageGboError
from pytest_stagegbo.locks import SLOT, STAGE
from pytest_stagegbo.workers import GRACE, LOOK, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.locks import StageLock
    from pytest_stagegbo.settings import Settings

__all__ = ["Pool", "Pooled", "identity", "to_clean"]

BEHIND = 2
"""Slots of one process that are reset at once: one keeps about a core busy."""
PAUSE = 0.02
"""Seconds between two looks for a slot that another process has."""
END_SECONDS = 10.0
"""How long the end of a session waits for resets. What is not clean by then, the next session resets."""


@dataclass(eq=False, slots=True)
class Pooled:
    """A slot as one process knows it."""

    number: int
    engine: StageEngine
    lease: StageLock | None
    """None: it is this process's for the whole session."""
    use: StageLock
    mine: threading.Lock = field(default_factory=threading.Lock)
    """Held by the thread of this process that has the slot in hand."""
    checked: bool = False
    """Whether it was provisioned in this session."""
    failure: StageGboError | None = None
    """Why it can't be had."""
    test: str = ""
    """Who uses it, or used it last."""


class Pool:
    """The slots that tests of one process may have to themselves.

    Args:
        engines: By number, that of the stage which this process's other tests share first.
        own: The slot that this process has leased for the session; None: none.
        ensure: Provisions a slot; raises `StageGboError`.
        timeout: Seconds to wait for a clean slot.
        places: Slots that other workers of the run have, or will have in a moment. One of them is taken when there is
            no other: a worker that finds its place taken would share a slot from then on.
        check: Raises `StageGboError` if a slot that is nobody's at this moment is not to be touched.
    """

    def __init__(
        self,
        engines: Mapping[int, StageEngine],
        own: int | None,
        ensure: Callable[[StageEngine], None],
        timeout: float,
        places: Collection[int] = (),
        *,
        check: Callable[[StageEngine], None] = lambda _: None,
    ) -> None:
        self._slots = [
            Pooled(number, engine, None if number == own else engine.lock(0), engine.lock(0))
            for number, engine in engines.items()
        ]
        self._ensure = ensure
        self._timeout = timeout
        self._check = check
        self._places = frozenset(places)
        self._threads: Workers | None = None
        self._behind: set[Future[None]] = set()
        self.cold = 0
        """How often no slot was clean in time."""

    def prepare(self, *, others_only: bool = False) -> None:
        """Begin to make the slots ready, in the background.

        Args:
            others_only: Leave the slot alone that this process's other tests share.
        """
        for slot in self._slots[1:] if others_only else self._slots:
            if slot.number not in self._places:
                self._later(self._make_ready, slot)

    def take(self, test: str, *, others_only: bool = False) -> Pooled:
        """Take a clean slot that nobody else has. The caller gives it back with `give_back` or `keep`.

        Args:
            others_only: Leave out this process's own slot, which the test uses in another way.

        Raises:
            NotHeld: there is no other slot.
            LockTimeout: others did not give one back in time.
            StageGboError: no slot can be had, and why the first can't.
        """
        slots = self._slots[1:] if others_only else self._slots
        if not slots:
            raise NotHeld(
                "the stage that this test uses is the only one, so there is no fresh one beside it",
                remedy="use stage_fresh alone in it, or more slots: --stage-slots=2",
            )
        deadline = clocks.monotonic() + self._timeout
        while True:
            usable = [slot for slot in slots if slot.failure is None]
            usable = [slot for slot in usable if slot.number not in self._places] or usable
            for slot in usable:
                if self._obtain(slot, test, noted_only=True):
                    return slot
            busy = {each for each in self._behind if not each.done()}
            if busy:
                wait(busy, timeout=PAUSE)
            else:
                if not usable:
                    assert slots[0].failure is not None
                    raise slots[0].failure
                for slot in usable:
                    if self._obtain(slot, test, noted_only=False):
                        self.cold += 1
                        return slot
                clocks.sleep(PAUSE)
            if clocks.monotonic() > deadline:
                holders = "; ".join(f"slot {slot.number}: {slot.use.holder()}" for slot in slots)
                raise LockTimeout(
                    f"no clean slot was free within {self._timeout:.0f} s",
                    seen=holders,
                    remedy="use more slots than workers (--stage-slots), so that clean ones are in stock",
                )

    def give_back(self, slot: Pooled) -> None:
        """Reset a slot in the background, so that the next test can have it."""
        slot.use.for_any_thread()
        if slot.lease is not None:
            slot.lease.for_any_thread()
        self._later(self._recycle, slot)

    def keep(self, slot: Pooled) -> None:
        """Release a slot as it is. This process does not take it again."""
        slot.failure = NotHeld(
            f"the stage is kept as {slot.test} left it", remedy="run pytest without --stage-keep to run all tests"
        )
        slot.engine.close()
        _release(slot)

    def settle(self, timeout: float) -> bool:
        """Wait until all resets in the background are done. Return whether they were done within `timeout` seconds."""
        deadline = clocks.monotonic() + timeout
        while wait(self._behind, timeout=max(0.0, min(LOOK, deadline - clocks.monotonic()))).not_done:
            if clocks.monotonic() >= deadline:
                return False
        return True

    def close(self) -> None:
        """Wait some seconds for resets, then release everything. Resets that still run write nothing to a stage any
        more."""
        if self._threads is not None:
            if not self.settle(END_SECONDS - GRACE):
                self._threads.interrupt()
                self._threads.settle(GRACE)
            self._threads.shutdown(wait=False)
            self._threads = None
        for slot in self._slots:
            if slot.mine.acquire(blocking=False):
                slot.engine.close()
                slot.mine.release()

    @property
    def failures(self) -> dict[int, StageGboError]:
        """By slot, the error because of which it could not be made clean."""
        return {slot.number: slot.failure for slot in self._slots if slot.failure is not None}

    # -- behind the tests

    def _later(self, call: Callable[[Pooled], None], slot: Pooled) -> None:
        if self._threads is None:
            self._threads = Workers(BEHIND, "stagegbo pool")
        self._behind = {each for each in self._behind if not each.done()}
        self._behind.add(self._threads.submit(call, slot))

    def _make_ready(self, slot: Pooled) -> None:
        if self._obtain(slot, "making the slot ready", noted_only=False):
            self._put_down(slot, clean=True)

    def _recycle(self, slot: Pooled) -> None:
        clean = False
        try:
            _reset(slot, to_clean(slot.engine.settings))
            clean = True
        except StageGboError as error:
            slot.failure = error
        finally:
            self._put_down(slot, clean=clean)

    # -- one slot

    def _obtain(self, slot: Pooled, test: str, *, noted_only: bool) -> bool:
        """Try to get the slot for this process and prove it clean. Return whether that worked.

        Args:
            noted_only: Don't take a slot without a note that it is clean, because a reset takes time.
        """
        if slot.failure is not None or (noted_only and not slot.checked) or not slot.mine.acquire(blocking=False):
            return False
        obtained = False
        try:
            if slot.lease is not None:
                slot.lease.acquire(test, exclusive=[SLOT])
            if not slot.checked:
                self._ensure(slot.engine)
                slot.checked = True
            slot.use.acquire(test, shared=[STAGE], exclusive=slot.engine.settings.containers, keep_note=True)
            self._check(slot.engine)
            noted = slot.use.clean_note()
            if noted and noted == _identity(slot.engine):
                slot.use.mark_dirty()
                _reset(slot, [name for name, each in slot.engine.settings.containers.items() if each.wipe])
            elif noted_only:
                return False
            else:
                slot.use.mark_dirty()
                _reset(slot, to_clean(slot.engine.settings))
            slot.test, obtained = test, True
        except LockTimeout:
            pass  # somebody else's
        except StageGboError as error:
            slot.failure = error
        finally:
            if not obtained:
                _release(slot)
        return obtained

    def _put_down(self, slot: Pooled, *, clean: bool) -> None:
        with contextlib.suppress(StageGboError):  # without a note it is reset once more
            if clean:
                slot.use.note_clean(_identity(slot.engine))
        _release(slot)


def to_clean(settings: Settings) -> list[str]:
    """Return the containers that have to be reset to make a used slot clean. Pure."""
    if settings.slots.clean:
        wiped = [name for name, container in settings.containers.items() if container.wipe]
        named = [name for word in settings.slots.clean for name in (wiped if word == "all" else [word])]
        return list(dict.fromkeys(named))
    return [
        name
        for name, each in settings.containers.items()
        if each.wipe or (each.data and each.reset == "hot" and each.resettable)
    ]


def identity(clones: Iterable[Instance]) -> str:
    """A value that changes once any of the running clones is replaced or restarted. Empty: not all are usable. Pure."""
    found = []
    for clone in clones:
        if not (clone.is_running and clone.config.get(marks.STATE) == marks.PREPARED):
            return ""
        found.append([clone.name, clone.created_at, clone.last_used_at, clone.config.get(marks.GENERATION, "")])
    return json.dumps(sorted(found))


def _identity(engine: StageEngine) -> str:
    clones = engine.reader.instances(engine.settings.project)
    if not engine.settings.containers.keys() <= clones.keys():
        return ""
    return identity(clones[name] for name in engine.settings.containers)


def _reset(slot: Pooled, names: list[str]) -> None:
    if names:
        with slot.use.changing(names):
            slot.engine.reset(names, already_locked=True, left_by=dict.fromkeys(names, slot.test))


def _release(slot: Pooled) -> None:
    slot.use.release()
    if slot.lease is not None:
        slot.lease.release()
    slot.mine.release()
