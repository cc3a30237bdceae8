"""Production's network and addresses, and a subnet for the stage that nobody has. Pure."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Interface, IPv4Network, collapse_addresses
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo.discovery.records import Conclusion
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.facts.subnets import free_place, free_subnet
from pytest_stagegbo.settings.model import NetworkSettings, Settings, default_containers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from ipaddress import IPv4Address

    from pytest_stagegbo.discovery.records import Survey
    from pytest_stagegbo.discovery.roles import Assigned

__all__ = ["Networks", "addresses", "choose_bridge", "choose_networks", "default_places"]

_WIDEST = 16
"""Bits of the shortest prefix that production's network gets where its containers are on several."""
_FIRST_FREE = 20
"""Place in the subnet from which a container gets an address whose own place is taken."""


class Networks(Struct, frozen=True):
    """Where production's containers are."""

    production: IPv4Network
    why: str
    places: Mapping[str, IPv4Interface | None]
    """By name in the stage, the address on production's network; None: it has none there."""
    doubts: tuple[str, ...] = ()


def choose_networks(survey: Survey, assigned: Sequence[Assigned]) -> Networks:
    """The network that production's containers are on. Where they are on several, the smallest that holds them all, if
    nobody else has a part of it; else the one that most of them are on."""
    own = {each.name: each.source.addresses for each in assigned}
    counts = Counter(network for found in own.values() for network in {each.network for each in found})
    if not counts:
        default = NetworkSettings().production
        text = f"no container of production has an address that can be seen, so {default} is taken for its network"
        return Networks(default, "the default", dict.fromkeys(own), (text,))
    main = max(sorted(counts), key=lambda network: counts[network])
    outside = {name: found for name, found in own.items() if found and not _within(found, main)}
    chosen, why, doubts = main, f"{counts[main]} of its {len(own)} containers have an address there", []
    if outside:
        networks = {main, *(found[0].network for found in outside.values())}
        words = " and ".join(map(str, sorted(networks)))
        wide = _around(networks)
        others = {each for each in survey.taken("") if each not in networks and each.overlaps(wide)}
        if wide.prefixlen >= _WIDEST and not others:
            chosen, why = wide, f"production is on {words}, and one network has to hold both"
        else:
            for name in outside:
                doubts.append(
                    f"{name}: production's address {outside[name][0].ip} is outside of {main}, and only one network "
                    "can be production's. Inside the stage that address leads nowhere"
                )
    places = {name: _within(found, chosen) for name, found in own.items()}
    for name, found in own.items():
        if not found:
            doubts.append(f"{name}: its address in production is not known, so inside the stage it has none")
    return Networks(chosen, why, places, tuple(doubts))


def addresses(
    each: Assigned, networks: Networks, subnet: IPv4Interface, used: set[IPv4Address]
) -> Iterator[Conclusion]:
    """A container's address in production, and for one that has no default in the stage.

    Args:
        subnet: The stage's.
        used: Addresses in it that are taken; the chosen one is added.
    """
    place = networks.places.get(each.name)
    prefix = f"containers.{each.name}"
    known = "" if place is None else str(place.ip)
    yield Conclusion(
        f"{prefix}.production_address", known, f"{each.source.name} has it" if known else "it is not known"
    )
    if each.is_extra:
        address = _free(place, subnet, used)
        used.add(address)
        yield Conclusion(f"{prefix}.address", str(address), "free in the stage's subnet")


def default_places(subnet: IPv4Interface) -> set[IPv4Address]:
    """Addresses of the host and of General Bots' six in the stage's subnet."""
    plain = NetworkSettings().subnet.network_address
    offsets = (int(each.address) - int(plain) for each in default_containers().values())
    return {subnet.ip, *(subnet.network.network_address + offset for offset in offsets)}


def choose_bridge(survey: Survey, production: IPv4Network, project: str, asked: str) -> Iterator[Conclusion]:
    """The stage's bridge and its address: those of a stage that is there, the defaults if they are free, or others.

    Args:
        asked: The bridge that the command line names.
    """
    plain = Settings()
    settings = replace(plain, network=replace(plain.network, production=production))
    bridge, address = survey.stages.get(project or plain.project, ("", ""))
    if bridge and address and not asked:
        yield Conclusion("network.name", bridge, "the stage that is there has it")
        yield Conclusion("network.address", address, "the stage that is there has it")
        return
    name, default = asked or plain.network.name, plain.network.address
    why = "the command line names it" if asked else "the default"
    if not asked and name in survey.networks:
        free, _ = free_place(settings, survey.networks, survey.host)
        name, why = free, f"there is a network {name} already"
    yield Conclusion("network.name", name, why)
    taken = {*survey.taken(name), production}
    clash = next((network for network in sorted(taken) if network.overlaps(default.network)), None)
    if clash is None:
        yield Conclusion("network.address", str(default), "the default")
        return
    found = free_subnet(settings, taken)
    yield Conclusion(
        "network.address", str(found or default), f"{clash} is there already", "seen" if found else "unsure"
    )


def _within(found: Sequence[IPv4Interface], network: IPv4Network) -> IPv4Interface | None:
    return next((each for each in found if each.ip in network), None)


def _around(networks: set[IPv4Network]) -> IPv4Network:
    """The smallest network that holds all of these."""
    found = list(collapse_addresses(networks))
    while len(found) > 1:
        found = list(collapse_addresses([found[0].supernet(), *found[1:]]))
    return found[0]


def _free(place: IPv4Interface | None, subnet: IPv4Interface, used: set[IPv4Address]) -> IPv4Address:
    first = subnet.network.network_address
    offset = 0 if place is None else int(place.ip) - int(place.network.network_address)
    wanted = [offset] if 0 < offset < subnet.network.num_addresses - 1 else []
    for each in (*wanted, *range(_FIRST_FREE, subnet.network.num_addresses - 1)):
        address: IPv4Address = first + each
        if address not in used:
            return address
    raise SettingsError(f"the stage's subnet {subnet.network} has too few addresses for production's containers")
