"""One process at a time changes a stage. The kernel releases a lock when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_stagegbo.errors import LockTimeout, MissingRequirement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["StageLock", "lock_folder"]


def lock_folder(endpoint: str) -> Path:
    """The folder of this host's locks, made when missing: shared by everybody who may use the daemon's socket.

    Not sticky and of the socket's group: in a sticky folder the kernel (fs.protected_regular) keeps a second user
    from opening the first one's lock.

    Raises:
        MissingRequirement: it can't be made.
    """
    for parent in (Path("/run/lock"), Path("/tmp")):
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            break
    folder = parent / "stagegbo"
    try:
        folder.mkdir(mode=0o770, exist_ok=True)
        if folder.stat().st_uid == os.geteuid():
            with contextlib.suppress(OSError):
                os.chown(folder, -1, Path(endpoint).stat().st_gid)
            folder.chmod(0o2770)
    except OSError as error:
        raise MissingRequirement(
            f"the lock folder {folder} can't be used", seen=str(error), remedy="remove it, or make it writable"
        ) from None
    return folder


class StageLock:
    """The right to change one stage of one daemon.

    Args:
        endpoint: Of the daemon.
        server: Fingerprint of the daemon.
        project: Name of the stage's project.
        timeout: Seconds to wait for another holder.
    """

    def __init__(self, endpoint: str, server: str, project: str, timeout: float) -> None:
        name = hashlib.sha256(f"{server} {project}".encode()).hexdigest()[:16]
        folder = lock_folder(endpoint)
        self._project = project
        self._timeout = timeout
        self._holder = folder / f"{name}.holder"
        self._lock = FileLock(folder / f"{name}.lock", mode=0o660)

    @contextlib.contextmanager
    def hold(self, doing: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold the lock while the block runs.

        Args:
            doing: What for, shown to those who wait.
            waiting: Called once with the holder's description when the lock is not free at once.

        Raises:
            LockTimeout: the holder did not let go in time; names it.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting(self.holder())
            try:
                self._lock.acquire(timeout=self._timeout, poll_interval=0.05)
            except Timeout:
                raise LockTimeout(
                    f"stage {self._project} was not free within {self._timeout:.0f} s",
                    seen=f"held by {self.holder()}",
                    remedy="wait for it or end it: a lock goes with its process",
                ) from None
        try:
            self._write(doing)
            yield
        finally:
            with contextlib.suppress(OSError):
                self._holder.unlink()
            self._lock.release()

    def holder(self) -> str:
        """Who holds the lock, as far as can be told."""
        try:
            found = json.loads(self._holder.read_text())
            since = time.strftime("%H:%M:%S", time.localtime(found["since"]))
            return f"process {found['pid']} ({found['doing']}) since {since}"
        except (OSError, ValueError, KeyError):
            return "a process that has just begun"

    def _write(self, doing: str) -> None:
        temporary = self._holder.with_suffix(f".{os.getpid()}")
        entry = {"pid": os.getpid(), "doing": doing, "since": time.time(), "command": Path(sys.argv[0]).name}
        with contextlib.suppress(OSError):  # it is only for people; the lock itself is the kernel's
            temporary.write_text(json.dumps(entry))
            temporary.replace(self._holder)
