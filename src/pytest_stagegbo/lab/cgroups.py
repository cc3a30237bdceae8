"""Control groups of containers that were killed: nobody removes them, so the lab removes its own."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.lab.command import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["container_groups", "record", "sweep"]

_ROOT = Path("/sys/fs/cgroup")


def record(file: Path, init: int) -> None:
    """Note in `file` which groups the lab's processes are in; `init` is the one that all others stem from."""
    names = set(_noted(file))
    for pid in _descendants(init):
        with contextlib.suppress(OSError):
            names.update(container_groups(Path(f"/proc/{pid}/cgroup").read_text()))
    write_atomic(file, json.dumps(sorted(names)))


def container_groups(text: str) -> Iterator[str]:
    """The groups of containers that a process is in, by its `/proc/PID/cgroup`: paths below the root of a hierarchy.

    A container's group lies in that of whoever started the lab, which differs from one hierarchy to the next.
    """
    for line in text.splitlines():
        parts = line.split(":", 2)[2].strip("/").split("/")
        for number, part in enumerate(parts, 1):
            if part.startswith(("lxc.monitor.", "lxc.payload.")):
                yield "/".join(parts[:number])
                break


def sweep(file: Path) -> None:
    """Remove the noted groups that no process is in any more, and forget them."""
    for name in _noted(file):
        for top in [_ROOT / name, *_ROOT.glob(f"*/{name}")]:
            if top.is_dir() and not _in_use(top):
                for folder, _, _ in os.walk(top, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(folder).rmdir()
    file.unlink(missing_ok=True)


def _noted(file: Path) -> list[str]:
    try:
        noted: list[str] = json.loads(file.read_text())
    except (OSError, ValueError):
        return []
    return noted


def _in_use(top: Path) -> bool:
    for folder, _, _ in os.walk(top):
        with contextlib.suppress(OSError):
            if (Path(folder) / "cgroup.procs").read_text().strip():
                return True
    return False


def _descendants(init: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, left = set(), [init]
    while left:
        pid = left.pop()
        found.add(pid)
        left += children.get(pid, [])
    return found
