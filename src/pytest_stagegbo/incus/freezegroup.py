"""Control groups of version 1 in which a container's processes are frozen, where this process may write to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.incus.hostview import HostView

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["freeze_group"]

PATIENCE = 0.2
"""Seconds for the kernel to freeze them. After that the daemon does it alone."""


def freeze_group(endpoint: str, project: str, name: str, init: int) -> bool:
    """Freeze the processes of a container before the daemon is asked to: it looks at once, then a second later.

    With control groups of version 1 a freeze by the daemon so takes a second if a process was not quick enough. Where
    everything is frozen already, it takes 7 ms, and the daemon knows of it. With version 2 it waits for an event.

    Args:
        init: The container's first process, by its number on the daemon's host.

    Returns:
        Whether the number is that of the container, as far as can be seen from here.
    """
    host = HostView(endpoint)
    try:
        groups = host.place(f"/proc/{init}/cgroup")
        lines = groups.read_text().splitlines() if groups is not None else []
        path = next((line.split(":", 2)[2] for line in lines if line.split(":", 2)[1] == "freezer"), "")
        # A number may be another process's by now, and nothing but a clone of the stage may be frozen.
        if not re.fullmatch(rf"/lxc\.payload\.{re.escape(project)}_{re.escape(name)}(-\d+)?", path):
            return not lines
        state = host.place(f"/sys/fs/cgroup/freezer{path}/freezer.state")
        if state is not None:
            _freeze(state)
    except (OSError, IndexError):  # this user may not, or the container has stopped
        pass
    return True


def _freeze(state: Path) -> None:
    state.write_text("FROZEN")
    deadline = clocks.monotonic() + PATIENCE
    while state.read_text().strip() != "FROZEN" and clocks.monotonic() < deadline:
        clocks.sleep(0.0005)  # a poll with a deadline: version 1 has no event for it
