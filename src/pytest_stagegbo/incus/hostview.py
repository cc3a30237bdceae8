"""The host's file systems and networks as the daemon sees them, when this process may look.

A loop-backed pool is a sparse file: the file system below it can fill while the pool looks empty, and then every
container on it gets I/O errors, production's too. `/resources` of a pool knows nothing of that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_stagegbo.incus import hostnet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from ipaddress import IPv4Address

    from pytest_stagegbo.incus.hostnet import HostNetwork

__all__ = ["HostView"]

T = TypeVar("T")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_NOATIME", 0)
"""macOS has not the last one, and no daemon."""


class HostView:
    """Looks below `/proc/<daemon>/root`, which is right for a daemon in a mount namespace of its own, too.

    Without root, or for a remote daemon, every answer is None.

    Args:
        here: Whether the host in question is that of the daemon at `endpoint`, and not another member of its cluster.
    """

    def __init__(self, endpoint: str, *, here: bool = True) -> None:
        pid = _daemon_pid(endpoint) if here and not endpoint.startswith("https://") else None
        self._process = None if pid is None else Path(f"/proc/{pid}")
        self._root = None if self._process is None else self._process / "root"

    def free_bytes(self, path: str) -> int | None:
        """Bytes that are free to use on the file system that holds `path`."""
        found = self.statvfs(path)
        return None if found is None else found.f_bavail * found.f_frsize

    def statvfs(self, path: str) -> os.statvfs_result | None:
        """What the kernel says of the file system that holds `path`; None: this process can't know."""
        place = self.place(path)
        try:
            return None if place is None else os.statvfs(place)
        except OSError:
            return None

    def tree_bytes(self, path: str) -> int | None:
        """Bytes on disk of everything below a folder; files with several names are counted once.

        It leaves no trace: to list a folder sets its time of access, which would be a write to production.
        """
        place = self.place(path)
        if place is None or not place.is_dir():
            return None
        total = 0
        seen: set[tuple[int, int]] = set()
        folders = [str(place)]
        while folders:
            folder = folders.pop()
            try:
                opened = os.open(folder, _FOLDER)
            except OSError:
                continue  # vanished while production was writing
            try:
                found_here = list(_entries(opened))
            finally:
                os.close(opened)
            for name, found in found_here:
                if stat.S_ISDIR(found.st_mode):
                    folders.append(f"{folder}/{name}")
                elif found.st_nlink > 1:
                    if (found.st_dev, found.st_ino) in seen:
                        continue
                    seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
        return total

    def networks(self) -> tuple[HostNetwork, ...] | None:
        """Every IPv4 network of the host, by its interfaces' addresses and the routes of all tables; None: unknown.
        Incus's API knows no routes, and leaves out interfaces whose type it does not know, such as the `eth0` of a host
        that is a container itself."""
        return self.inside(hostnet.read_networks)

    def addresses(self) -> frozenset[str] | None:
        """Every IPv4 address of the host, but for loopback's; None: unknown."""
        networks = self.networks()
        return None if networks is None else frozenset(str(each.address) for each in networks if each.address)

    def ways(self, addresses: Iterable[IPv4Address]) -> Mapping[IPv4Address, str | None] | None:
        """The interfaces by which the host sends to addresses, None for those that it can't; None: unknown."""
        return self.inside(lambda: {address: hostnet.read_way(address) for address in addresses})

    def rules(self) -> list[dict[str, Any]] | None:
        """All rules of the host's packet filter, as `nft -j list ruleset` prints them; None: unknown."""
        try:
            return list(json.loads(self.nft("-j", "list", "ruleset") or "")["nftables"])
        except (ValueError, KeyError):
            return None

    def nft(self, *arguments: str) -> str | None:
        """What nft prints, which only root may ask; None: it can't be run, or fails."""
        return self._run("nft", *arguments)

    def legacy_rules(self) -> str | None:
        """The rules of iptables that nft does not show, as `iptables-legacy-save` prints them; empty: there are none;
        None: they can't be read, or only root may."""
        if os.geteuid():
            return None
        names = Path("/proc/thread-self/net/ip_tables_names")  # the program would have the kernel make tables
        found = self.inside(lambda: names.read_text() if names.exists() else "")
        return self._run("iptables-legacy-save") if found else found

    def _run(self, program: str, *arguments: str) -> str | None:
        """What a program prints in the daemon's network namespace."""
        if self._root is None or os.geteuid():
            return None
        tool = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
        argv = [tool] if tool else ["chroot", str(self._root), f"/usr/sbin/{program}"]  # the daemon's own

        def call() -> str | None:
            done = subprocess.run([*argv, *arguments], capture_output=True, text=True, check=False, timeout=30)
            return done.stdout if done.returncode == 0 else None

        try:
            return self.inside(call)
        except subprocess.TimeoutExpired:
            return None

    def bridges_call_filter(self) -> bool:
        """Whether packets within a bridge pass the IP filter, too: Docker sets that."""
        text = self.inside(Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text)
        return text is not None and text.strip() == "1"

    def inside(self, function: Callable[[], T]) -> T | None:
        """What a function returns in the daemon's network namespace; None: this process can't get there."""
        if self._process is None:
            return None
        try:
            if self._is_inside():
                return function()
            return hostnet.call_inside(str(self._process / "ns/net"), function)
        except OSError:
            return None

    @property
    def shares_network(self) -> bool:
        """Whether this process is known to be in the daemon's network namespace."""
        try:
            return self._process is not None and self._is_inside()
        except OSError:
            return False

    def _is_inside(self) -> bool:
        # Both are the same file in the same namespace; anybody may look, unlike at `ns/net`.
        theirs, own = Path(f"{self._process}/net/dev").stat(), Path("/proc/thread-self/net/dev").stat()
        return theirs.st_ino == own.st_ino

    def place(self, path: str) -> Path | None:
        """Where this process finds what the daemon knows as `path`; None: nowhere."""
        if self._root is None or not path.startswith("/"):
            return None
        try:
            place = self._root / path.lstrip("/")
            return place if place.exists() else None
        except OSError:
            return None


def _entries(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """Name and status of what an open folder holds, but for what vanishes meanwhile."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                yield entry.name, entry.stat(follow_symlinks=False)


def _daemon_pid(endpoint: str) -> int | None:
    """The process that listens on a socket (socket(7), SO_PEERCRED); the init system where it does so for it."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            probe.connect(endpoint)
            found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except (OSError, AttributeError):  # which only Linux has
        return None
    pid: int = struct.unpack("3i", found)[0]
    return pid or None
