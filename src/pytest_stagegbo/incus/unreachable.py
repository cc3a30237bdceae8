"""What to say of a daemon that does not answer, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.errors import ServerUnreachable
from pytest_stagegbo.incus import remote

if TYPE_CHECKING:
    from pytest_stagegbo.settings import IncusSettings

__all__ = ["unreachable"]

_SHOWN_CHARACTERS = 200


def unreachable(
    settings: IncusSettings, endpoint: str, request: str, error: Exception, seconds: float
) -> ServerUnreachable:
    """The error for a request without an answer.

    Args:
        endpoint: The daemon's socket, or its URL.
        request: Method and path.
        seconds: For which it was waited.
    """
    text, is_remote = str(error), endpoint.startswith("https://")
    trouble = remote.certificate_trouble(settings, endpoint, text) if is_remote else None
    if trouble is not None:
        return trouble
    if is_remote:
        remedy = (
            "check the address and what is in between; on the server, `incus config get core.https_address` says "
            "where it listens"
        )
    elif "Permission denied" in text:
        remedy = "run as root or as a member of group incus-admin (which is as good as root on this machine)"
    elif "No such file" in text or "Connection refused" in text:
        remedy = "start the daemon, or name another with the setting incus.endpoint; `stagegbo doctor` says more"
    elif "timed out" in text.lower():
        remedy = "the daemon is overloaded or stuck: look at `incus operation list` and its log"
    else:
        remedy = "`stagegbo doctor` says more"
    return ServerUnreachable(
        f"the Incus daemon at {endpoint} did not answer {request}",
        seen=f"{text[:_SHOWN_CHARACTERS]} (after {seconds:.1f} s)",
        remedy=remedy,
    )
