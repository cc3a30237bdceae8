"""The Incus daemon: one connection, a reader that only reads, a writer that only writes to the stage.

`Connection` imports pylxd, which takes 0.2 s, so it is not imported from here.
"""

from __future__ import annotations

from pytest_stagegbo.incus.reader import Reader
from pytest_stagegbo.incus.records import Device, Instance, Network, Pool, Project
from pytest_stagegbo.incus.writer import CommandResult, Writer, WriterScope

__all__ = [
    "CommandResult",
    "Device",
    "Instance",
    "Network",
    "Pool",
    "Project",
    "Reader",
    "Writer",
    "WriterScope",
]
