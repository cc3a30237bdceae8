"""Requests that failed because the cluster member that they are about is away.

The daemon's own words name no member (`Server isn't ready yet`), and the cluster counts a member as online until 20 s
after its last sign of life. So once a request has failed, and only then, the cluster is asked where the instance is,
and the daemon there whether it answers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_stagegbo.errors import MemberAway, ServerRefused, ServerUnreachable, StageGboError
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.records import Member

if TYPE_CHECKING:
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.records import About

__all__ = ["SILENT", "member_away", "members", "named", "why_away"]

SILENT = "does not answer"
_PATIENCE = 10.0
"""Seconds that a member has for an answer. A host that is gone refuses nothing: the kernel gives up after 3 s."""


def members(connection: Connection) -> tuple[Member, ...]:
    """The members of a cluster, by name."""
    found = [
        Member(each["server_name"], each.get("status", ""), urlsplit(each.get("url", "")).hostname or "")
        for each in connection.get("cluster", "members", recursion=1)
    ]
    return tuple(sorted(found, key=lambda member: member.name))


def why_away(connection: Connection, name: str) -> str:
    """In words, why nothing can be done on a member: it `is offline`, `is evacuated` or `does not answer`. Empty:
    something can."""
    member = next((each for each in members(connection) if each.name == name), None)
    if member is None or not member.is_usable:
        return f"is {member.status.lower()}" if member is not None else ""
    if name == connection.server().name:
        return ""
    try:
        connection.request("GET", ("cluster", "members", name, "state"), timeout=_PATIENCE)
    except ServerRefused as error:
        return SILENT if error.status >= 500 else ""  # a client that may not ask gets an answer, too
    except ServerUnreachable:
        return SILENT
    return ""


def named(connection: Connection, about: About, error: StageGboError) -> StageGboError:
    """The error to raise for a request to a cluster that failed: `MemberAway` where its member is away, else `error`.

    Args:
        about: Of the request, or of the one that began the operation that failed.
    """
    if isinstance(error, ServerRefused) and (error.status < 500 or isinstance(error, MemberAway)):
        return error  # what is refused for a reason of its own was looked at
    try:
        member = _member(connection, about, error)
        state = why_away(connection, member) if member else ""
    except StageGboError:  # the first error says more than that of a question about it
        return error
    if not state:
        return error
    return member_away(member, state, str(about.params.get("project", "")), error)


def _member(connection: Connection, about: About, error: StageGboError) -> str:
    """The member that a request is about, or that it failed for; empty: it is about no single one, or about what is on
    none."""
    if dialect.could_not_tell_a_member(error):  # a bridge is made on all of them
        found = (each for each in members(connection) if re.search(rf"\b{re.escape(each.address)}\b", error.seen))
        return next((each.name for each in found), "")
    if "target" in about.params:
        return str(about.params["target"])
    if len(about.path) < 2 or about.path[0] != "instances":
        return ""
    listed = connection.get("instances", recursion=1, project=about.params.get("project", "default"))
    return next((str(each.get("location", "")) for each in listed if each["name"] == about.path[1]), "")


def member_away(
    member: str, state: str, project: str, error: StageGboError | None = None, seen: str = ""
) -> MemberAway:
    """The error about a member that is away.

    Args:
        state: What `why_away` says.
        project: Which is on it; empty: it does not matter which.
        error: What showed it.
    """
    what = f"{project} is on cluster member {member}, which" if project else f"cluster member {member}"
    verb = "restore" if state == "is evacuated" else "start"
    return MemberAway(
        f"{what} {state}",
        status=error.status if isinstance(error, ServerRefused) else 0,
        seen=". ".join(filter(None, (error.message, error.seen))) if error is not None else seen,
        remedy=f"{verb} that member (see `incus cluster list`): what is on it is there again then. Stages and slots on "
        f"other members go on meanwhile. If it is gone for good: `incus cluster remove --force {member}`, then "
        "`stagegbo provision`",
    )
