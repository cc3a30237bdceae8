"""Reads which slots of a stage exist, who uses them and how old they are. It never writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.desired import marks
from pytest_stagegbo.facts.placement import choose_member
from pytest_stagegbo.leases.about import holder_text
from pytest_stagegbo.plan.capsules import is_copy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.leases.protocol import Seen
    from pytest_stagegbo.locks import StageLock
    from pytest_stagegbo.slots.fleet import Fleet

__all__ = ["SlotStatus", "slot_status", "slot_statuses"]


class SlotStatus(Struct, frozen=True):
    """One slot, or the golden copy."""

    number: int
    """-1: the golden copy; below that: its copies on further members of a cluster."""
    project: str
    network: str
    state: str
    """`running`, `stopped`, `partly running`, `unfinished` or `empty`; `away`: its member of the cluster is."""
    copied: str
    """When the oldest of its clones was made, ISO 8601; empty: there is none."""
    clean: bool
    """Whether it is known to be clean: proven, and nobody has used it since."""
    used_by: str
    """Processes that hold locks of it, or the host that has its lease; empty: nobody has it."""
    member: str = ""
    """The cluster member that it is on; empty: the server is no cluster, or nothing of it is there."""


def slot_statuses(fleet: Fleet) -> tuple[SlotStatus, ...]:
    """Return the status of every slot that exists, by number. The golden copy comes first."""
    found = []
    leases, gone = fleet.leases(), fleet.gone()
    for number, settings in fleet.members().items():
        there = fleet.clones(settings.project)
        clones = {name: each for name, each in there.items() if marks.is_clone(each, settings) and not is_copy(each)}
        lock = fleet.lock(settings)
        used_by = "; ".join(lock.holders()) or _elsewhere(leases.get(settings.project), lock)
        network = settings.network.name
        clean = bool(lock.clean_note())
        member = choose_member(settings, there, {}, "") if fleet.is_clustered else ""
        away = member in gone
        found.append(slot_status(number, settings.project, network, clones, clean, used_by, member, away=away))
    return tuple(found)


def _elsewhere(seen: Seen | None, lock: StageLock) -> str:
    """The host that has the lease, if it is another one; empty: none has."""
    last = seen.last if seen is not None else None
    return holder_text(last) if last is not None and not last.free and not lock.is_own_lease(last) else ""


def slot_status(
    number: int,
    project: str,
    network: str,
    clones: Mapping[str, Instance],
    clean: bool,
    used_by: str,
    member: str = "",
    *,
    away: bool = False,
) -> SlotStatus:
    """Return the status of a slot, from those of its clones that carry our mark. Pure."""
    states = {
        "unfinished"
        if clone.config.get(marks.STATE) != marks.PREPARED
        else "running"
        if clone.is_running or clone.status == "Frozen"
        else "stopped"
        for clone in clones.values()
    }
    if number < 0 and any(not clone.config.get(marks.GENERATION) for clone in clones.values()):
        states.add("unfinished")
    state = "unfinished" if "unfinished" in states else "partly running" if len(states) > 1 else next(iter(states), "")
    state = "away" if away else state
    copied = min((clone.created_at for clone in clones.values()), default="")
    return SlotStatus(number, project, network, state or "empty", copied, clean and state == "running", used_by, member)
