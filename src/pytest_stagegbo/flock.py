"""Locks of the kernel's on files: they go with their process, however it dies, and forked children let go of them.

filelock's own ReadWriteLock was measured at 0.7 ms a lock, a test takes seven, its files can't be shared between users,
and its deadlines stand still under freezegun; hence flock(2) here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import weakref
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.forked import let_go_in_children
from pytest_stagegbo.processes import ancestors, lock_holders

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FIRST_PAUSE", "FairLock", "FileLock"]

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.05
"""Seconds between two tries for a lock that somebody holds."""


class FileLock:
    """One lock of the kernel's on one file, of this process, shared or exclusive. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.thread: int | None = None
        """Which thread has it; None: none, or any."""
        self._file: int | None = None
        let_go_in_children(self)

    def attempt(self, *, exclusive: bool = True) -> bool:
        """Whether it was had at once."""
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self._open(), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.thread = threading.get_ident()
        return True

    def acquire(self, deadline: float, *, exclusive: bool = True) -> bool:
        """Whether it was had before the deadline (of `clocks.monotonic`). flock(2) itself knows no time limit."""
        pause = FIRST_PAUSE
        while not self.attempt(exclusive=exclusive):
            if clocks.monotonic() >= deadline:
                return False
            clocks.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        return True

    def release(self) -> None:
        self.thread = None
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def __enter__(self) -> None:
        self.acquire(float("inf"))

    def __exit__(self, *_: object) -> None:
        self.release()

    def _open(self) -> int:
        """The file, opened once: opening and closing it would cost more than locking it."""
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            with contextlib.suppress(PermissionError):  # another user made it, and did this
                os.fchmod(self._file, 0o660)  # whatever this process's umask took away
        return self._file

    def let_go(self) -> None:
        """Close the file, which releases the lock unless a parent process has it, too."""
        file, self._file, self.thread = self._file, None, None
        if file is not None:
            os.close(file)

    __del__ = let_go


class FairLock:
    """A lock of this process, shared, exclusive or quiet, in three files.

    The first one is locked for as long as the lock is held. The gate is a file that everybody passes on the way in, and
    that a would-be exclusive holder keeps shut while the present holders leave, so that a stream of users can't starve
    it. Quiet holders share the third file: any number of them, but nobody who shares the first one. Each of the two
    kinds makes sure, at the gate, that nobody of the other kind is left.
    """

    def __init__(self, path: Path) -> None:
        self._gate = FileLock(path.with_suffix(".gate"))
        self._lock = FileLock(path)
        self._quiet = FileLock(path.with_suffix(".quiet"))
        self._quiet_name = str(self._quiet.path)
        _locks.add(self)

    @property
    def path(self) -> Path:
        return self._lock.path

    @property
    def thread(self) -> int | None:
        return self._lock.thread or self._quiet.thread

    def acquire(self, deadline: float, *, exclusive: bool, quiet: bool = False) -> bool:
        """Whether it was had before the deadline (of `clocks.monotonic`)."""
        if not self._gate.acquire(deadline):
            return False
        try:
            if quiet:
                return self._acquire_quiet(deadline)
            if not self._lock.acquire(deadline, exclusive=exclusive):
                return False
            # While the gate is shut, nobody becomes quiet. Where nobody ever was, there is no file.
            if not os.path.exists(self._quiet_name):  # noqa: PTH110 (five times as quick, and done for each lock)
                return True
            if self._quiet.acquire(deadline):
                self._quiet.release()
                return True
            self._lock.release()
            return False
        finally:
            self._gate.release()

    def _acquire_quiet(self, deadline: float) -> bool:
        if not self._lock.acquire(deadline):  # nobody else uses it
            return False
        try:
            return self._quiet.acquire(deadline, exclusive=False)
        finally:
            self._lock.release()

    def join(self) -> bool:
        """Share it at once with somebody who has it already, whoever waits at the gate."""
        if self._quiet.path.exists() and lock_holders(self._quiet.path):
            return False
        return self._lock.attempt(exclusive=False)

    def release(self) -> None:
        self._lock.release()
        self._quiet.release()

    def for_any_thread(self) -> None:
        """It will be released by another thread than this one."""
        self._lock.thread = self._quiet.thread = None

    def holders(self) -> list[int]:
        """Processes that have it, or keep its gate shut."""
        return list(dict.fromkeys(pid for path in self._paths for pid in lock_holders(path)))

    @property
    def _paths(self) -> list[Path]:
        return [self.path, self._quiet.path, self._gate.path]

    def own_holder(self) -> int | None:
        """A process that can't let go before this thread has it: this one, or one of its ancestors. None: none."""
        here = threading.get_ident()
        if any(lock is not self and lock.path == self.path and lock.thread == here for lock in list(_locks)):
            return os.getpid()
        return next((pid for path in self._paths[:2] for pid in lock_holders(path, ancestors())), None)


_locks: weakref.WeakSet[FairLock] = weakref.WeakSet()
"""The locks of this process."""
