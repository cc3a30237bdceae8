"""Back to the snapshot that provisioning took of the stopped clone: everything, whatever a test did to it.

Only clones that may be reset so have one: taking it costs half of what copying the clone does. Those of slots have
none: they are copied from their golden clone again.

The snapshot is of the clone as it was before its first boot, so that boot comes again: folders are emptied, services
start on the data as it was copied. That of a clone with hooks is of the moment after them, so that what they masked
stays masked. A hard stop, a restore and a boot take seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.engine import marks
from pytest_stagegbo.errors import StageMissing
from pytest_stagegbo.incus.dialect import FIRST_START

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader, Writer

__all__ = ["restore", "take_snapshot"]


def take_snapshot(reader: Reader, writer: Writer, name: str) -> None:
    """Of a stopped clone that has its files, and whose hooks were run. One that is there already serves as well."""
    if marks.SNAPSHOT not in reader.snapshots(writer.scope.project, name):
        writer.snapshot_instance(name, marks.SNAPSHOT)


def restore(reader: Reader, writer: Writer, name: str) -> None:
    """Stop the clone at once and bring it back to its snapshot; it is stopped then.

    Raises:
        StageMissing: it has no such snapshot.
    """
    project = writer.scope.project
    if marks.SNAPSHOT not in reader.snapshots(project, name):
        raise StageMissing(
            f"{name} in {project} has no snapshot {marks.SNAPSHOT} to go back to",
            seen=f"it was provisioned with another containers.{name}.reset, or somebody deleted the snapshot",
            remedy="run `stagegbo provision`; with --recreate if that finds nothing to do",
        )
    clone = reader.instance(project, name)
    if clone is not None and clone.status not in {"Stopped", "Error"}:
        writer.set_state(name, "stop", force=True)
    writer.restore_instance(name, marks.SNAPSHOT)
    # The snapshot is of a moment before this mark: whoever is killed here leaves a clone that provisioning replaces.
    writer.set_instance_config(name, {marks.STATE: marks.PREPARED, **FIRST_START})
