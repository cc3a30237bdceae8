"""The settings of each slot and of the golden copy, as a pure function of the settings of the stage."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings.checks import MOST_SLOTS, check

if TYPE_CHECKING:
    from pytest_stagegbo.settings import Settings

__all__ = ["GOLDEN", "golden_settings", "is_member_copy", "member_copy_settings", "number_of", "slot_settings"]

GOLDEN = "GOLDEN"
"""Ends the name of the golden copy's project."""
GOLDEN_PLACE = 100
"""The golden copy's subnet comes so many after the stage's."""


def slot_settings(settings: Settings, number: int) -> Settings:
    """Return the settings of slot `number`. Slot 0 is the stage itself.

    A slot always has the same names and addresses. A subnet that something else has is refused when the slot is
    provisioned, and not passed over: addresses that depend on what else there is would be a riddle in every log.

    Raises:
        SettingsError: its names or addresses can't be had.
    """
    if number == 0:
        return settings
    slots = settings.slots
    bridge = slots.network.replace("{slot}", str(number)) if slots.network else _bridge(settings, str(number))
    first = IPv4Interface(slots.address) if slots.address else _moved(settings.network.address, 1)
    return _derive(settings, f"{settings.project}-{number}", bridge, _moved(first, number - 1), f"slot {number}")


def golden_settings(settings: Settings) -> Settings:
    """Return the settings of the golden copy. Raises `SettingsError` if its names or addresses are not possible."""
    bridge = settings.slots.network.replace("{slot}", "g") if settings.slots.network else _bridge(settings, "g")
    place = settings.slots.golden_address
    address = IPv4Interface(place) if place else _moved(settings.network.address, GOLDEN_PLACE)
    return _derive(settings, f"{settings.project}-{GOLDEN}", bridge, address, "the golden copy")


def member_copy_settings(golden: Settings, member: str) -> Settings:
    """Return the settings of the golden copy's copy on another member of a cluster. Nothing of it is on a network."""
    return structs.replace(golden, project=f"{golden.project}-{member.replace('_', '-')}")


def is_member_copy(settings: Settings, project: str) -> bool:
    """Whether a project of this stage has this name as the golden copy's copy on another member."""
    return project.startswith(f"{settings.project}-{GOLDEN}-")


def number_of(settings: Settings, project: str) -> int | None:
    """Return the number of the slot whose project has this name. -1: the golden copy; None: no slot of this stage."""
    if project == settings.project:
        return 0
    if project == f"{settings.project}-{GOLDEN}":
        return -1
    found = re.fullmatch(re.escape(settings.project) + r"-([1-9]\d?)", project)
    return int(found[1]) if found and int(found[1]) < MOST_SLOTS else None


def _derive(settings: Settings, project: str, bridge: str, address: IPv4Interface, what: str) -> Settings:
    shift = int(address.network.network_address) - int(settings.network.subnet.network_address)
    containers = {
        name: structs.replace(container, address=_shifted(container.address, shift))
        for name, container in settings.containers.items()
    }
    derived = structs.replace(
        settings,
        project=project,
        network=structs.replace(settings.network, name=bridge, address=address),
        containers=MappingProxyType(containers),
    )
    problems = [problem.text for problem in check(derived)]
    if project == settings.source_project:
        problems.append(f"project {project} is production's")
    if address.network.overlaps(settings.network.subnet):
        problems.append(f"{address.network} is the stage's own subnet")
    if bridge == settings.network.name:
        problems.append(f"{bridge} is the stage's own bridge")
    sources = [container.source_name for container in containers.values()]
    if len(set(sources)) < len(sources):
        problems.append("two containers have one source, and a slot's clone of it could be either one's")
    if problems:
        raise SettingsError(
            f"{what} of {settings.project} has names or addresses that are not possible: "
            + "; ".join(dict.fromkeys(problems)),
            seen=f"project {project}, bridge {bridge}, address {address}",
            remedy="set slots.network, slots.address and slots.golden_address, or choose another network.address",
        )
    return derived


def _bridge(settings: Settings, suffix: str) -> str:
    return settings.network.name.rstrip("0123456789") + suffix


def _moved(address: IPv4Interface, subnets: int) -> IPv4Interface:
    moved = _shifted(address.ip, subnets * address.network.num_addresses)
    return IPv4Interface(f"{moved}/{address.network.prefixlen}")


def _shifted(address: IPv4Address, by: int) -> IPv4Address:
    place = int(address) + by
    if not 0 < place < 2**32:
        raise SettingsError(f"there is no address {by} after {address}", remedy="set slots.address")
    return IPv4Address(place)
