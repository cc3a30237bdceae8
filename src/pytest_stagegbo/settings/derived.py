"""Settings of a stage that belongs to another one: its own names and addresses, and all else the same. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings.checks import check

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import Settings

__all__ = ["derive", "moved"]


def derive(settings: Settings, project: str, bridge: str, address: IPv4Interface, what: str) -> Settings:
    """Return the settings with another project, bridge and subnet.

    Args:
        address: Of the host on the bridge.
        what: Whose settings these are, for errors.

    Raises:
        SettingsError: these names or addresses are not possible.
    """
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
            remedy="set slots.network, slots.address and slots.golden_address, or of an opened capsule "
            "capsules.address, or choose another network.address",
        )
    return derived


def moved(address: IPv4Interface, subnets: int) -> IPv4Interface:
    """Return the same address so many subnets later."""
    place = _shifted(address.ip, subnets * address.network.num_addresses)
    return IPv4Interface(f"{place}/{address.network.prefixlen}")


def _shifted(address: IPv4Address, by: int) -> IPv4Address:
    place = int(address) + by
    if not 0 < place < 2**32:
        raise SettingsError(
            f"there is no address {by} after {address}",
            remedy="set slots.address, or of an opened capsule capsules.address",
        )
    return IPv4Address(place)
