"""Says when something takes longer than it should, at no cost for what does not."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from pytest_stagegbo import clocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["StallWatch"]

T = TypeVar("T")

KEPT = 5.0
"""Seconds for which the thread waits for the next thing to watch. To start one takes half a millisecond."""


class StallWatch(Generic[T]):
    """Watches one thing at a time, in a thread that serves many of them and ends by itself.

    Args:
        seconds: After which something takes too long.
        call: Called with what does so, once, in that thread.
    """

    def __init__(self, seconds: float, call: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._call = call
        self._lock = threading.Lock()
        self._watched: tuple[float, T] | None = None
        """When it takes too long, and what."""
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watching(self, what: T) -> Iterator[None]:
        """Watch `what` while the block runs."""
        with self._lock:
            self._watched = (clocks.monotonic() + self._seconds, what)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stagegbo stall watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            self._watched = None

    def _run(self) -> None:
        told, until = None, clocks.monotonic() + KEPT
        while True:
            clocks.sleep(self._seconds / 4)  # a look costs less than to be woken for each thing that ends in time
            with self._lock:
                watched, now = self._watched, clocks.monotonic()
                if watched is None and now > until:
                    self._thread = None
                    return
            if watched is not None:
                until = now + KEPT
                if watched is not told and now >= watched[0]:
                    told = watched
                    self._call(watched[1])
