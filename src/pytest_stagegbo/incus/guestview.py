"""A container's sockets, processes and files as the kernel shows them to root on the daemon's host, without a trace.

Nothing runs in the container, no packet is sent, and the daemon has no event of it: reading a file by the API would be
one (`instance-file-retrieved`), and would have the daemon write the whole pool. A time of access is a write as well. So
files and folders are opened with `O_NOATIME`, and symbolic links are not followed: reading one sets its time, and it
may lead out of the container. File systems that may be on another machine are not entered.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_stagegbo.incus.hostview import HostView

__all__ = [
    "Connected",
    "GuestProcess",
    "GuestView",
    "Listening",
    "guest_of_process",
    "guest_of_rootfs",
    "parse_sockets",
]

# macOS has neither of the two, and no daemon that could be looked at: there this module is only imported.
_STEP = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_QUIET = os.O_RDONLY | getattr(os, "O_NOATIME", 0) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LONGEST = 1 << 18
"""Bytes of a file that are read. Configuration is shorter."""
_LOCAL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "proc", "ramfs", "tmpfs", "xfs", "zfs"}
)
"""Types of file systems that are on this machine."""
_LISTENS, _OPEN = "0A", frozenset({"01", "06"})
"""States; of open connections also `TIME_WAIT`: one that was closed within the last minute."""


class Listening(Struct, frozen=True):
    """A TCP socket that takes connections."""

    address: IPv4Address | IPv6Address
    port: int
    inode: str


class Connected(Struct, frozen=True):
    """The other end of a TCP connection that is open, or was until a moment ago."""

    address: IPv4Address | IPv6Address
    port: int


class GuestProcess(Struct, frozen=True):
    """A process that listens."""

    program: str
    """Its name, as the kernel has it: 15 characters at most."""
    argv: tuple[str, ...]
    """Its command line, which may hold secrets: not to be shown, kept or logged."""
    folder: str
    """Its working directory; empty where it can't be told."""
    unit: str
    """The systemd service that it belongs to; empty: none."""
    ports: tuple[int, ...]
    """That others can reach, in ascending order."""


class GuestView:
    """Looks at one container.

    Args:
        root: Its root folder.
        process: The folder of its first process below /proc; None: it does not run.
    """

    def __init__(self, root: Path, process: Path | None = None) -> None:
        self._root = root
        self._process = process
        self._remote = _remote_mounts(process) if process is not None else ()

    def text(self, path: str) -> str | None:
        """The content of a file; None: there is none, or it is reached through a link or on another machine."""
        try:
            descriptor = self._open(path, stat.S_ISREG)
        except (OSError, ValueError):
            return None
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read(_LONGEST).decode("utf-8", "replace")

    def names(self, folder: str) -> tuple[str, ...]:
        """What is in a folder, sorted; nothing where there is none that can be looked into. Names that can't be printed
        are left out: no setting could have them."""
        try:
            descriptor = self._open(folder, stat.S_ISDIR)
        except (OSError, ValueError):
            return ()
        try:
            found = os.listdir(descriptor)  # noqa: PTH208 (a descriptor)
            return tuple(sorted(name for name in found if name.isprintable()))
        except OSError:
            return ()
        finally:
            os.close(descriptor)

    def has(self, path: str) -> bool:
        """Whether something is there, of whatever kind."""
        folder, name = posixpath.split(posixpath.normpath(path))
        try:
            place = self._folder(folder)
        except (OSError, ValueError):
            return False
        try:
            os.stat(name or ".", dir_fd=place, follow_symlinks=False)
        except OSError:
            return False
        finally:
            os.close(place)
        return True

    def listeners(self) -> tuple[GuestProcess, ...]:
        """Programs that others can connect to by TCP, in the order of their first ports."""
        listening, _ = self._sockets()
        reachable = {each.inode: each.port for each in listening if not each.address.is_loopback}
        found: dict[tuple[str, str], GuestProcess] = {}
        for pid in self._pids():
            process = self._listener(pid, reachable)
            if process is None:
                continue
            key = process.unit or pid, process.program
            earlier = found.get(key)  # a child has its parent's sockets
            ports = {*process.ports, *(earlier.ports if earlier is not None else ())}
            first = earlier if earlier is not None else process
            found[key] = GuestProcess(first.program, first.argv, first.folder, first.unit, tuple(sorted(ports)))
        return tuple(sorted(found.values(), key=lambda each: each.ports))

    def connections(self) -> frozenset[Connected]:
        """The other ends of its open TCP connections."""
        return frozenset(self._sockets()[1])

    def _sockets(self) -> tuple[list[Listening], list[Connected]]:
        listening: list[Listening] = []
        connected: list[Connected] = []
        if self._process is not None:
            for name in ("tcp", "tcp6"):
                try:
                    found = parse_sockets(_text(self._process / "net" / name))
                except OSError:
                    continue
                listening += found[0]
                connected += found[1]
        return listening, connected

    def _pids(self) -> Iterator[str]:
        if self._process is not None:
            try:
                yield from sorted((p.name for p in (self._root / "proc").iterdir() if p.name.isdigit()), key=int)
            except OSError:
                return

    def _listener(self, pid: str, reachable: dict[str, int]) -> GuestProcess | None:
        folder = self._root / "proc" / pid
        try:
            inodes = [_socket(entry.path) for entry in os.scandir(folder / "fd")]
            ports = {reachable[inode] for inode in inodes if inode in reachable}
            if not ports:
                return None
            words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            return GuestProcess(
                program=_text(folder / "comm").strip(),
                argv=tuple(word for word in words if word),
                folder=_link(folder / "cwd"),
                unit=unit_of(_text(folder / "cgroup")),
                ports=tuple(sorted(ports)),
            )
        except OSError:
            return None  # it has ended

    def _open(self, path: str, is_kind: Callable[[int], bool]) -> int:
        """Raises OSError, ValueError. What it is, is looked at first: opening a device may do something."""
        folder, name = posixpath.split(posixpath.normpath(path))
        place = self._folder(folder)
        try:
            name = name or "."
            if not is_kind(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
                raise ValueError(path)
            return os.open(name, _QUIET, dir_fd=place)
        finally:
            os.close(place)

    def _folder(self, path: str) -> int:
        path = posixpath.normpath(path)
        if not path.startswith("/") or any(f"{path}/".startswith(f"{mount}/") for mount in self._remote):
            raise ValueError(path)
        place = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in filter(None, path.split("/")):
                below = os.open(part, _STEP, dir_fd=place)
                os.close(place)
                place = below
        except BaseException:
            os.close(place)
            raise
        return place


def guest_of_process(host: HostView, pid: int) -> GuestView | None:
    """The view of a running container, by the number of its first process on the daemon's host; None: this process
    may not look."""
    process = host.place(f"/proc/{pid}") if pid and not os.geteuid() else None
    if process is None:
        return None
    try:
        (process / "root").stat()
    except OSError:
        return None
    return GuestView(process / "root", process)


def guest_of_rootfs(host: HostView, path: str) -> GuestView | None:
    """The view of a container that does not run, by its root folder on the daemon's host; None: it is not mounted, or
    this process may not look."""
    place = None if os.geteuid() else host.place(path)
    return None if place is None else GuestView(place)


def parse_sockets(text: str) -> tuple[list[Listening], list[Connected]]:
    """Read a table of the kernel's, `/proc/net/tcp` or `/proc/net/tcp6`. Pure."""
    listening, connected = [], []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10:
            continue
        if words[3] == _LISTENS:
            address, port = _end(words[1])
            listening.append(Listening(address, port, words[9]))
        elif words[3] in _OPEN:
            connected.append(Connected(*_end(words[2])))
    return listening, connected


def unit_of(cgroup: str) -> str:
    """The systemd service in the text of a process's `/proc/PID/cgroup`; empty: none. Pure."""
    for line in cgroup.splitlines():
        path = line.rpartition("lxc.payload.")[2]
        found = [part for part in path.split("/")[1:] if part.endswith(".service")]
        if found:
            return re.sub(r"^_", "", found[-1])
    return ""


def _end(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[at : at + 8]) for at in range(0, len(address), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    if len(packed) == 4:
        return IPv4Address(packed), int(port, 16)
    six = IPv6Address(packed)
    return six.ipv4_mapped or six, int(port, 16)


def _socket(path: str) -> str:
    found = re.fullmatch(r"socket:\[(\d+)\]", _link(path))
    return found[1] if found else ""


def _text(path: Path) -> str:
    """A file of /proc, which may hold names in any encoding; one of 15 bytes may end within a character."""
    return path.read_bytes().decode("utf-8", "replace")


def _link(path: Path | str) -> str:
    """Where a link of /proc leads; such a link has no time of access on a disk."""
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _remote_mounts(process: Path) -> tuple[str, ...]:
    """Where file systems are mounted that may be on another machine, or that mount something when they are entered."""
    try:
        lines = _text(process / "mountinfo").split("\n")
    except OSError:
        return ("/",)
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        if before and after and after.split()[0] not in _LOCAL:
            found.append(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4]))
    return tuple(found)
