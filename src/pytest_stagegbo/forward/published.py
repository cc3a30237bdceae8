"""Ports that commands `forward` of this machine keep open at this moment, for programs that are started beside them."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from pytest_stagegbo import notes
from pytest_stagegbo.processes import born

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Ports = Mapping[tuple[str, int], int]

__all__ = ["publish", "published", "withdraw"]


def publish(folder: Path, ports: Ports) -> None:
    """Say that this process has these ports, by container and port of it.

    Args:
        folder: Of the stage's locks.
    """
    entry = {"pid": os.getpid(), "born": born(os.getpid()), "ports": [[*target, own] for target, own in ports.items()]}
    temporary = _note(folder).with_suffix(".new")
    with contextlib.suppress(OSError):  # others then don't know of it
        notes.write(temporary, json.dumps(entry))
        temporary.replace(_note(folder))


def withdraw(folder: Path) -> None:
    with contextlib.suppress(OSError):
        _note(folder).unlink(missing_ok=True)


def published(folder: Path) -> Ports:
    """What processes that live have published."""
    found = {}
    for note in sorted(folder.glob("*.forward")):
        try:
            entry = json.loads(notes.read(note))
            os.kill(int(entry["pid"]), 0)  # raises `ProcessLookupError` where nothing tells when a process began
            if born(int(entry["pid"])) != entry["born"]:
                note.unlink()  # of a process that was killed, and its ports with it
                continue
            found.update({(str(name), int(port)): int(own) for name, port, own in entry["ports"]})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _note(folder: Path) -> Path:
    return folder / f"{os.getpid()}.forward"
