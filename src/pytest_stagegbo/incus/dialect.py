"""What one server does differently from another: between Incus's long-term lines, and before and after them.

Callers say what they want; what a server refuses, ignores or calls by another name is known here and to the writer,
and to nobody else. The server's own list of API extensions decides, or else its answer. Its version is for people: it
tells the lines that the tests run on from the rest (`docs/versions.md` says what differs on each).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.errors import ServerUnreachable

if TYPE_CHECKING:
    from pytest_stagegbo.errors import OperationFailed, ServerRefused, StageGboError
    from pytest_stagegbo.incus.records import Server

__all__ = [
    "FIRST_START",
    "LOW_LEVEL",
    "NEEDED",
    "TESTED",
    "SupportLevel",
    "as_template",
    "file_headers",
    "is_busy",
    "is_full",
    "is_stopped_already",
    "knows_no",
    "lost_its_volume",
    "over_quota",
    "refuses_low_level",
    "refuses_own_networks",
    "remedy",
    "require",
    "support_level",
]

TESTED = {"6.0": "6.0.4", "7.0": "7.0.2"}
"""The long-term lines, each with the release that the tests run on."""

NEEDED = {
    "container_copy_project": "copies from one project to another",
    "instance_allow_inconsistent_copy": "copies that do not freeze production",
    "projects_restrictions": "a project that keeps clones from the host",
    "projects_networks_restricted_access": "a project that sees no bridge but its own",
    "network_bridge_acl": "an access list on the stage's bridge",
    "container_exec_recording": "what a command in a clone printed",
    "storage_volume_state": "how much of its pool a clone uses",
    "image_template_permissions": "the program that a clone boots with",
}
"""API extensions that the stage is built on, and what each is for. Every release since 6.0 has them."""

FIRST_START = {"volatile.apply_template": "stagegbo"}
"""Configuration of a new instance: at its next start Incus writes the files of its metadata that name this word, and
forgets it. Those of production's image name others (`create`, `copy`). An instance that is restored to a snapshot gets
the key back. Restricted projects allow it."""

LOW_LEVEL = "restricted.containers.lowlevel"
"""The restriction that has to be lifted for a copy that takes low-level keys away. Which keys it means differs:
7.0 has added `limits.memory.oom_priority`, `security.bpffs.*` and `security.selinux.*`."""


class SupportLevel(Struct, frozen=True):
    """How a server stands to what was tested."""

    tested: bool
    text: str
    remedy: str = ""


def support_level(version: str) -> SupportLevel:
    """What is known of a release of Incus, for people."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    line = numbers[0] if numbers else ""
    if line in TESTED:
        return SupportLevel(True, f"long-term line {line}, tested with {TESTED[line]}")
    lines = " and ".join(TESTED)
    newest = max(tuple(map(int, tested.split("."))) for tested in TESTED)
    if numbers is None:
        what = "an unknown release"
    elif (int(numbers[1]), int(numbers[2])) > newest:
        what = "newer than what was tested"
    else:
        what = "none of the long-term lines"
    return SupportLevel(
        False,
        f"{what}; the tests run on {lines}. It has every API extension that is needed",
        f"read a --dry-run before the first provision, and report what differs; {lines} are supported",
    )


def require(server: Server, endpoint: str) -> None:
    """Whether a stage can be built on this server.

    Raises:
        ServerUnreachable: it is not Incus, or lacks an API extension that is needed.
    """
    supported = " and ".join(TESTED)
    if server.kind != "incus":
        raise ServerUnreachable(
            f"the daemon at {endpoint} is not Incus",
            seen=f"it calls itself {server.kind or 'nothing'} {server.version}".rstrip(),
            remedy=f"pytest-stagegbo works with Incus {supported}; LXD is another product since 2023. Name Incus's "
            "socket with the setting incus.endpoint; `lxd-to-incus` moves a host from LXD to Incus",
        )
    missing = [f"{name} ({what})" for name, what in NEEDED.items() if name not in server.extensions]
    if missing:
        raise ServerUnreachable(
            f"Incus {server.version} at {endpoint} lacks API extensions that a stage is built on",
            seen="missing: " + ", ".join(missing),
            remedy=f"use a release of Incus {supported}",
        )


# -- answers


def refuses_own_networks(error: ServerRefused) -> bool:
    """Whether a project was refused since its networks would be its own (`features.networks`).

    Those would be OVN's. 7.0.2 and later refuse the project where there is no OVN; earlier ones refuse only networks.
    No API extension tells which.
    """
    return "OVN" in error.seen


def refuses_low_level(error: OperationFailed | ServerRefused) -> bool:
    """Whether a request was refused for a key that restricted projects may not name, not even to take it away."""
    return "low-level" in error.seen or "volatile." in error.seen


def over_quota(error: OperationFailed | ServerRefused) -> bool:
    """Whether a storage driver refused a limit that is below what is already there; btrfs and ZFS say it in words of
    their own."""
    return any(words in error.seen for words in ("Disk quota exceeded", "quota", "qgroup limit"))


def is_full(error: OperationFailed | ServerRefused) -> bool:
    """Whether a pool, or the file system below it, had no room left while something was copied."""
    return "No space left on device" in error.seen


def lost_its_volume(error: OperationFailed | ServerRefused) -> bool:
    """Whether an instance has no files: the daemon was killed while it made them, and left only its records (6.0.4)."""
    return "exists in database but not on storage" in error.seen


def is_busy(error: OperationFailed | ServerRefused) -> bool:
    """Whether an earlier operation on the same instance has not ended, or has ended while this one waited for it.

    One that is being started is Stopped for a moment still: a deletion is refused then since the instance runs. And
    one that is being deleted is there until it is not: who looks again sees that.
    """
    words = (
        "Instance is busy running",
        "matching non-reusable operation",
        "Instance is running",
        "Instance not found",
    )
    return any(each in error.seen for each in words)


def runs_already(error: OperationFailed | ServerRefused) -> bool:
    """Whether a start was refused since another one, asked for before, has ended well meanwhile."""
    return "instance is already running" in error.seen


def is_stopped_already(error: OperationFailed | ServerRefused) -> bool:
    """Whether a stop was refused since another one, asked for before, has ended well meanwhile."""
    return "is already stopped" in error.seen or "container is not running" in error.seen


def lost_an_interface(error: ServerRefused) -> bool:
    """Whether a network could not be made or deleted since an interface of the host that has nothing to do with it
    vanished while the daemon looked at them all: that of a container that starts or stops. Nothing was done (6.0.4)."""
    return "Failed to delete bridge children interfaces" in error.seen and "does not exist" in error.seen


def lost_another_acl(error: ServerRefused) -> bool:
    """Whether a request for an access list failed since another one was deleted while the daemon looked for what uses
    this one. The status is 404 then, as if this one were missing (6.0.4). Nothing was done."""
    return re.search("Failed getting ACL (network )?usage", error.seen) is not None


def lacks_permission(error: ServerRefused) -> bool:
    """Whether this client may not use the project that it asked for. 6.0 says so of a list in an internal error."""
    return "does not have permission" in error.seen


def exists_already(error: ServerRefused) -> bool:
    """Whether an object was not created since there is one of that name. 6.0 says so in an internal error."""
    return "already exists" in error.seen or "UNIQUE constraint" in error.seen


def is_not_empty(error: ServerRefused) -> bool:
    """Whether a project was not deleted since something is in it."""
    return "Only empty projects can be removed" in error.seen


def has_not_ended(error: ServerRefused) -> bool:
    """Whether an operation was still going on when the time was up that the server was to wait for it.

    6.0 says so in an error, under HTTP status 200.
    """
    return "context deadline exceeded" in error.seen


def ended_like_a_command_that_is_missing(error: ServerRefused) -> bool:
    """Whether a command in an instance ended with status 126 or 127, its own or for there being no such program. The
    operation counts as failed then, and has the command's status and output all the same."""
    return "Command not found" in error.seen or "Command not executable" in error.seen


def could_not_tell_a_member(error: StageGboError) -> bool:
    """Whether something was not done since a member of the cluster could not be told of it; its address is named."""
    return "notify peer" in error.seen


def remedy(status: int, text: str) -> str:
    """What to do about a refusal, where that is the same whatever was asked for."""
    if status == 403 and ("restricted" in text.lower() and "certificate" in text.lower()):
        return (
            "this client's certificate is restricted to some projects: a stage needs a project, a bridge and an access "
            "list of its own. On the server, `incus config trust edit` takes the restriction away"
        )
    if "isn't ready yet" in text:
        return "the daemon is only starting; or, on a cluster, the member that has it is away: see `incus cluster list`"
    if "notify peer" in text or "cluster member is offline" in text.lower():
        return (
            "Incus does this on all members of the cluster, or not at all: bring the one back that is away or only "
            "starting (`incus cluster list`), then run this again. If it is gone for good: `incus cluster remove "
            "--force NAME`"
        )
    return ""


def knows_no(error: ServerRefused) -> bool:
    """Whether a kind of object was asked for that is not there, or that this network or server can't have."""
    return error.status == 404 or "not support" in error.seen


# -- requests


def as_template(text: str) -> str:
    """A text that Incus's template engine (pongo2) renders as it is. Pure."""
    return re.sub(r"\{(?=[{%#])", "{% templatetag openbrace %}", text)


def file_headers(**values: str) -> dict[str, str]:
    """Type, owner and mode of a file, under both names: 7.0.1, 7.2 and later ignore LXD's, and would make a file of
    a folder. 6.0 knows both. No API extension tells which."""
    return {f"X-{product}-{key}": value for product in ("Incus", "LXD") for key, value in values.items()}
