"""Calculates how many slots fit on a host, or on the members of a cluster, and shows the calculation. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from pytest_stagegbo.errors import NoRoom
from pytest_stagegbo.settings.checks import MOST_SLOTS
from pytest_stagegbo.settings.size import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.settings import Settings

__all__ = ["Capacity", "Fit", "Host", "capacity", "fit"]


class Host(Struct, frozen=True):
    """What a host has for slots: memory and disk space in bytes, and cores."""

    memory: int
    """Available now."""
    disk: int
    """Free where the clones are, on the pool or the file system below it, whichever has less to spare."""
    floor: int
    """What must stay free there (`disk_floor`, `disk_floor_share`)."""
    cores: int
    there: int
    """Slots that run already: they have their memory and disk."""
    name: str = ""
    """Of the cluster member; empty: the server is no cluster."""
    closed: bool = False
    """Whether no further slot may be there (`slots.members`)."""
    blind: str = ""
    """The pool that is a file, where the file system below it can't be seen from here; empty: there is none."""


class Fit(Struct, frozen=True):
    """How many slots a host takes in all, with the calculation."""

    most: int
    """By memory and disk."""
    easy: int
    """By memory, disk and processor."""
    lines: tuple[str, ...]
    """Of memory and disk."""
    processor: str
    """The line about cores; empty: they limit nothing."""


class Capacity(Struct, frozen=True):
    """How many slots there may be, with the calculation."""

    count: int
    explanation: tuple[str, ...]
    members: Mapping[int, str] = field(default_factory=dict)
    """By slot, the cluster member that it is on, or is to be on. Empty: the server is no cluster."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the slots. In a cluster, those of slots that are away with their member are left out."""
        return tuple(self.members) or tuple(range(self.count))


def fit(settings: Settings, host: Host) -> Fit:
    """Return how many slots a host takes."""
    if host.closed:
        return Fit(host.there, host.there, (f"{host.there} there already, and no more (slots.members)",), "")
    slots = settings.slots
    each = parse_size(slots.memory)
    memory_room = max(0, host.memory - parse_size(slots.memory_floor))
    disk_room = max(0, host.disk - host.floor)
    disk_each = parse_size(slots.disk)
    by_memory = host.there + (memory_room // each if each else MOST_SLOTS)
    by_disk = host.there + (disk_room // disk_each if disk_each else MOST_SLOTS)
    lines: tuple[str, ...] = (
        f"memory: {bytes_text(host.memory)} available less {bytes_text(parse_size(slots.memory_floor))} "
        f"(slots.memory_floor), {bytes_text(each)} each (slots.memory), {host.there} there already: {by_memory}",
        f"disk: {bytes_text(host.disk)} free less {bytes_text(host.floor)} (disk_floor), "
        f"{bytes_text(disk_each)} each (slots.disk), {host.there} there already: {by_disk}",
    )
    if host.blind:
        lines = (*lines, f"the file system below the file of pool {host.blind} is not seen from here")
    most = min(by_memory, by_disk)
    if not slots.cores:
        return Fit(most, most, lines, "")
    by_cores = int(host.cores / slots.cores)
    processor = f"processor: {host.cores} cores, {slots.cores:g} each (slots.cores): {by_cores}"
    return Fit(most, min(most, by_cores), lines, processor)


def capacity(
    settings: Settings, hosts: Sequence[Host], workers: int, *, possible: int = MOST_SLOTS, lenient: bool = False
) -> Capacity:
    """Return the number of slots that the settings name. With `auto`: one for each worker, or as many as fit.

    Args:
        possible: How many there can be, whatever fits.
        lenient: Return what fits also where the settings name a number that does not: members of the cluster are away.

    Raises:
        NoRoom: the settings name a number, and fewer fit. The error shows the calculation.
    """
    wanted = settings.slots.count
    lines, fits = [], [fit(settings, host) for host in hosts]
    for host, found in zip(hosts, fits, strict=True):
        # With a number, cores limit nothing on a single host; in a cluster they say where slots are.
        shown = (*found.lines, *filter(None, [found.processor if wanted == "auto" or host.name else ""]))
        lines += [f"{host.name}: {line}" if host.name else line for line in shown]
    most = sum(found.most for found in fits)
    if lenient and wanted != "auto":
        wanted = max(1, min(wanted, most, possible))
    if wanted != "auto":
        if wanted > 1 and wanted > most:
            raise NoRoom(
                f"{wanted} slots are asked for, and {most} fit",
                seen="; ".join(lines),
                remedy="ask for fewer, or for `auto`; slots.memory, slots.disk and the floors say what is counted",
            )
        return Capacity(wanted, tuple(lines))
    lines.append(f"workers: {workers}")
    count = max(1, min(sum(found.easy for found in fits), workers, possible))
    lines.append(f"so {count} {'slot' if count == 1 else 'slots'}")
    return Capacity(count, tuple(lines))
