"""Writes one process's events to its file. Whatever goes wrong, no test learns of it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import msgspec

from pytest_stagegbo import clocks
from pytest_stagegbo.session_report.events import SUFFIX, VERSION, Header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_stagegbo.session_report.events import Event

__all__ = ["LONGEST_TEXT", "Recorder", "cut", "discard", "open_recorder"]

LONGEST_TEXT = 20_000
"""Characters of one section of a failed test's report."""


class Recorder:
    """Appends events to a file, each in one write, so that a killed process leaves whole lines.

    Args:
        file: Descriptor of the open file; the recorder closes it.
    """

    def __init__(self, file: int) -> None:
        self._file: int | None = file
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._encode = msgspec.json.Encoder().encode
        # A test may replace functions of `os`, as pyfakefs does: these are the ones from before.
        self._write, self._close, self._getpid = os.write, os.close, os.getpid
        self.trouble = ""
        """Why no more is written; empty as long as all is."""

    def write(self, event: Event) -> None:
        """Append one event. After an error nothing is written any more. A forked child writes nothing."""
        if self._file is None or self._getpid() != self._pid:
            return
        try:
            line = self._encode(event) + b"\n"
            with self._lock:
                if self._file is not None and self._write(self._file, line) < len(line):
                    raise OSError("a record was written in part: the disk is full, perhaps")
        except Exception as error:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """Write no more, because of an error that `trouble` tells of from now on."""
        self.trouble = self.trouble or f"{type(error).__name__}: {error}"
        self.close()

    def close(self) -> None:
        with self._lock:
            file, self._file = self._file, None
        if file is not None and self._getpid() == self._pid:
            with contextlib.suppress(OSError):
                self._close(file)


def open_recorder(folder: Path, run: str, worker: str, *, workers: int, package: str, pytest: str) -> Recorder:
    """Begin the file of one process, with its header. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}-{worker}{SUFFIX}"
    recorder = Recorder(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644))
    host, pid = os.uname().nodename, os.getpid()
    recorder.write(Header(VERSION, run, worker, host, pid, clocks.now(), clocks.monotonic(), workers, package, pytest))
    return recorder


def discard(folder: Path) -> None:
    """Remove the events of an earlier session, which the page that is to be replaced shows. Raises `OSError`."""
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)


def cut(text: str, mask: Callable[[str], str], longest: int = LONGEST_TEXT) -> str:
    """The end of a text, without secrets. A line that a cut goes through is not shown, if there are others."""
    masked = mask(text[-2 * longest :])
    if len(masked) <= longest and len(text) <= 2 * longest:
        return masked
    end = masked[-longest:]
    lines = end.partition("\n")[2]
    return "...\n" + (lines or end if len(masked) > longest else lines)
