"""The wait for a background operation of the daemon."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import MemberAway, OperationFailed, ServerRefused
from pytest_stagegbo.incus import dialect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.records import Reply

__all__ = ["wait"]

WAIT_SECONDS = 20
"""Length of one `/wait` request. The server would otherwise hold it for as long as it likes."""
PROGRESS_SECONDS = 5
"""Length of one `/wait` request where the caller wants to know the progress."""


def wait(
    connection: Connection, reply: Reply, what: str, timeout: float, on_progress: Callable[[str], None] | None
) -> Any:
    """Wait for an operation and return its metadata; see `Connection.wait`."""
    segments = [segment for segment in urlsplit(reply.operation).path.split("/") if segment][1:]  # below /1.0
    deadline = clocks.monotonic() + timeout
    progress = ""
    longest = WAIT_SECONDS if on_progress is None else PROGRESS_SECONDS
    while True:
        left = deadline - clocks.monotonic()
        portion = max(1, min(longest, int(left) + 1))
        try:
            answer = connection.request(
                "GET", (*segments, "wait"), params={"timeout": portion}, timeout=portion + 30.0, about=reply.about
            )
            operation = answer.metadata
        except MemberAway:
            raise
        except ServerRefused as error:
            if error.status == 404:
                return None
            if dialect.ended_like_a_command_that_is_missing(error):
                ended = (_state(connection, segments) or {}).get("metadata") or {}
                if "return" in ended:
                    return ended
            if not dialect.has_not_ended(error):
                raise
            operation = {"status": "Running", "status_code": 103}
            if on_progress is not None:
                operation = _state(connection, segments) or operation
        code = int(operation.get("status_code", 0))
        if code == 200:
            return operation.get("metadata")
        if code >= 400 and "return" in (operation.get("metadata") or {}):  # a command that ended with 126 or 127
            return operation["metadata"]
        if code >= 400:
            with connection.naming(reply.about):
                raise OperationFailed(f"{what} failed", seen=str(operation.get("err") or operation.get("status")))
        if on_progress is not None:
            seen = str((operation.get("metadata") or {}).get("fs_progress", ""))
            if seen != progress:
                progress, deadline = seen, clocks.monotonic() + timeout
                on_progress(seen)
                continue
        if left <= 0:
            raise OperationFailed(
                f"{what} did not end within {timeout:.0f} s",
                seen=f"operation {segments[-1]} is {operation.get('status')}",
                remedy="look at `incus operation list`; raise timeouts.operation if the pool is slow",
            )


def _state(connection: Connection, segments: Sequence[str]) -> Any:
    """The operation's state; None when the daemon has forgotten it."""
    with contextlib.suppress(ServerRefused):
        return connection.request("GET", segments).metadata
    return None
