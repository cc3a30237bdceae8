"""How much room a stage's pools have, what is on its way to them included.

btrfs and the page cache take writes at the speed of memory and give them a place on the disk up to half a minute
later. Until then `statvfs`, and with it Incus, count them as free space, while the file system has promised it
already: whoever writes next, production too, gets "no space left" on a pool that looks half empty. The kernel says
in /sys/fs/btrfs how much it has promised; file systems such as ext4 and XFS count it themselves.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_stagegbo.incus.hostview import HostView
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Pool, Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["Host", "LocalHost", "Space", "btrfs_id", "floor_bytes", "pool_names", "spaces"]

SYSFS = Path("/sys")
_FS_INFO = 0x8400941F
"""BTRFS_IOC_FS_INFO of linux/btrfs.h; the file system's id is the 16 bytes from the 16th on."""


@dataclass(frozen=True, slots=True)
class Space:
    """Room in one place. Bytes."""

    where: str
    free: int
    """Less what is promised to writers and not on the disk yet."""
    floor: int
    """What must stay free."""

    @property
    def margin(self) -> int:
        """What may still be used; below 0 when the floor is passed."""
        return self.free - self.floor

    def __str__(self) -> str:
        return f"{self.where}: {bytes_text(max(0, self.free))} free, {bytes_text(self.floor)} must stay free"


class Host(Protocol):
    """What is asked of the machine that the daemon runs on."""

    def free_bytes(self, path: str) -> int | None:
        """Free bytes of the file system that holds `path`; None when this process can't know."""

    def unwritten_bytes(self, pool: Pool) -> int:
        """Bytes that a pool has promised and that its free space does not show; 0 when this process can't know."""

    def flush(self, seconds: float) -> None:
        """Have everything written, so that all counts are right; waits for no longer than `seconds`."""


class LocalHost:
    """The machine of a daemon that is reached over a socket; of a remote daemon's nothing can be known.

    Free space below a pool needs root. What btrfs has promised is world-readable, but on a machine with several
    pools of the same file name (labs) only root can tell which is which.
    """

    def __init__(self, endpoint: str) -> None:
        self._local = not endpoint.startswith("https://")
        self._view = HostView(endpoint)
        self._endpoint = endpoint
        self._allocations: dict[str, Path | None] = {}

    def free_bytes(self, path: str) -> int | None:
        return self._view.free_bytes(path)

    def unwritten_bytes(self, pool: Pool) -> int:
        if not self._local or pool.driver != "btrfs":
            return 0
        if pool.name not in self._allocations:
            self._allocations[pool.name] = self._allocation(pool)
        folder = self._allocations[pool.name]
        if folder is None:
            return 0
        try:
            return sum(int((folder / name).read_text()) for name in ("bytes_may_use", "bytes_reserved"))
        except (OSError, ValueError):
            del self._allocations[pool.name]  # unmounted, or mounted anew
            return 0

    def flush(self, seconds: float) -> None:
        if self._local:
            thread = threading.Thread(target=os.sync, name="stagegbo flush", daemon=True)
            thread.start()
            thread.join(seconds)

    def _allocation(self, pool: Pool) -> Path | None:
        identity = self._identity(pool)
        folder = None if identity is None else SYSFS / "fs/btrfs" / identity / "allocation/data"
        return folder if folder is not None and folder.is_dir() else None

    def _identity(self, pool: Pool) -> str | None:
        """The UUID of a pool's file system."""
        if found := re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", pool.source):
            return found[0]
        if "/disks/" in pool.source:
            folder = pool.source.partition("/disks/")[0]
            mount = self._view.place(f"{folder}/storage-pools/{pool.name}")
            if mount is not None:
                with contextlib.suppress(OSError):
                    return btrfs_id(mount)
        loops = [file.parts[-3] for file in (SYSFS / "block").glob("loop*/loop/backing_file") if _says(file, pool)]
        systems = [
            folder.name
            for folder in (SYSFS / "fs/btrfs").glob("*-*")
            if any((folder / "devices" / loop).exists() for loop in loops)
        ]
        return systems[0] if len(systems) == 1 else None


def btrfs_id(mount: Path) -> str:
    """The id of the btrfs that is mounted there, as /sys/fs/btrfs names it. Raises OSError."""
    descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return str(uuid.UUID(bytes=fcntl.ioctl(descriptor, _FS_INFO, bytes(1024))[16:32]))
    finally:
        os.close(descriptor)


def _says(backing_file: Path, pool: Pool) -> bool:
    try:
        return backing_file.read_text().rstrip("\n") == pool.source
    except OSError:
        return False


def floor_bytes(settings: Settings, pool: Pool) -> int:
    """What must stay free of a pool, and of the file system below it: the larger of the two settings."""
    return max(parse_size(settings.disk_floor), int(settings.disk_floor_share * pool.total))


def pool_names(reader: Reader, settings: Settings) -> list[str]:
    """The pools that the stage's containers live on; before there are any, those of production's."""
    found = reader.instances(settings.project)
    names = {found[name].pool for name in settings.containers if name in found}
    if not names:
        sources = reader.instances(settings.source_project)
        names = {sources[c.source_name].pool for c in settings.containers.values() if c.source_name in sources}
    return sorted(filter(None, names))


def spaces(pool: Pool, settings: Settings, host: Host) -> list[Space]:
    """The room in a pool, and below it when it is a file, whose growth the file system below has to bear."""
    floor = floor_bytes(settings, pool)
    unwritten = host.unwritten_bytes(pool)
    found = [Space(f"pool {pool.name}", pool.free - unwritten, floor)]
    below = host.free_bytes(pool.source) if pool.source.endswith(".img") else None
    if below is not None:
        found.append(Space(f"the host's file system below pool {pool.name}", below - unwritten, floor))
    return found
