"""Shows on pytest's terminal what provisioning does. Without it, people would take minutes of silence for a hang."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from pytest_stagegbo.progress import Relay

__all__ = ["Live", "watched"]

QUIET = 0.7
"""Seconds of work of which nothing is shown: a stage that is as it should be takes less."""
PERIOD = 0.2
"""Seconds between two drawings of a live line."""


class Live:
    """A `Progress` that shows how much is done, what is under way and for how long.

    Args:
        write: Prints a line.
        draw: Replaces the line that was drawn last; None where lines can't be replaced: then there is one line when
            work of a new kind begins.
    """

    def __init__(self, write: Callable[[str], None], draw: Callable[[str], None] | None) -> None:
        self._write, self._draw = write, draw
        self._began = clocks.monotonic()
        self._expected = self._done = 0
        self._under_way: dict[str, str] = {}
        self._kinds: set[str] = set()
        self._drawn = False
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="stagegbo live line", daemon=True)

    def __enter__(self) -> Live:
        if self._draw is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._draw is not None:
            self._thread.join(PERIOD * 5)
            if self._drawn:
                self._draw("")

    def expect(self, count: int) -> None:
        with self._lock:
            self._expected += count

    def begin(self, key: str, text: str) -> None:
        kind = key.rpartition(": ")[2].partition(":")[0]
        with self._lock:
            self._under_way[key] = text
            new, self._kinds = kind not in self._kinds, self._kinds | {kind}
            line = self._line(text)
        if self._draw is None and new and self._is_long():
            self._write(line)

    def end(self, key: str, error: BaseException | None = None) -> None:
        with self._lock:
            self._under_way.pop(key, None)
            self._done += error is None

    def note(self, text: str) -> None:
        if self._draw is not None and self._drawn:
            self._draw("")
        self._write(f"stage-gbo: {text}")

    def _is_long(self) -> bool:
        return clocks.monotonic() - self._began >= QUIET

    def _line(self, doing: str) -> str:
        of = f" of {self._expected}" if self._expected else ""
        return f"stage-gbo: {clocks.monotonic() - self._began:.0f} s, {self._done}{of} steps done; {doing}"

    def _tick(self) -> None:
        while not self._over.wait(PERIOD):
            if self._is_long() and self._draw is not None:
                with self._lock:
                    line = self._line(", ".join(self._under_way.values()))
                self._drawn = True
                self._draw(line)


@contextlib.contextmanager
def watched(config: pytest.Config, relay: Relay, *, is_worker: bool) -> Iterator[None]:
    """Show what goes through `relay` while the block runs, unless pytest is quiet."""
    if config.get_verbosity() < 0:
        yield
        return
    with _terminal(config, is_worker) as (write, draw), Live(write, draw) as relay.target:
        try:
            yield
        finally:
            relay.target = Silent()


@contextlib.contextmanager
def _terminal(
    config: pytest.Config, is_worker: bool
) -> Iterator[tuple[Callable[[str], None], Callable[[str], None] | None]]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not is_worker and reporter is not None:
        live = bool(getattr(reporter, "isatty", False))
        yield reporter.write_line, (lambda line: _redraw(reporter, line)) if live else None
        return
    descriptor = _standard_error(config)
    if descriptor is None:
        yield (lambda _: None), None
        return
    try:
        yield (lambda line: _say(descriptor, line)), None
    finally:
        os.close(descriptor)


def _redraw(reporter: pytest.TerminalReporter, line: str) -> None:
    width = max(20, reporter._screen_width - 1) if hasattr(reporter, "_screen_width") else 79
    reporter.rewrite(line if len(line) <= width else line[: width - 3] + "...", erase=True)
    if not line:
        reporter.rewrite("", erase=False)


def _standard_error(config: pytest.Config) -> int | None:
    """The standard error of a worker of pytest-xdist. It is the controller's, which people see; pytest captures it."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
            return os.dup(2)
    except OSError:
        return None


def _say(descriptor: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{line}\n".encode(sys.getdefaultencoding(), "backslashreplace"))
