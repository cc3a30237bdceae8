"""Volumes emptied a few files at a time, so that their deletion costs the others on the pool nothing.

With ordinary quotas btrfs counts all that a deleted subvolume shared in one commit: 10,000 extents for a root file
system of 1 GB (`btrfs_qgroup_num_dirty_extents` in the kernel's tracing, Linux 6.18), whatever is committed in between.
Everybody who calls `fsync` on that file system waits meanwhile, production's databases first of all. Files that are
deleted one after the other are counted with the commit that follows, some 1,200 extents for 1,000 files, and little is
left to count when the subvolume goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from typing import TYPE_CHECKING

from pytest_stagegbo.incus.localhost import pool_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_stagegbo.incus.localhost import LocalHost
    from pytest_stagegbo.incus.records import Pool

__all__ = ["empty_volume"]

# Of linux/btrfs.h. They commit as `sync` does, and don't write what others have not asked to be written yet.
_START_SYNC, _WAIT_SYNC = 0x80089418, 0x40089416
_GET_FLAGS, _SET_FLAGS, _READ_ONLY = 0x80089419, 0x4008941A, 2
_SUBVOLUME = 256
"""The inode number of each subvolume's own folder."""
BATCH = 1000
"""Files between two commits. It is a fixed number, since how long a commit takes says more about other work."""
DEEPEST = 200
"""Folders below each other, each of which is kept open. What lies deeper goes with the subvolume."""

_turn = threading.Lock()
"""Two at once would have each commit count the files of both."""


def empty_volume(
    host: LocalHost, pool: Pool, project: str, name: str, snapshots: Sequence[str], stopped: Callable[[], bool]
) -> None:
    """Delete the files of a stopped container, and of snapshots of it, as far as that can be: the rest goes with the
    deletion of the container, which has to follow. It needs root on the daemon's host; without it nothing is done.

    Args:
        stopped: Asked before each batch: whether to leave the rest.
    """
    folder = host.place(pool_folder(pool)) if pool.driver == "btrfs" else None
    if folder is None or not project or project == "default":
        return
    volume = f"{project}_{name}"
    places = [("containers", volume), *(("containers-snapshots", volume, snapshot) for snapshot in snapshots)]
    with _turn, contextlib.suppress(OSError):
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            commits = _Commits(top, stopped)
            for place in places:
                with contextlib.suppress(OSError), _opened(top, place) as (descriptor, found):
                    if found.st_ino == _SUBVOLUME:
                        _make_writable(descriptor)
                        with _opened(descriptor, ("rootfs",)) as (files, _):
                            _empty(files, found.st_dev, commits, DEEPEST)
                        commits.commit()
            commits.wait()
        except _Stopped:
            return
        finally:
            os.close(top)


class _Stopped(Exception):
    """The rest is to be left."""


class _Commits:
    """One after each batch. While it is written to the disk, the next files are deleted."""

    def __init__(self, descriptor: int, stopped: Callable[[], bool]) -> None:
        self._descriptor = descriptor
        self._stopped = stopped
        self._deleted = 0
        self._transaction = b""

    def count(self) -> None:
        self._deleted += 1
        if self._deleted == BATCH:
            self.commit()

    def commit(self) -> None:
        if self._stopped():
            raise _Stopped
        self.wait()
        self._deleted = 0
        self._transaction = fcntl.ioctl(self._descriptor, _START_SYNC, bytes(8))

    def wait(self) -> None:
        if self._transaction:
            fcntl.ioctl(self._descriptor, _WAIT_SYNC, self._transaction)
            self._transaction = b""


@contextlib.contextmanager
def _opened(top: int, path: Sequence[str]) -> Iterator[tuple[int, os.stat_result]]:
    """A folder below another one, reached through no link."""
    descriptor = os.dup(top)
    try:
        for each in path:
            below = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor, os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _make_writable(descriptor: int) -> None:
    """Incus's snapshots are read-only."""
    (flags,) = struct.unpack("Q", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
    if flags & _READ_ONLY:
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("Q", flags & ~_READ_ONLY))


def _empty(folder: int, device: int, commits: _Commits, deeper: int) -> None:
    """Delete what is in a folder, but for what is on another device: a subvolume within this one."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        with contextlib.suppress(OSError):  # immutable, or not empty: it goes with the subvolume
            if is_folder:
                if deeper:
                    with _opened(folder, (name,)) as (below, seen):
                        if seen.st_dev == device:
                            _empty(below, device, commits, deeper - 1)
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
            commits.count()
