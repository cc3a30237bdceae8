"""What the host has for slots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.session.space import LocalHost, pool_names, spaces
from pytest_stagegbo.slots.fit import Host

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["measure"]


def measure(reader: Reader, settings: Settings, there: int) -> Host:
    """Look at the host. Raises the errors of the connection.

    Args:
        there: Slots that are there already.
    """
    host = LocalHost(reader.endpoint)
    free = [space.free for name in pool_names(reader, settings) for space in spaces(reader.pool(name), settings, host)]
    if reader.is_local:
        memory, cores = _available(), os.cpu_count() or 1
    else:
        memory, cores = reader.memory_available(), reader.cores()
    return Host(memory=memory, disk=max(0, min(free, default=0)), cores=cores, there=there)


def _available() -> int:
    """Bytes that the kernel could give away without swapping (`MemAvailable`, proc(5))."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
