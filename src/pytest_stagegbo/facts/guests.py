"""Networks of instances that are not the stage's: production's first of all, in whatever project and of whatever kind.

A network device says little about where its instance is: on a bridge that Incus does not manage, by macvlan, sriov or a
physical device only the guest knows its addresses, and it may have more than one. So all that the daemon sees in them
counts, and what their configuration says.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pytest_stagegbo.desired import marks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_stagegbo.incus import Project, Reader

__all__ = ["Guest", "find_guests"]


class Guest(Struct, frozen=True):
    """An instance that is not the stage's, and what is known of its networks."""

    project: str
    name: str
    networks: frozenset[IPv4Network]
    addresses: frozenset[IPv4Address | IPv6Address]
    unknown: bool
    """Whether it has a network device, and may have addresses that nobody sees now: it is stopped, or has none yet."""

    def __str__(self) -> str:
        return f"{self.project}/{self.name}"


def find_guests(reader: Reader, projects: Mapping[str, Project]) -> tuple[Guest, ...]:
    """Look at the instances of every project that is no stage. Slow: their states are asked for."""
    found = []
    for name, project in projects.items():
        if not marks.is_ours(project.config):
            found += [_guest(each, name) for each in reader.documents("instances", project=name, recursion=2)]
    return tuple(found)


def _guest(instance: Mapping[str, Any], project: str) -> Guest:
    seen = set(_seen(instance))
    devices = [each for each in (instance.get("expanded_devices") or {}).values() if each.get("type") == "nic"]
    configured = {text for device in devices for text in _configured(device)}
    return Guest(
        project,
        str(instance["name"]),
        networks=frozenset(IPv4Interface(text).network for text in seen | configured if ":" not in text),
        addresses=frozenset(
            [ip_address(text.partition("/")[0]) for text in seen]
            + [ip_address(text) for text in configured if "/" not in text]
        ),
        unknown=bool(devices) and not seen,
    )


def _seen(instance: Mapping[str, Any]) -> Iterator[str]:
    """Addresses of a running instance, with their prefix lengths."""
    for interface in ((instance.get("state") or {}).get("network") or {}).values():
        for each in interface.get("addresses") or ():
            if each.get("scope") == "global":
                yield f"{each['address']}/{each.get('netmask') or (32 if each['family'] == 'inet' else 128)}"


def _configured(device: Mapping[str, str]) -> Iterator[str]:
    for key in ("ipv4.address", "ipv6.address", "ipv4.routes", "ipv4.routes.external"):
        for text in device.get(key, "").replace(",", " ").split():
            if text not in {"none", "auto"}:
                yield text
