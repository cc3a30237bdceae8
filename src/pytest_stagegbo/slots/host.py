"""Measures what the host has for slots: memory, disk space and cores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.facts.space import Space, look, pool_names
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.slots.capacity import Host

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["measure"]


def measure(reader: Reader, settings: Settings, there: int, *, closed: bool = False) -> Host:
    """Measure the host, which in a cluster is the reader's member. Raises the errors of the connection.

    Args:
        there: Number of slots that exist already.
        closed: Whether no further one may be there.
    """
    host = reader.host()
    rooms = [look(reader, name, host) for name in pool_names(reader, settings)]
    found = [room.tightest(settings) for room in rooms]
    new = parse_size(settings.storage.create) if settings.storage.create else 0  # where the pool is yet to be created
    least = min(found, key=lambda space: space.margin, default=Space("nowhere", new, 0))
    if reader.is_here:
        memory, cores = _available(), os.cpu_count() or 1
    else:
        memory, cores = reader.memory_available(), reader.cores()
    return Host(
        memory=memory,
        disk=max(0, least.free),
        floor=least.floor,
        cores=cores,
        there=there,
        name=reader.member,
        closed=closed,
        blind=", ".join(room.pool.name for room in rooms if room.is_blind) if reader.member else "",
    )


def _available() -> int:
    """Bytes that the kernel could give away without swapping (`MemAvailable`, proc(5))."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
