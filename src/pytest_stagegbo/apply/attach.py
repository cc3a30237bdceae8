"""Putting a clone on the stage's bridge again, after the bridge or the clone's network device was taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired.allowlist import clone_nic
from pytest_stagegbo.errors import OperationFailed

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Instance, Writer
    from pytest_stagegbo.plan.steps import AttachClone
    from pytest_stagegbo.settings import Settings

__all__ = ["attach"]

STOP_SECONDS = 10
"""How long a clone that was cut off from its network may take to end cleanly."""


def attach(writer: Writer, clone: Instance, step: AttachClone, settings: Settings, *, managed: bool) -> None:
    """Stop the clone and give it the stage's network device, as far as it lacks that. Its next start connects it.

    Incus connects a device when it is added or its instance starts, and never again. A device that is added to a
    running clone comes without the addresses and routes that the clone's boot sets up, hence the stop.
    """
    if clone.is_running:
        try:
            writer.set_state(clone.name, "stop", seconds=STOP_SECONDS)
        except OperationFailed:
            writer.set_state(clone.name, "stop", force=True)
    elif clone.status != "Stopped":
        writer.set_state(clone.name, "stop", force=True)
    before = dict(clone.devices.get("eth0", {}))
    device = {**before, **clone_nic(step.container, settings, managed=managed)}
    if device != before:
        writer.set_instance_devices(clone.name, {"eth0": device})
