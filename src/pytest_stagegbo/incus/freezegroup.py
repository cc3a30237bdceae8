"""Control groups of version 1 in which a container's processes are frozen, where this process may write to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.incus.hostview import HostView

__all__ = ["freeze_group", "is_of_clone", "path_of"]

PATIENCE = 0.2
"""Seconds for the kernel to freeze them. After that the daemon does it alone."""


def freeze_group(host: HostView, project: str, name: str, init: int) -> bool:
    """Freeze the processes of a container before the daemon is asked to: it looks at once, then a second later.

    With control groups of version 1 a freeze by the daemon so takes a second if a process was not quick enough. Where
    everything is frozen already, it takes 7 ms, and the daemon knows of it. With version 2 it waits for an event.

    Args:
        host: The daemon's, as far as this process may look at it.
        init: The container's first process, by its number on the daemon's host.

    Returns:
        Whether the number is that of the container, as far as can be seen from here.
    """
    if host.place("/proc") is None:
        return True
    try:
        groups = host.place(f"/proc/{init}/cgroup")
        path = None if groups is None else path_of(groups.read_text())
        if groups is None or not (path is None or is_of_clone(path, project, name)):
            return False
        if path is None:  # version 2
            return True
        state = host.place(f"/sys/fs/cgroup/freezer{path}/freezer.state")
        if state is not None:
            _freeze(state)
    except OSError:  # this user may not, or the container has stopped
        pass
    return True


def path_of(groups: str) -> str | None:
    """The control group of version 1 that freezes a process, of what `/proc/PID/cgroup` says; None: there is none."""
    found = (line.split(":", 2) for line in groups.splitlines())
    return next((parts[2] for parts in found if len(parts) == 3 and parts[1] == "freezer"), None)


def is_of_clone(path: str, project: str, name: str) -> bool:
    """Whether a control group is this clone's. A process's number may be another one's by now, and nothing but a clone
    of the stage may be frozen."""
    return re.fullmatch(rf"/lxc\.payload\.{re.escape(project)}_{re.escape(name)}(-\d+)?", path) is not None


def _freeze(state: Path) -> None:
    state.write_text("FROZEN")
    deadline = clocks.monotonic() + PATIENCE
    while state.read_text().strip() != "FROZEN" and clocks.monotonic() < deadline:
        clocks.sleep(0.0005)  # a poll with a deadline: version 1 has no event for it
