"""What the stage's project, bridge, access list and profile look like, as pure functions of the settings."""

from __future__ import annotations

from ipaddress import IPv4Network, collapse_addresses
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.allowlist import nic, root_disk
from pytest_stagegbo.desired.versions import OLDEST
from pytest_stagegbo.incus import dialect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.incus import Device
    from pytest_stagegbo.settings import Settings

__all__ = [
    "DESCRIPTION",
    "acl",
    "acl_name",
    "managed_nics",
    "network",
    "profile_config",
    "profile_devices",
    "project",
    "rejected",
]

DESCRIPTION = "Made by pytest-stagegbo; removed by `stagegbo destroy`"

PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
"""Networks that are never the internet (RFC 1918, 6598, 1122, 3927)."""

NOT_THE_INTERNET = "not the internet"
"""Describes the rule that rejects them."""

MOST_CONTAINERS = 24
"""The limit of containers in a stage's project: it leaves room for what somebody adds, and stops a runaway loop.

There is no `limits.disk`: with it Incus refuses every volume without a size, and each clone has a limit of its own.
"""


def project(settings: Settings, *, own_networks: bool, parent: str = "") -> dict[str, str]:
    """The project's config.

    Args:
        own_networks: `features.networks`. The staging guide asks for it; Incus without OVN refuses it since 7.0.2.
            Bridges live in project `default` either way, and restrictions keep the stage to its own.
        parent: The stage that this one is a slot or the golden copy of.
    """
    return {
        "features.images": "true",
        "features.networks": "true" if own_networks else "false",
        "features.networks.zones": "true" if own_networks else "false",
        "features.profiles": "true",
        "features.storage.buckets": "true",
        "features.storage.volumes": "true",
        "restricted": "true",
        dialect.LOW_LEVEL: "block",
        "restricted.devices.nic": "allow" if own_networks else "managed",
        "restricted.networks.access": settings.network.name,
        "restricted.snapshots": "allow",
        "limits.containers": str(max(MOST_CONTAINERS, 2 * len(settings.containers))),
        "limits.virtual-machines": "0",
        **({} if parent else {marks.REQUIRES: OLDEST}),
        **marks.of_stage(settings, parent),
    }


_SET = frozenset(
    (dialect.LOW_LEVEL, "restricted.devices.nic", "restricted.networks.access", "restricted.snapshots"),
)
"""Restrictions that `project` sets."""
_STRICT = frozenset(("", "block", "isolated", "managed", "unprivileged"))
"""Values of restrictions that lift nothing."""


def lifted(config: Mapping[str, str]) -> dict[str, str]:
    """The restrictions that somebody lifted in a project, by key, but for those that `project` sets. It leaves stricter
    ones to people, and those of clusters, which say where instances may be.

    Args:
        config: The project's.
    """
    return {
        key: value
        for key, value in config.items()
        if key.startswith("restricted.")
        and not key.startswith("restricted.cluster.")
        and key not in _SET
        and value not in _STRICT
    }


def managed_nics(project_config: dict[str, str]) -> bool:
    """Whether devices of the project name the bridge as `network`; with networks of its own it can't see it."""
    return project_config.get("features.networks") != "true"


def acl_name(settings: Settings) -> str:
    return acl_of(settings.network.name)


def acl_of(bridge: str) -> str:
    """The name of a bridge's access list."""
    return f"{bridge}{_ISOLATION}"


def bridge_of(acl: str) -> str:
    """The bridge that an access list of this name is for; empty: it is for none."""
    return acl.removesuffix(_ISOLATION) if acl.endswith(_ISOLATION) else ""


_ISOLATION = "-isolation"


def acl(settings: Settings, others: Iterable[IPv4Network] = (), parent: str = "") -> dict[str, Any]:
    """The access list on the stage's bridge, which rejects what it does not name.

    Into the stage: its own subnet, which holds the clones and the host's address on the bridge. Out of it: the
    clones, but not the host, and with `network.internet` whatever is not private. DNS and DHCP of the host and
    replies do not pass these rules. Traffic between clones does on hosts whose bridges call the IP filter
    (`net.bridge.bridge-nf-call-iptables`, which Docker sets), so it has to be named. Incus sorts rejects first.

    Args:
        others: Networks of production and of the host: with `network.internet`, public ones would pass as the
            internet.
    """
    subnet, net = str(settings.network.subnet), settings.network.subnet
    # To its subnet's broadcast addresses the host listens as to its own.
    own = sorted({settings.network.address.ip, net.network_address, net.broadcast_address})
    host = ",".join(f"{address}/32" for address in own)
    egress = [_rule("reject", host, "the host itself"), _rule("allow", subnet, "between the clones")]
    if settings.network.internet:
        kept_out = ",".join(str(network) for network in _not_the_internet(settings, others))
        egress += [_rule("reject", kept_out, NOT_THE_INTERNET), _rule("allow", "0.0.0.0/0", "network.internet")]
    ingress = [{"action": "allow", "source": subnet, "description": "the clones and the host", "state": "enabled"}]
    config = marks.of_stage(settings, parent)
    return {"description": DESCRIPTION, "ingress": ingress, "egress": egress, "config": config}


def rejected(acl: Mapping[str, Any] | None) -> frozenset[IPv4Network]:
    """Networks that an access list keeps from passing as the internet."""
    rules = [each for each in (acl or {}).get("egress") or () if each.get("description") == NOT_THE_INTERNET]
    return frozenset(IPv4Network(text) for rule in rules for text in rule.get("destination", "").split(",") if text)


def _not_the_internet(settings: Settings, others: Iterable[IPv4Network]) -> list[IPv4Network]:
    """Private networks, production's and the host's, less the stage's own subnet: rejects come before it is
    allowed."""
    found: list[IPv4Network] = []
    for network in (*map(IPv4Network, PRIVATE), settings.network.production, *others):
        subnet = settings.network.subnet
        if subnet.subnet_of(network):
            found.extend(network.address_exclude(subnet))
        elif not network.subnet_of(subnet):  # the host's own in the stage, which has a rule of its own
            found.append(network)
    return sorted(collapse_addresses(found))


def _rule(action: str, destination: str, description: str) -> dict[str, str]:
    return {"action": action, "destination": destination, "description": description, "state": "enabled"}


def network(settings: Settings, parent: str = "") -> dict[str, str]:
    """The bridge's config.

    Closed to the internet, the stage has no use for the host's dnsmasq, and a resolver would be a way out: no DHCP,
    no DNS. That also saves the half second that Incus waits for dnsmasq.
    """
    outside = settings.network.internet
    return {
        "ipv4.address": str(settings.network.address),
        "ipv4.nat": "true" if settings.network.nat else "false",
        "ipv6.address": "none",
        "ipv4.dhcp": "true" if outside else "false",
        "dns.domain": "stage-gbo",
        "dns.mode": "managed" if outside else "none",
        "security.acls": acl_name(settings),
        "security.acls.default.egress.action": "reject",
        "security.acls.default.ingress.action": "reject",
        **marks.of_stage(settings, parent),
    }


def profile_devices(settings: Settings, pool: str, *, managed: bool) -> dict[str, Device]:
    """The default profile's devices: a limited root disk on production's pool, a NIC on the stage's bridge."""
    return {"root": root_disk(pool, settings.disk_limit), "eth0": nic(settings, managed=managed)}


def profile_config(settings: Settings) -> dict[str, str]:
    """The default profile's config: what a clone may use of the host unless it has a limit of production's.

    What Incus takes for granted is left out, since a kernel without the control group refuses even that.
    """
    limits = settings.limits
    wanted = {
        "limits.cpu.allowance": limits.cpu_allowance,
        "limits.cpu.priority": str(limits.cpu_priority) if limits.cpu_priority != 10 else "",
        "limits.disk.priority": str(limits.disk_priority) if limits.disk_priority != 5 else "",
        "limits.processes": str(limits.processes) if limits.processes else "",
    }
    return {key: value for key, value in wanted.items() if value}
