"""Records how full pools and containers are while a session runs, in a thread of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from pytest_stagegbo import clocks
from pytest_stagegbo.session_report.events import Room, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_stagegbo.session_report.events import Event

__all__ = ["DiskCurves"]

LOOK = 0.5
"""Seconds between two looks at what the disk guard has seen, which asks nobody."""
ASK = 5.0
"""Seconds between two questions to the daemon: 5 to 10 ms of its time for each container."""
CHANGE = 2**20
"""Bytes that are worth a line."""
STILL = 30.0
"""Seconds after which there is a line even if nothing has changed."""


class _Space(Protocol):
    @property
    def where(self) -> str: ...
    @property
    def free(self) -> int: ...
    @property
    def floor(self) -> int: ...


class _Guard(Protocol):
    """The disk guard, as far as it is asked here."""

    @property
    def spaces(self) -> Sequence[_Space]: ...

    def usage(self) -> Mapping[str, int]: ...


class DiskCurves:
    """Records one stage's curves until it is closed.

    Args:
        containers: Whether to record what each container uses: one process of those that share a stage does.
    """

    def __init__(self, guard: _Guard, write: Callable[[Event], None], project: str, *, containers: bool) -> None:
        self._guard = guard
        self._write = write
        self._project = project
        self._containers = containers
        self._last: dict[str, tuple[float, int]] = {}
        self._asked = float("-inf")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stagegbo disk curves", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take a last look, and record no more."""
        if not self._closing.is_set():
            self._closing.set()
            self._thread.join(ASK)
            self.look(last=True)

    def _run(self) -> None:
        while True:
            self.look()
            if self._closing.wait(LOOK):
                return

    def look(self, *, last: bool = False) -> None:
        """Record what has changed. A guard that is at work comes first, so nothing is asked beside it."""
        now = clocks.monotonic()
        spaces = list(self._guard.spaces)
        for space in spaces:
            if self._is_new(space.where, now, space.free) or last:
                self._write(Room(round(now, 3), space.where, space.free, space.floor))
        if not self._containers or (now - self._asked < ASK and not last) or any(s.free < s.floor for s in spaces):
            return
        self._asked = now
        used = dict(self._guard.usage())
        new = [self._is_new(f"{self._project} {name}", now, size) for name, size in used.items()]
        if used and (any(new) or last):
            self._write(Usage(round(now, 3), self._project, used))

    def _is_new(self, what: str, now: float, size: int) -> bool:
        at, known = self._last.get(what, (float("-inf"), 0))
        if abs(size - known) < CHANGE and now - at < STILL:
            return False
        self._last[what] = (now, size)
        return True
