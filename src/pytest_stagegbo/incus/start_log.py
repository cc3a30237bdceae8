"""Why a container could not be started, out of its own log: Incus's answer names only a program of its own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import OperationFailed, ServerRefused
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from pytest_stagegbo.incus.connection import Connection

__all__ = ["not_started"]

LINES = 10


def not_started(
    connection: Connection, project: str, name: str, error: OperationFailed | ServerRefused
) -> OperationFailed:
    """The error that names the container, with what its log says."""
    lines = [error.seen or error.message]
    with contextlib.suppress(OperationFailed, ServerRefused):
        log = connection.read_bytes("instances", name, "logs", "lxc.log", project=project).decode("utf-8", "replace")
        told = [line for line in log.splitlines() if " ERROR " in line][:LINES]  # the cause comes first
        lines += [f"lxc.log: {line.strip()}" for line in told or log.splitlines()[-LINES:]]
    return OperationFailed(
        f"container {name} of {project} could not be started",
        seen=mask("\n".join(lines)),
        remedy=f"all of the log: `incus info --show-log {name} --project {project}`. If the source has the same fault, "
        "mend it there; otherwise `stagegbo provision --recreate` makes the clone again",
    )
