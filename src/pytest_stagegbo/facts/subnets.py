"""Whether somebody else has the stage's subnet: Incus's networks, and all that the host has besides. Pure."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import ProductionProtected

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from ipaddress import IPv4Address

    from pytest_stagegbo.incus import Network
    from pytest_stagegbo.incus.hostnet import HostNetwork
    from pytest_stagegbo.settings import Settings

__all__ = ["free_place", "free_subnet", "lost_ways", "neighbours", "refuse_taken"]

_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_SLOTS = 8
"""Slots that a subnet is looked for with, where the settings name no number."""
_GOLDEN = 100
"""The golden copy's subnet comes so many after the stage's: see `slots.layout`."""


def refuse_taken(
    settings: Settings,
    networks: Mapping[str, Network],
    host: Collection[HostNetwork],
    ways: Mapping[IPv4Address, str | None] | None = None,
    *,
    parent: str = "",
) -> None:
    """Raise `ProductionProtected` when the stage's subnet is, or overlaps, somebody else's.

    A bridge that is there and still gets the host's packets is left in peace by wider networks that came later, such as
    a VPN's 10.0.0.0/8: see `neighbours`.

    Args:
        networks: Incus's, by name.
        host: What the host has, as far as it is known.
        ways: By address of a clone, the interface that the host would send by. None: there is no bridge yet, or nobody
            knows.
        parent: The stage that this one is a slot or the golden copy of.
    """
    subnet, bridge = settings.network.subnet, settings.network.name
    own = networks.get(bridge)
    address = "" if own is None or own.is_half_made else own.config.get("ipv4.address")
    made = address == str(settings.network.address)
    for network in networks.values():
        address = network.config.get("ipv4.address", "")
        if network.name != bridge and "/" in address and IPv4Interface(address).network.overlaps(subnet):
            what = f"the stage's subnet {subnet} overlaps network {network.name}"
            raise _taken(what, f"{network.name} has {address}", settings, networks, host, parent)
    lost = lost_ways(settings, host, ways) if made else ""
    if lost:
        raise _taken(lost, "; ".join(map(str, _overlapping(settings, host))), settings, networks, host, parent)
    for each in _overlapping(settings, host):
        if made and not each.network.subnet_of(subnet):
            continue
        owner = f"interface {each.interface}" if each.interface else f"a {each.kind} route"
        what = f"the stage's subnet {subnet} overlaps {each.network}, which the host has on {owner}"
        raise _taken(what, str(each), settings, networks, host, parent)


def lost_ways(settings: Settings, host: Iterable[HostNetwork], ways: Mapping[IPv4Address, str | None] | None) -> str:
    """Why the host does not reach the clones, as far as its routes say; empty: they lead to the bridge."""
    bridge = settings.network.name
    for address, interface in (ways or {}).items():
        if interface == bridge:
            continue
        owners = sorted(
            (each for each in host if address in each.network and each.interface == (interface or "")),
            key=lambda each: -each.network.prefixlen,
        )
        if owners:  # else the bridge itself is gone or down
            where = f"interface {interface}" if interface else "nowhere"
            return f"the host's way to {address} leads to {where} instead of {bridge}: {owners[0]}"
    return ""


def neighbours(settings: Settings, host: Iterable[HostNetwork]) -> tuple[HostNetwork, ...]:
    """Wider networks of the host that the stage's subnet hides a part of."""
    subnet = settings.network.subnet
    return tuple(each for each in _overlapping(settings, host) if not each.network.subnet_of(subnet))


def _overlapping(settings: Settings, host: Iterable[HostNetwork]) -> list[HostNetwork]:
    subnet = settings.network.subnet
    return [
        each
        for each in host
        if each.interface != settings.network.name
        and each.network.overlaps(subnet)
        # A wider route to nowhere is a fence that others build, too: the bridge's own route is closer.
        and not (each.kind and not each.network.subnet_of(subnet))
    ]


def _taken(
    what: str,
    seen: str,
    settings: Settings,
    networks: Mapping[str, Network],
    host: Iterable[HostNetwork],
    parent: str,
) -> ProductionProtected:
    taken = {each.network for each in host}
    taken |= {IPv4Interface(a).network for n in networks.values() if "/" in (a := n.config.get("ipv4.address", ""))}
    key = "network.address"
    if parent:
        key = "slots.golden_address" if settings.project == f"{parent}-GOLDEN" else "slots.address"
    found = free_subnet(settings, taken, key)
    variable = "STAGEGBO_" + key.upper().replace(".", "__")
    remedy = f'set {key} = "{found}", a subnet that is free here (or {variable}={found})'
    if found is None:
        remedy = f"set {key} to a subnet that is free: no private one of this size was found"
    return ProductionProtected(what, seen=seen, remedy=remedy)


def free_subnet(
    settings: Settings, taken: Collection[IPv4Network], key: str = "network.address"
) -> IPv4Interface | None:
    """An address for the setting `key` so that neither its subnet, nor those of the slots that follow from it, are
    taken; None: there is none."""
    taken = {*taken, settings.network.production}
    slots = settings.slots
    count = slots.count if isinstance(slots.count, int) and slots.count > 1 else _SLOTS
    wanted = {0}
    if key == "slots.address":
        wanted |= set(range(count))
    elif key == "network.address":
        wanted |= set() if slots.address else set(range(count))
        wanted |= set() if slots.golden_address else {_GOLDEN}
    subnet = settings.network.subnet
    for block in sorted(_PRIVATE, key=lambda block: not subnet.subnet_of(block)):
        found = _free_in(block, subnet.prefixlen, wanted, taken, subnet)
        if found is not None:
            host = int(settings.network.address.ip) - int(subnet.network_address)
            return IPv4Interface(f"{found[host]}/{subnet.prefixlen}")
    return None


def free_place(
    settings: Settings, networks: Mapping[str, Network], host: Iterable[HostNetwork]
) -> tuple[str, IPv4Interface | None]:
    """A bridge and an address that a stage beside the one with these settings may have, with room for slots."""
    base = settings.network.name.rstrip("0123456789")[:12]  # an interface's name has at most 15 characters
    names = (f"{base}{letter}0" for letter in "bcdefhijklmnopq")
    name = next((each for each in names if each not in networks), f"{base}z0")
    taken = {each.network for each in host}
    taken |= {IPv4Interface(a).network for n in networks.values() if "/" in (a := n.config.get("ipv4.address", ""))}
    subnet = settings.network.subnet
    size, last = subnet.num_addresses, 2**32 - subnet.num_addresses
    places = (int(subnet.network_address) + size * offset for offset in (*range(_SLOTS), _GOLDEN))
    taken |= {IPv4Network((place, subnet.prefixlen)) for place in places if place <= last}
    return name, free_subnet(settings, taken)


def _free_in(
    block: IPv4Network, bits: int, wanted: Collection[int], taken: Collection[IPv4Network], after: IPv4Network
) -> IPv4Network | None:
    size = 1 << (32 - bits)
    place = int(after.broadcast_address) + 1 if after.subnet_of(block) else int(block.network_address)
    last = int(block.broadcast_address) + 1 - size * (max(wanted) + 1)
    while place <= last:
        members = {offset: IPv4Network((place + size * offset, bits)) for offset in wanted}
        behind = []  # where the search goes on, for each network that is in the way
        for other in taken:
            hit = [offset for offset, member in members.items() if member.overlaps(other)]
            if hit:
                behind.append(int(other.broadcast_address) + 1 - size * min(hit))
        if not behind:
            return IPv4Network((place, bits))
        place = max(place + size, -(-max(behind) // size) * size)
    return None
