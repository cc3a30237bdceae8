"""The Incus daemon: one connection, a reader that only reads, a writer that only writes to the stage.

`Connection` imports pylxd, which takes 0.1 s, so it is not offered here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lazy import names_of

if TYPE_CHECKING:
    from pytest_stagegbo.incus.reader import Reader
    from pytest_stagegbo.incus.records import Device, Instance, Network, Pool, Project
    from pytest_stagegbo.incus.writer import CommandResult, Writer, WriterScope
else:
    __getattr__ = names_of(
        __name__,
        {
            "reader": ("Reader",),
            "records": ("Device", "Instance", "Network", "Pool", "Project"),
            "writer": ("CommandResult", "Writer", "WriterScope"),
        },
    )

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
