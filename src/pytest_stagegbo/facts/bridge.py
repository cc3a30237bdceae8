"""Whether the stage's bridge is in the kernel, works, and has the clones on it. Reads; never writes.

A bridge that is gone looks like services that never start. Its address then leads to wherever the host sends what it
has no closer route for, so somebody else may answer there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import StageMissing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.incus import Instance, Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["REMEDY", "detached", "find_fault", "has_address", "refuse_fault"]

REMEDY = "run `stagegbo provision`: it mends the bridge, connects the clones again and keeps their data"


def find_fault(reader: Reader, settings: Settings, clones: Iterable[Instance]) -> str:
    """What is wrong with the bridge, or keeps these clones off it; empty: nothing. One request where all is well.

    Args:
        clones: Of the stage. Those that do not run are left out.
    """
    bridge = settings.network.name
    link = reader.link(bridge)
    if link is None:
        return f"the stage's bridge {bridge} is gone"
    if link.get("state") != "up":
        return f"the stage's bridge {bridge} is down"
    if not has_address(link, settings):
        return f"the stage's bridge {bridge} has lost its address {settings.network.address.ip}"
    off = detached(link, clones)
    if off:  # a clone that was started between the two looks has another interface
        off &= detached(reader.link(bridge), reader.instances(settings.project).values())
    return f"the stage's bridge {bridge} has no connection to {', '.join(sorted(off))}" if off else ""


def refuse_fault(reader: Reader, settings: Settings, clone: Instance) -> None:
    """Raise `StageMissing` when the clone can't be reached since the bridge is at fault."""
    fault = find_fault(reader, settings, [clone])
    if fault:
        raise StageMissing(f"{clone.name} can't be reached: {fault}", remedy=REMEDY)


def has_address(link: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a bridge has the host's address of the stage's subnet."""
    return str(settings.network.address.ip) in {each.get("address") for each in link.get("addresses") or ()}


def detached(link: Mapping[str, Any] | None, clones: Iterable[Instance]) -> frozenset[str]:
    """Names of running clones whose interface is not among the bridge's ports."""
    ports = ((link or {}).get("bridge") or {}).get("upper_devices") or ()
    return frozenset(c.name for c in clones if c.is_running and c.config.get("volatile.eth0.host_name") not in ports)
