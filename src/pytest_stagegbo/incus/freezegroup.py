"""Control groups in which a container's processes are frozen, where this process may write to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.incus.hostview import HostView

__all__ = ["file_of", "freeze_group"]

PATIENCE = 0.2
"""Seconds for the kernel to freeze them. After that the daemon does it alone."""


def freeze_group(host: HostView, project: str, name: str, init: int) -> bool:
    """Freeze the processes of a container before the daemon is asked to. The kernel takes 2 ms for it.

    The daemon does not know of it: its own freeze comes next, which then takes 7 ms. By itself it takes a second with
    control groups of version 1 if a process was not quick enough, since it looks at once and then a second later. With
    version 2 it waits for an event; but a busy daemon is slower than a container that fills a disk.

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
        path = None if groups is None else file_of(groups.read_text(), project, name)
        if path is None:
            return False
        file = host.place(path)
        if file is not None:
            _freeze(file)
    except OSError:  # this user may not, or the container has stopped
        pass
    return True


def file_of(groups: str, project: str, name: str) -> str | None:
    """The file that freezes a clone's control group, of what `/proc/PID/cgroup` says of its first process.

    None unless the group is this clone's: a process's number may be another one's by now, and nothing but a clone of
    the stage may be frozen.
    """
    lines = [line.split(":", 2) for line in groups.splitlines()]
    paths = {parts[1]: parts[2] for parts in lines if len(parts) == 3}
    group = rf"/lxc\.payload\.{re.escape(project)}_{re.escape(name)}(-\d+)?"
    if re.fullmatch(group, paths.get("freezer", "")):
        return f"/sys/fs/cgroup/freezer{paths['freezer']}/freezer.state"
    found = re.match(rf"{group}(?=/|$)", paths.get("", ""))  # systemd's own processes are in a group below it
    return f"/sys/fs/cgroup{found[0]}/cgroup.freeze" if found and ".." not in paths[""] else None


def _freeze(file: Path) -> None:
    first = file.name == "freezer.state"
    state, said = (file, "FROZEN") if first else (file.with_name("cgroup.events"), "frozen 1")
    file.write_text("FROZEN" if first else "1")
    deadline = clocks.monotonic() + PATIENCE
    while said not in state.read_text() and clocks.monotonic() < deadline:
        clocks.sleep(0.0005)  # a poll with a deadline: version 1 has no event for it
