"""Other processes of this machine, as proc(5) shows them."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["age", "ancestors", "born", "describe", "lock_holders", "user_at_host"]

PROC = Path("/proc")
LONGEST_COMMAND = 80
"""Characters of a command line that are worth showing."""


def born(pid: int) -> str:
    """When a process began, in clock ticks since the boot: tells it from a later one with its number. Empty: there is
    none, or it has ended and its parent has not asked how."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in {"Z", "X"} else ""


def age() -> float:
    """Seconds since this process began, in steps of ten milliseconds; 0 where that can't be seen."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        uptime = float((PROC / "uptime").read_text().split()[0])
        return max(0.0, uptime - int(_stat(os.getpid())[19]) / os.sysconf("SC_CLK_TCK"))
    return 0.0


def ancestors() -> list[int]:
    """The parent of this process, its parent, and so on."""
    found: list[int] = []
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.append(pid)
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0
    return found


def lock_holders(path: Path, among: Iterable[int] | None = None) -> list[int]:
    """Processes that hold a lock of flock(2) on a file, as far as this user may see. That is everybody who has the
    descriptor that was locked, or an inherited copy of it: the kernel's own list names only who asked for the lock.

    Args:
        among: Look at these processes only.
    """
    try:
        file = path.stat()
    except OSError:
        return []
    pids = _all() if among is None else among
    return [pid for pid in pids if any(_locked(pid, number) for number in _descriptors(pid, file))]


def describe(pid: int) -> str:
    """A process for people: its number, its command, and when it began."""
    state = (_stat(pid) or [""])[0]
    stopped = ", stopped by a signal" if state in {"T", "t"} else ""
    return f"process {pid} ({_command(pid)}), which began at {_began(pid)}{stopped}"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, from the state on."""
    try:
        return (PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _all() -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):  # macOS has no such folder
        for entry in os.listdir(PROC):  # noqa: PTH208 - names are enough, of a thousand processes
            if entry.isdigit():
                yield int(entry)


def _descriptors(pid: int, file: os.stat_result) -> Iterator[int]:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for entry in os.listdir(PROC / f"{pid}/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if os.path.samestat((PROC / f"{pid}/fd/{entry}").stat(), file):
                    yield int(entry)


def _locked(pid: int, descriptor: int) -> bool:
    try:
        lines = (PROC / f"{pid}/fdinfo/{descriptor}").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("lock:") and "FLOCK" in line for line in lines)


def _command(pid: int) -> str:
    from pytest_stagegbo.services.masking import mask  # with all services: only errors need it

    try:
        words = (PROC / f"{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    except OSError:
        words = b""
    text = "".join(each if each.isprintable() else " " for each in words.decode("utf-8", "replace"))
    shown = mask(text)
    return shown if len(shown) <= LONGEST_COMMAND else shown[:LONGEST_COMMAND] + "..."


def _began(pid: int) -> str:
    """When it began: the time of day."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (PROC / "stat").read_text().splitlines()
        boot = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
        moment = boot + int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
        return time.strftime("%H:%M:%S", time.localtime(moment))
    return "a time that is not known"


def user_at_host() -> str:
    """Whose process this is, and where: `user@host`."""
    import getpass
    import socket

    user = "unknown"
    with contextlib.suppress(Exception):  # a user without a name
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"
