"""The lab's daemon: a real Incus in namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.lab import api, cgroups, namespace
from pytest_stagegbo.lab.command import PATH, remove_tree, run, write_atomic
from pytest_stagegbo.lab.namespace import Namespace
from pytest_stagegbo.lab.paths import FIRST

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.lab.paths import Paths

__all__ = ["Host"]

_START_SECONDS = 60.0
_POLL_SECONDS = 0.02
"""Between two looks, each up to a deadline: the daemon announces nothing before it answers."""
_SUN_PATH_MAX = 107  # bytes that the address of a Unix socket may have

# Runs as the first process of the lab's process namespace, in its own mount namespace. The root folder is
# entered with pivot_root: in a chroot the kernel refuses user namespaces, which every container needs.
_ENTER = """
set -eu
host=$1 lab=$2 cgroups=$3
root=$lab/root
mount --bind "$host" "$root"
mount -o remount,bind,ro "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount --rbind /dev dev
if [ "$cgroups" = own ]; then mount -t cgroup2 cgroup2 sys/fs/cgroup
else mount --rbind /sys/fs/cgroup sys/fs/cgroup; fi
mount --bind "$lab/incus" var/lib/incus
mount --bind "$lab/log" var/log
mount --bind "$lab/cache" var/cache
mount --bind "$lab/home" root
mkdir run/outside
pivot_root . run/outside
cd /
umount -l run/outside
rmdir run/outside
mkdir -p /var/log/incus /var/cache/incus
# tini ends when the daemon does, and the kernel ends a process namespace with its first process: containers
# never outlive their daemon, and one signal ends all of the lab.
exec tini -- /usr/libexec/incus/incusd --group root --logfile /var/log/incusd.log
"""
# GOGC: the daemon's heap is small and short-lived; collecting it as often as Go does by itself took a tenth of the time
# of this project's tests.
_DAEMON_ENV = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "INCUS_SECURITY_APPARMOR": "false", "GOGC": "400"}

# The client runs on the machine's own files (so that `incus file push` finds them) with the lab's libraries.
_CLIENT = """#!/bin/sh
[ -n "${{INCUS_CONF:-}}" ] || INCUS_CONF={conf}
export INCUS_CONF INCUS_SOCKET={socket}
exec {root}{loader} --library-path {libraries} {root}/usr/bin/incus "$@"
"""


# Counted per user, and all containers' root is one user of the machine. The kernel's defaults are enough for
# some twenty containers; at the next one systemd stops within a second of its start. Incus's own
# documentation recommends values like these for servers.
_LIMITS = {"fs/inotify/max_user_instances": 1024, "kernel/keys/maxkeys": 2000, "kernel/keys/maxbytes": 2000000}


def raise_limits(sysctl: Path = Path("/proc/sys")) -> None:
    """Raise the machine's limits for many containers where they are lower; never lower one."""
    for name, wanted in _LIMITS.items():
        # A machine that does not let go of a limit may still have room for the six.
        with contextlib.suppress(OSError, ValueError):
            if int((sysctl / name).read_text()) < wanted:
                (sysctl / name).write_text(str(wanted))


class Host:
    """Namespaces and daemon of one lab, or of one member of its cluster."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.namespace = Namespace(paths.netns_file)

    @property
    def name(self) -> str:
        """What its cluster calls it."""
        return self.paths.member or FIRST

    def answers(self) -> bool:
        """Whether the daemon answers at its socket, right now."""
        try:
            return bool(api.get(self.paths.socket, "/1.0", timeout=5)["environment"]["server_version"])
        except (OSError, KeyError):
            return False

    def launch(self, wire: Callable[[], None] | None = None) -> None:
        """Start the daemon, and bring whatever is left of an earlier one down. `wait` has to follow.

        Args:
            wire: Called when the network namespace is there and nothing is in it.
        """
        paths = self.paths
        if len(os.fsencode(paths.socket)) > _SUN_PATH_MAX:
            remedy = "shorten STAGEGBO_LAB_DIR"
            raise LabError(f"the path of the lab's socket is too long: {paths.socket}", remedy=remedy)
        self.end()
        for folder in (paths.root, paths.incus, paths.home, paths.bin, paths.lab / "log", paths.lab / "cache"):
            folder.mkdir(parents=True, exist_ok=True)
        paths.socket.unlink(missing_ok=True)
        raise_limits()
        self._write_client()
        self.namespace.create(paths.log)
        self.namespace.clear(paths.log)
        if wire is not None:
            wire()
        inner = ["/bin/sh", "-c", _ENTER, "lab", str(paths.host_root), str(paths.lab), self._cgroups()]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--propagation", "private"]
        with (paths.lab / "log" / "start.log").open("wb") as output:
            # setsid --fork: the lab must not be a child of this process, which may end before it, or wait for it.
            subprocess.run(
                ["setsid", "--fork", "nsenter", f"--net={paths.netns_file}", "--", *unshare, "--", *inner],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_DAEMON_ENV,
                cwd="/",
                check=True,
            )

    def end(self) -> None:
        """Kill the daemon and its containers, and wait until the kernel has let go of the pool."""
        init = self.namespace.init()
        if init is not None:
            self.note()
            namespace.kill([init])
        for image in self.paths.pool_images():
            namespace.wait_detached(image)
        cgroups.sweep(self.paths.cgroups)

    def note(self) -> None:
        """Remember what a later `end` could no longer find out, should somebody else kill the lab."""
        if (init := self.namespace.init()) is not None:
            cgroups.record(self.paths.cgroups, init)

    def incus(
        self, *arguments: str, what: str, stdin: str | None = None, timeout: float = 300, inside: bool = False
    ) -> str:
        """Run the `incus` client against the lab and return what it printed.

        Args:
            inside: In the lab's network: where a daemon joins a cluster, the client itself connects to the member that
                it has the address of.
        """
        argv = [str(self.paths.bin / "incus"), *arguments]
        if inside:
            argv = ["nsenter", f"--net={self.paths.netns_file}", "--", *argv]
        return run(argv, log=self.paths.log, what=what, stdin=stdin, timeout=timeout, env={"INCUS_CONF": ""})

    def discard(self) -> None:
        """Delete the daemon's database, pool and images. Only while it is down."""
        remove_tree(self.paths.incus)

    def wait(self, seconds: float = _START_SECONDS) -> None:
        """Wait until the daemon answers.

        Raises:
            LabError: it did not in time.
        """
        deadline = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() > deadline or (self.namespace.init() is None and self._ended_at_once()):
                raise LabError(
                    "the lab's Incus did not come up",
                    seen=self._last_lines(),
                    remedy=f"see {self.paths.daemon_log} and {self.paths.lab / 'log' / 'start.log'}",
                )
            time.sleep(_POLL_SECONDS)  # a poll with a deadline: a socket that nobody listens on tells nothing

    def _ended_at_once(self) -> bool:
        """The first process shows up some milliseconds after it was asked for, so one look is not enough."""
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            if self.namespace.init() is not None or self.answers():
                return False
            time.sleep(_POLL_SECONDS)  # a poll with a deadline, of another's process
        return True

    def _last_lines(self) -> str:
        lines: list[str] = []
        for file in (self.paths.lab / "log" / "start.log", self.paths.daemon_log):
            with contextlib.suppress(OSError):
                lines += file.read_text(errors="replace").splitlines()[-8:]
        return "\n".join(lines) or "no log"

    def _cgroups(self) -> str:
        """Incus 7 wants version 2 alone: where the machine has version 1 as well, the lab mounts its own."""
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        return "machine" if unified or self.paths.version == "6.0" else "own"

    def _write_client(self) -> None:
        root = self.paths.host_root
        loaders = sorted((root / "usr/lib64").glob("ld-linux*")) or sorted((root / "usr/lib").glob("*/ld-linux*"))
        if not loaders:
            raise LabError(
                f"{root} has no dynamic loader", remedy="run `stagegbo lab down --purge`, then `stagegbo lab up`"
            )
        libraries = root / "usr/lib" / f"{platform.machine()}-linux-gnu"
        text = _CLIENT.format(
            socket=shlex.quote(str(self.paths.socket)),
            conf=shlex.quote(str(self.paths.home / ".config/incus")),
            root=shlex.quote(str(root)),
            loader=f"/{loaders[0].relative_to(root)}",
            libraries=shlex.quote(str(libraries)),
        )
        write_atomic(self.paths.bin / "incus", text, mode=0o755)
