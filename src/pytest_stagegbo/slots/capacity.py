"""Calculates how many slots fit on the host, and shows the calculation. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.errors import NoRoom
from pytest_stagegbo.settings.checks import MOST_SLOTS
from pytest_stagegbo.settings.size import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from pytest_stagegbo.settings import Settings

__all__ = ["Capacity", "Host", "capacity"]


class Host(Struct, frozen=True):
    """What the host has for slots: memory and disk space in bytes, and cores."""

    memory: int
    """Available now."""
    disk: int
    """Free where the clones are, on the pool or the file system below it, whichever has less to spare."""
    floor: int
    """What must stay free there (`disk_floor`, `disk_floor_share`)."""
    cores: int
    there: int
    """Slots that run already: they have their memory and disk."""


class Capacity(Struct, frozen=True):
    """How many slots there may be, with the calculation."""

    count: int
    explanation: tuple[str, ...]


def capacity(settings: Settings, host: Host, workers: int) -> Capacity:
    """Return the number of slots that the settings name. With `auto`: one for each worker, or as many as fit.

    Raises:
        NoRoom: the settings name a number, and fewer fit. The error shows the calculation.
    """
    wanted = settings.slots.count
    slots = settings.slots
    each = parse_size(slots.memory)
    memory_room = max(0, host.memory - parse_size(slots.memory_floor))
    disk_room = max(0, host.disk - host.floor)
    disk_each = parse_size(slots.disk)
    by_memory = host.there + (memory_room // each if each else MOST_SLOTS)
    by_disk = host.there + (disk_room // disk_each if disk_each else MOST_SLOTS)
    lines = [
        f"memory: {bytes_text(host.memory)} available less {bytes_text(parse_size(slots.memory_floor))} "
        f"(slots.memory_floor), {bytes_text(each)} each (slots.memory), {host.there} there already: {by_memory}",
        f"disk: {bytes_text(host.disk)} free less {bytes_text(host.floor)} (disk_floor), "
        f"{bytes_text(disk_each)} each (slots.disk), {host.there} there already: {by_disk}",
    ]
    limits = [by_memory, by_disk]
    if wanted != "auto":
        count = wanted
        if count > 1 and count > min(limits):
            raise NoRoom(
                f"{count} slots are asked for, and {min(limits)} fit",
                seen="; ".join(lines),
                remedy="ask for fewer, or for `auto`; slots.memory, slots.disk and the floors say what is counted",
            )
        return Capacity(count, tuple(lines))
    if slots.cores > 0:
        by_cores = int(host.cores / slots.cores)
        limits.append(by_cores)
        lines.append(f"processor: {host.cores} cores, {slots.cores:g} each (slots.cores): {by_cores}")
    lines.append(f"workers: {workers}")
    count = max(1, min(*limits, workers, MOST_SLOTS))
    lines.append(f"so {count} {'slot' if count == 1 else 'slots'}")
    return Capacity(count, tuple(lines))
