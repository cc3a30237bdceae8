"""Makes room on a pool by deleting capsules of the stage, the oldest first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.facts.space import Space

__all__ = ["RESERVE", "CapsuleRoom"]

RESERVE = 2**30
"""Bytes above the floor at which capsules begin to go."""
FREEING = 5.0
"""Seconds for which room is waited for that a deleted capsule had."""
PAUSE = 0.1
"""Seconds between two looks for it."""


class CapsuleRoom:
    """Deletes capsules for a disk guard.

    Args:
        drop: Deletes the oldest capsule; whether there was one.
        closing: Is set when the guard ends.
        remember: Is given an error of `drop`. What is missing then is room, which the guard sees.
    """

    def __init__(
        self, drop: Callable[[], bool], closing: threading.Event, remember: Callable[[Exception], None]
    ) -> None:
        self._drop = drop
        self._closing = closing
        self._remember = remember
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def make(self, full: Space, look: Callable[[], Space | None]) -> Space | None:
        """The tightest place once as many capsules are deleted as it takes, or all of them.

        Args:
            full: The tightest place now, which is below its floor.
            look: Returns the tightest place.
        """
        found: Space | None = full
        while self._drop_one():
            for _ in range(round(FREEING / PAUSE)):
                if (found := look()) is None or found.margin >= 0:
                    return found
                clocks.sleep(PAUSE)  # a poll with a deadline: nobody tells when a file system has freed what it had
        return found

    def make_soon(self) -> None:
        """Delete one capsule, while the caller goes on. The next call does nothing until that room can be free."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._drop_and_wait, name="stagegbo capsules", daemon=True)
            self._thread.start()

    def _drop_and_wait(self) -> None:
        if self._drop_one():
            self._closing.wait(FREEING)

    def _drop_one(self) -> bool:
        with self._turn:
            try:
                return self._drop()
            except Exception as error:
                self._remember(error)
                return False
