"""Back to the snapshot that provisioning took of the stopped clone: everything, whatever a test did to it.

The snapshot is of the clone as it was before its first boot, so that boot comes again: folders are emptied, services
start on the data as it was copied. A hard stop, a restore and a boot take seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.engine import marks
from pytest_stagegbo.errors import StageMissing

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader, Writer

__all__ = ["SNAPSHOT", "restore", "take_snapshot"]

SNAPSHOT = "stagegbo-clean"
"""Of the first one; each restore takes another, with a number."""


def take_snapshot(reader: Reader, writer: Writer, name: str) -> None:
    """Of a clone that has its files and was never started. One that a killed run took already serves as well."""
    if not _snapshots(reader, writer, name):
        writer.snapshot_instance(name, SNAPSHOT)


def restore(reader: Reader, writer: Writer, name: str) -> None:
    """Stop the clone at once and bring it back to its snapshot; it is stopped then.

    Incus gives a restored instance a new `volatile.uuid.generation`, and in a restricted project refuses a restore
    that would change that. So each restore is of the latest snapshot, and takes one for the next.

    Raises:
        StageMissing: it has no such snapshot.
    """
    project = writer.scope.project
    taken = _snapshots(reader, writer, name)
    if not taken:
        raise StageMissing(
            f"{name} in {project} has no snapshot {SNAPSHOT} to go back to",
            seen="it was provisioned by an earlier version, or somebody deleted the snapshot",
            remedy="make the clone anew with `python -m pytest_stagegbo provision --recreate`",
        )
    clone = reader.instance(project, name)
    if clone is not None and clone.status not in {"Stopped", "Error"}:
        writer.set_state(name, "stop", force=True)
    number = max(taken)
    writer.restore_instance(name, taken[number])
    writer.snapshot_instance(name, f"{SNAPSHOT}-{number + 1}")
    for old in taken.values():
        writer.delete_snapshot(name, old)
    # The snapshot is of a moment before this mark: whoever is killed here leaves a clone that provisioning replaces.
    writer.set_instance_config(name, {marks.STATE: marks.PREPARED})


def _snapshots(reader: Reader, writer: Writer, name: str) -> dict[int, str]:
    """This tool's, by number; a later one is as good as the one that it was taken after restoring."""
    found = {}
    for each in reader.snapshots(writer.scope.project, name):
        number = each.removeprefix(SNAPSHOT).removeprefix("-") if each.startswith(SNAPSHOT) else "-"
        if not number or number.isdigit():
            found[int(number or 0)] = each
    return found
