"""What the machine of the daemon knows about a storage pool and the API doesn't: space that btrfs has promised, whether
its quotas count, and what it has yet to clean up.

btrfs and the page cache take writes at the speed of memory and give them a place on the disk up to half a minute
later. Until then `statvfs`, and with it Incus, count them as free space, while the file system has promised it
already: whoever writes next, production too, gets "no space left" on a pool that looks half empty. Incus also counts
as free what btrfs keeps for its metadata (`f_bfree`, not `f_bavail`), which no file ever gets. The kernel says in
/sys/fs/btrfs how much both are; file systems such as ext4 and XFS count their promises themselves.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from pytest_stagegbo.incus.hostview import HostView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_stagegbo.incus.records import Pool

__all__ = ["Host", "LocalHost", "Quotas", "btrfs_id"]

SYSFS = Path("/sys")
# Of linux/btrfs.h.
_FS_INFO = 0x8400941F
"""BTRFS_IOC_FS_INFO; the file system's id is the 16 bytes from the 16th on."""
_TREE_SEARCH = 0xD0009411
_SYNC = 0x9408
_INO_LOOKUP = 0xD0009412
_RESCAN = 0x4040942C
_QUOTA_CTL, _ENABLE_SIMPLE = 0xC0109428, 4
_RESCAN_STATUS = 0x8040942D
_ROOT_TREE, _ORPHAN, _ORPHAN_ITEM, _LAST = 1, 2**64 - 5, 48, 2**64 - 1


class Quotas(Struct, frozen=True):
    """How a btrfs pool counts what each volume uses. A limit holds only while it counts right."""

    mode: str
    """`qgroup`: as Incus enables them, what is shared counts too; `squota`: simple; `off`."""
    inconsistent: bool = False
    """btrfs itself says that its counts are wrong. It stops counting then, until a rescan has ended."""
    rescanning: bool = False

    @property
    def hold(self) -> bool:
        return self.mode != "off" and not self.inconsistent and not self.rescanning

    def __str__(self) -> str:
        if self.mode == "off":
            return "btrfs quotas are off"
        if self.rescanning:
            return "btrfs is counting its quotas again (rescan)"
        return "btrfs quotas are inconsistent, so btrfs does not count" if self.inconsistent else "btrfs quotas count"


class Host(Protocol):
    """What is asked of the machine that the daemon runs on."""

    def free_bytes(self, path: str) -> int | None:
        """Free bytes of the file system that holds `path`; None when this process can't know."""

    def used_bytes(self, pool: Pool) -> int | None:
        """Bytes in use on a pool now, as the daemon would count them; None when this process can't know."""

    def unwritten_bytes(self, pool: Pool) -> int:
        """Bytes that a pool has promised and that its free space does not show; 0 when this process can't know."""

    def metadata_bytes(self, pool: Pool) -> int:
        """Bytes that the daemon counts as free and that only metadata may use; 0 when this process can't know."""

    def quotas(self, pool: Pool) -> Quotas | None:
        """How a pool counts; None when it is not btrfs, or this process can't know."""

    def exclusive_bytes(self, pool: Pool, volume: str) -> int | None:
        """Bytes that a container's volume has for itself, as the daemon would count them; None when this process can't
        know.

        Args:
            volume: Its name as the driver has it, with the project.
        """

    def rescan(self, pool: Pool) -> bool:
        """Have btrfs count again, without waiting for it; whether it does. Needs root on the daemon's host."""

    def uncleaned(self, pool: Pool) -> int | None:
        """Deleted subvolumes whose space btrfs has yet to give back; None when this process can't know."""

    def commit(self, pool: Pool) -> None:
        """Have btrfs write what it has done: what it has cleaned up is room then, and what it has yet to clean up it
        begins with. Nothing where that can't be."""

    def flush(self, seconds: float) -> None:
        """Have everything written, so that all counts are right; waits for no longer than `seconds`."""


class LocalHost(HostView):
    """The machine of a daemon that is reached over a socket; of a remote daemon's nothing can be known.

    Free space below a pool needs root. What btrfs says in /sys is world-readable, but on a machine with several
    pools of the same file name (labs) only root can tell which is which.
    """

    def __init__(self, endpoint: str, *, here: bool = True) -> None:
        super().__init__(endpoint, here=here)
        self._local = here and not endpoint.startswith("https://")
        self._folders: dict[str, Path | None] = {}

    def used_bytes(self, pool: Pool) -> int | None:
        found = self.statvfs(pool_folder(pool)) if pool.driver == "btrfs" else None
        if found is None:
            return None
        same = found.f_blocks * found.f_frsize == pool.total  # what is mounted there is that pool
        return (found.f_blocks - found.f_bfree) * found.f_frsize if same else None

    def unwritten_bytes(self, pool: Pool) -> int:
        return self._allocation(pool, _unwritten_bytes)

    def metadata_bytes(self, pool: Pool) -> int:
        return self._allocation(pool, _metadata_bytes)

    def _allocation(self, pool: Pool, count: Callable[[Path], int]) -> int:
        """What the kernel says about the use of a pool's space; 0 when this process can't know."""
        folder = self._folder(pool)
        if folder is None:
            return 0
        try:
            return count(folder / "allocation")
        except (OSError, ValueError):
            self._folders.pop(pool.name, None)  # unmounted, or mounted again
            return 0

    def quotas(self, pool: Pool) -> Quotas | None:
        folder = self._folder(pool)
        if folder is None:
            return None
        groups = folder / "qgroups"
        try:
            if not groups.is_dir():
                return Quotas("off") if folder.is_dir() else None
            if (groups / "enabled").read_text().strip() != "1":
                return Quotas("off")
            mode = (groups / "mode").read_text().strip() if (groups / "mode").exists() else "qgroup"  # Linux 6.7
            if mode != "qgroup":
                return Quotas(mode)
            inconsistent = (groups / "inconsistent").read_text().strip() != "0"
        except OSError:
            return None
        return Quotas(mode, inconsistent, self._rescans(pool))

    def _rescans(self, pool: Pool) -> bool:
        """Whether a rescan runs, as far as this process may ask; one that btrfs needs shows as inconsistent, too."""
        with contextlib.suppress(OSError), self._opened(pool) as descriptor:
            if descriptor is not None:
                flags: int = struct.unpack_from("Q", fcntl.ioctl(descriptor, _RESCAN_STATUS, bytes(64)))[0]
                return bool(flags)
        return False

    def rescan(self, pool: Pool) -> bool:
        try:
            with self._opened(pool) as descriptor:
                if descriptor is None:
                    return False
                fcntl.ioctl(descriptor, _RESCAN, bytes(64))
        except OSError:
            return self._rescans(pool)  # another process has asked for it
        return True

    def count_simply(self, pool: Pool) -> bool:
        """Have a new and empty btrfs pool count for each volume what it wrote itself; whether it does (Linux 6.7).

        With quotas as Incus enables them, each deletion of a clone has btrfs count again what it shared.
        """
        try:
            with self._opened(pool) as descriptor:
                if descriptor is None:
                    return False
                enable_simple_quotas(descriptor)
        except OSError:
            return False
        return True

    def uncleaned(self, pool: Pool) -> int | None:
        if pool.driver == "dir":  # files, which are gone once the daemon says so
            return 0
        try:
            with self._opened(pool) as descriptor:
                if descriptor is None:
                    return None
                key = (_ROOT_TREE, _ORPHAN, _ORPHAN, 0, _LAST, 0, _LAST, _ORPHAN_ITEM, _ORPHAN_ITEM, 4096)
                asked = bytearray(struct.pack("7Q3I", *key).ljust(4096, b"\0"))
                fcntl.ioctl(descriptor, _TREE_SEARCH, asked)
                found: int = struct.unpack_from("I", asked, 64)[0]
                return found
        except OSError:
            return None

    def left_copies(self, pool: Pool) -> tuple[str, ...]:
        """Volumes that the daemon made for copies to another pool and did not remove, since it was killed or since it
        still copies; none where this process can't know. The daemon's own paths."""
        folder = f"{pool_folder(pool)}/containers"
        place = self.place(folder) if pool.driver == "btrfs" else None
        if place is None:
            return ()
        try:
            found = [each for made in place.glob("migration.*") for each in made.iterdir()]
            return tuple(sorted(f"{folder}/{each.relative_to(place)}" for each in found))
        except OSError:
            return ()

    def commit(self, pool: Pool) -> None:
        with contextlib.suppress(OSError), self._opened(pool) as descriptor:
            if descriptor is not None:
                fcntl.ioctl(descriptor, _SYNC)

    def limit(self, pool: Pool, volume: str) -> int | None:
        """The limit in force on a container's volume, in bytes; 0: none; None when this process can't know.

        Args:
            volume: Its name as the driver has it, with the project.
        """
        return self._counted(pool, volume, "max_referenced")

    def referenced(self, pool: Pool, volume: str) -> int | None:
        """Bytes that a container's volume references, shared ones included; None when this process can't know."""
        return self._counted(pool, volume, "referenced") or None

    def exclusive_bytes(self, pool: Pool, volume: str) -> int | None:
        return self._counted(pool, volume, "exclusive") or None

    def _counted(self, pool: Pool, volume: str, what: str) -> int | None:
        folder, place = self._folder(pool), self.place(f"{pool_folder(pool)}/containers/{volume}")
        if folder is None or place is None:
            return None
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                found = bytearray(struct.pack("2Q", 0, 256).ljust(4096, b"\0"))
                fcntl.ioctl(descriptor, _INO_LOOKUP, found)
            finally:
                os.close(descriptor)
            (subvolume,) = struct.unpack_from("Q", found)
            group = folder / f"qgroups/0_{subvolume}"
            return int((group / what).read_text()) if group.is_dir() else 0
        except (OSError, ValueError):
            return None

    def flush(self, seconds: float) -> None:
        if self._local:
            thread = threading.Thread(target=os.sync, name="stagegbo flush", daemon=True)
            thread.start()
            thread.join(seconds)

    @contextlib.contextmanager
    def _opened(self, pool: Pool) -> Iterator[int | None]:
        """The folder of a btrfs pool; None where this process can't have it."""
        mount = self.place(pool_folder(pool)) if pool.driver == "btrfs" else None
        if mount is None:
            yield None
            return
        descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _folder(self, pool: Pool) -> Path | None:
        """What the kernel says in /sys of a btrfs pool; None where this process can't tell which it is."""
        if not self._local or pool.driver != "btrfs":
            return None
        if pool.name not in self._folders:
            identity = self._identity(pool)
            folder = None if identity is None else SYSFS / "fs/btrfs" / identity
            self._folders[pool.name] = folder if folder is not None and folder.is_dir() else None
        return self._folders[pool.name]

    def _identity(self, pool: Pool) -> str | None:
        """The UUID of a pool's file system."""
        if found := re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", pool.source):
            return found[0]
        mount = self.place(pool_folder(pool))
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


def enable_simple_quotas(descriptor: int) -> None:
    """Have the btrfs file system of an open folder count for each volume what it wrote itself (Linux 6.7). By ioctl,
    since btrfs-progs know it only from 6.7 on. Raises `OSError` where the kernel does not know it."""
    fcntl.ioctl(descriptor, _QUOTA_CTL, struct.pack("2Q", _ENABLE_SIMPLE, 0))


def _number(file: Path) -> int:
    return int(file.read_text())


def _unwritten_bytes(allocation: Path) -> int:
    return _number(allocation / "data/bytes_may_use") + _number(allocation / "data/bytes_reserved")


def _metadata_bytes(allocation: Path) -> int:
    """Blocks that are allocated for metadata and hold nothing, as `f_bfree` counts them: every copy of each, but for
    the global reserve, which it leaves out. A mixed file system keeps nothing apart."""
    kinds = [allocation / kind for kind in ("metadata", "system") if (allocation / kind).is_dir()]
    unused = sum(_number(kind / "disk_total") - _number(kind / "disk_used") for kind in kinds)
    return max(0, unused - _number(allocation / "global_rsv_size"))


def pool_folder(pool: Pool) -> str:
    """Where the daemon has mounted a pool."""
    folder, found, _ = pool.source.partition("/disks/")
    return f"{folder if found else '/var/lib/incus'}/storage-pools/{pool.name}"


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
