"""The lab's network namespace: making it, joining it, finding who is in it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.lab.command import PATH, run

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Namespace"]

_GONE_SECONDS = 20.0
_POLL_SECONDS = 0.02
"""Between two looks, each up to a deadline: the kernel tells nobody that another's child or a loop device is gone."""


class Namespace:
    """A named network namespace, as `ip netns` makes them."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def exists(self) -> bool:
        """Whether the name stands for a namespace (an interrupted `ip netns add` leaves an empty file)."""
        try:
            return self.file.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
        except OSError:
            return False

    def create(self, log: Path) -> None:
        """Make it, with nothing but a loopback interface in it."""
        if self.exists():
            return
        name = self.file.name
        if self.file.exists():
            self.file.unlink()
        run(["ip", "netns", "add", name], log=log, what="making the lab's network namespace")
        run(["ip", "-n", name, "link", "set", "lo", "up"], log=log, what="bringing up loopback in the lab")

    def delete(self, log: Path) -> None:
        """Take the name away; the kernel ends the namespace when its last process has gone."""
        if self.exists():
            run(["ip", "netns", "del", self.file.name], log=log, what="deleting the lab's network namespace")

    def clear(self, log: Path) -> None:
        """Delete every interface but loopback: bridges outlive the daemon that made them."""
        name = self.file.name
        listed = run(["ip", "-n", name, "-j", "link", "show"], log=log, what="listing the lab's interfaces")
        for link in json.loads(listed or "[]"):
            if link["ifname"] != "lo":
                # Errors are no news: one end of a pair goes with the other.
                argv = ["ip", "-n", name, "link", "delete", link["ifname"]]
                subprocess.run(argv, capture_output=True, check=False, env={"PATH": PATH})

    def members(self) -> list[int]:
        """Ids of the processes whose main thread is in the namespace."""
        if not self.exists():
            return []
        inode = self.file.stat().st_ino
        found = []
        for name in os.listdir("/proc"):  # noqa: PTH208 - a machine may have thousands
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}/ns/net").st_ino == inode:  # noqa: PTH116
                        found.append(int(name))
        return found

    def init(self) -> int | None:
        """The process that all of the lab ends with: the first one of the lab's process namespace.

        The first process of a container is in this network too until LXC has given it one of its own: it is one level
        deeper.
        """
        depth = len(_pids(os.getpid())) + 1
        for pid in self.members():
            with contextlib.suppress(OSError):
                pids = _pids(pid)
                if len(pids) == depth and pids[-1] == "1":
                    return pid
        return None


def kill(pids: Iterable[int]) -> None:
    """Kill processes (with -9) and wait until they are gone. This process and its ancestors are spared.

    Raises:
        LabError: one of them would not go.
    """
    spared = set(_ancestors())
    left = [(pid, start) for pid in pids if pid not in spared and (start := _start_time(pid)) is not None]
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _GONE_SECONDS
    while left := [(pid, start) for pid, start in left if _start_time(pid) == start]:
        if time.monotonic() > deadline:
            raise LabError(
                "processes of the lab could not be ended",
                seen=", ".join(f"pid {pid}" for pid, _ in left),
                remedy="see what they wait for: cat /proc/PID/stack",
            )
        time.sleep(_POLL_SECONDS)  # a poll with a deadline: they are no children of this process


def wait_detached(image: Path) -> None:
    """Wait until no loop device holds a pool's file: mounting it twice is refused by btrfs.

    Raises:
        LabError: a device still holds it.
    """
    deadline = time.monotonic() + _GONE_SECONDS
    while image.exists():
        command = ["losetup", "--noheadings", "--output", "NAME", "--associated", str(image)]
        seen = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": PATH}).stdout.strip()
        if not seen:
            return
        if time.monotonic() > deadline:
            raise LabError(
                "a pool of the lab is still in use",
                seen=f"{seen} has {image}",
                remedy="run `stagegbo lab down`, then try again",
            )
        time.sleep(_POLL_SECONDS)  # a poll with a deadline: the kernel lets go of loop devices later


def _pids(pid: int) -> list[str]:
    """A process's ids, one for each process namespace that it is in. That of this process's own namespace is first."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:]
    return []


def _ancestors() -> Iterable[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        try:
            pid = int(_stat_fields(pid)[1])
        except OSError:
            return


def _start_time(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; None if it is gone (or dead and not yet reaped)."""
    try:
        fields = _stat_fields(pid)
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _stat_fields(pid: int) -> list[str]:
    # The name, in parentheses, may hold spaces and parentheses itself.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
