"""Back to the snapshot that provisioning took of the stopped clone: everything, whatever a test did to it.

Only clones that may be reset so have one: taking it costs half of what copying the clone does. Those of slots have
none: they are copied from their golden clone again.

The snapshot is of the clone as it was before its first boot, so that boot comes again: folders are emptied, services
start on the data as it was copied. That of a clone with hooks is of the moment after them, so that what they masked
stays masked. A hard stop, a restore and a boot take seconds.

A restore deletes the volume that there was. Where that makes production wait (`quotas.burdens`), the daemon brings back
the files that differ instead (`in_place`), and no volume is deleted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pytest_stagegbo.apply import in_place
from pytest_stagegbo.apply.removal import let_end
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import OperationFailed, ServerRefused, StageMissing
from pytest_stagegbo.incus.dialect import FIRST_START

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Instance, Reader, Writer
    from pytest_stagegbo.settings import Settings

__all__ = ["restore", "take_snapshot"]

log = logging.getLogger(__name__)


def take_snapshot(reader: Reader, writer: Writer, name: str) -> None:
    """Take the snapshot of a stopped clone that has its files and whose hooks were run. Does nothing when it exists."""
    if marks.SNAPSHOT not in reader.snapshots(writer.scope.project, name):
        writer.snapshot_instance(name, marks.SNAPSHOT)


def restore(reader: Reader, writer: Writer, settings: Settings, name: str, *, sparing: bool) -> None:
    """Stop the clone at once and bring it back to its snapshot; it is stopped then.

    Args:
        sparing: Delete no volume, if that can be.

    Raises:
        StageMissing: it has no such snapshot.
    """
    project = writer.scope.project
    snapshot = reader.snapshot(project, name, marks.SNAPSHOT)
    if snapshot is None:
        raise StageMissing(
            f"{name} in {project} has no snapshot {marks.SNAPSHOT} to go back to",
            seen=f"it was provisioned with another containers.{name}.reset, or somebody deleted the snapshot",
            remedy="run `stagegbo provision`; with --recreate if that finds nothing to do",
        )
    let_end(reader, settings, name)
    clone = reader.instance(project, name)
    noted = sparing and clone is not None and in_place.note_changes(writer, clone, snapshot)
    if clone is not None and clone.status not in {"Stopped", "Error"}:
        writer.set_state(name, "stop", force=True)
    if not (noted and clone is not None and _refresh(writer, clone, snapshot)):
        writer.restore_instance(name, marks.SNAPSHOT)
    # The snapshot is of a moment before this mark: whoever is killed here leaves a clone that provisioning replaces.
    writer.set_instance_config(name, {marks.STATE: marks.PREPARED, **FIRST_START})


def _refresh(writer: Writer, clone: Instance, snapshot: Instance) -> bool:
    """Bring back files and configuration of a stopped clone; whether that was done."""
    name = clone.name
    try:
        source = f"{name}/{marks.SNAPSHOT}"
        writer.refresh_instance(name, source, config={}, devices={}, project=clone.project)
        added = [key for key in clone.config.keys() - snapshot.config.keys() if not key.startswith("volatile.")]
        kept = {key: value for key, value in snapshot.config.items() if not key.startswith("volatile.")}
        writer.set_instance_config(name, {**dict.fromkeys(added, ""), **kept})
        devices = {device: {"type": "none"} for device in clone.devices}
        devices |= {device: dict(each) for device, each in snapshot.devices.items()}
        devices["root"] = dict(clone.devices["root"])  # whose limit may have been changed since
        if devices != clone.devices:
            writer.set_instance_devices(name, devices)
    except (OperationFailed, ServerRefused) as error:
        log.debug("%s: restored to its snapshot, since its files could not be brought back: %s", name, error)
        return False
    return True
