"""The Incus daemon: one connection, a reader that only reads, a writer that only writes to the stage.

`Connection` imports pylxd, which takes 0.1 s, so it is not offered here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lazy import names_of

if TYPE_CHECKING:
    from pytest_stagegbo.incus.gate import WriterScope
    from pytest_stagegbo.incus.reader import Reader
    from pytest_stagegbo.incus.records import CommandResult, Device, Instance, Network, Pool, Project
    from pytest_stagegbo.incus.writer import Writer
else:
    __getattr__ = names_of(
        __name__,
        {
            "reader": ("Reader",),
            "records": ("CommandResult", "Device", "Instance", "Network", "Pool", "Project"),
            "gate": ("WriterScope",),
            "writer": ("Writer",),
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
