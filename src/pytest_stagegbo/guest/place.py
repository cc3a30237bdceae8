"""Writes the files of a clone that hold addresses: its own, and those of the other clones.

A clone of production gets them with the script of its first boot. A copy of a golden clone has that script with the
golden one's addresses, and finds its own in the environment of its first process (`variable`): nothing has to be
written into it, and it is safe from the moment that it exists.
"""

from __future__ import annotations

import base64
import gzip
import secrets
from typing import TYPE_CHECKING

from pytest_stagegbo.guest.units import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

    from pytest_stagegbo.settings import ContainerSettings, NetworkSettings, Settings

__all__ = ["FOLDER", "INTERFACES", "NETWORK", "PLACE", "TWINS", "identity", "interfaces", "place_script", "variable"]

INTERFACES = "/etc/network/interfaces"
NETWORK = f"{FOLDER}/network"
"""Does what `INTERFACES` says, in place of ifupdown."""
PLACE = "STAGEGBO_PLACE"
"""Name of the environment variable."""

HOSTS = "# Written by pytest-stagegbo"
HOSTS_END = "# End of what pytest-stagegbo wrote"
"""Around its lines in /etc/hosts: a copy of a clone that was booted has them already, with other addresses."""
TWINS = f"{FOLDER}/twins"
TWIN_DEVICE = "twin0"
TWIN_ID = 5858
TWIN_PORT = 4789
"""IANA's port for VXLAN (RFC 7348)."""


def variable(container: ContainerSettings, settings: Settings, *, golden: bool) -> str:
    """The value of `PLACE` for a new copy: an identity, a colon, and where it is one of a golden clone, `place_script`
    compressed.

    The identity is new each time. The first boot writes it into its stamp, so that no stamp that came with the source
    is taken for the clone's own.
    """
    script = place_script(container, settings).encode() if golden else b""
    packed = base64.b64encode(gzip.compress(script, mtime=0)).decode() if script else ""
    return f"{secrets.token_hex(8)}:{packed}"


def identity(value: str) -> str:
    """What the stamp of the first boot says of a value of `PLACE`; empty for none."""
    return value.partition(":")[0]


def place_script(container: ContainerSettings, settings: Settings) -> str:
    """POSIX shell that names the clones and gives this one its address."""
    network = settings.network
    hosts = "\n".join(f"{other.address} {other.name}" for other in settings.containers.values())
    files = [(INTERFACES, interfaces(container, network)), (NETWORK, network_script(container, network))]
    if network.twins:
        files.append((TWINS, twins_script(container, settings.containers.values(), network)))
    placed = "".join(f"cat >{path} <<'END_OF_FILE'\n{content}END_OF_FILE\n" for path, content in files)
    scripts = " ".join(path for path, _ in files[1:])
    return f"""[ -L /etc/resolv.conf ] || echo 'nameserver {network.address.ip}' >/etc/resolv.conf
[ -e /etc/hosts ] || echo '127.0.0.1 localhost' >/etc/hosts
sed -i '/^{HOSTS}/,/^{HOSTS_END}/d' /etc/hosts
cat >>/etc/hosts <<'END'
{HOSTS}: the stage has no DNS of its own.
{hosts}
{HOSTS_END}
END
{placed}chmod 755 {scripts}
"""


def interfaces(container: ContainerSettings, network: NetworkSettings) -> str:
    """Return the clone's `/etc/network/interfaces`, for ifupdown."""
    lines = [
        "# Written by pytest-stagegbo.",
        "auto lo",
        "iface lo inet loopback",
        "",
        "auto eth0",
        "iface eth0 inet static",
        f"    address {container.address}",
        f"    netmask {network.subnet.netmask}",
        f"    gateway {network.address.ip}",
        f"    dns-nameservers {network.address.ip}",
        f"    up {_announce(network)}",
    ]
    if network.twins:
        lines.append(f"    up {TWINS}")
    else:  # the host would answer at its own address there: Incus lets port 53 through to it from every bridge
        lines.append(f"    up ip route replace unreachable {network.production}")
    return "\n".join(lines) + "\n"


def network_script(container: ContainerSettings, network: NetworkSettings) -> str:
    """Return POSIX shell that does what ifupdown would do with `interfaces`, with fewer processes."""
    address = f"{container.address}/{network.subnet.prefixlen}"
    last = TWINS if network.twins else f"ip route replace unreachable {network.production}"
    return f"""#!/bin/sh
# Written by pytest-stagegbo: what {INTERFACES} says.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
ip -batch - <<'END'
link set lo up
link set eth0 up
address replace {address} broadcast + dev eth0
route replace default via {network.address.ip} dev eth0 onlink
END
{_announce(network)}
{last}
"""


def _announce(network: NetworkSettings) -> str:
    # The host may know the address with the MAC of an earlier clone, and asks again after nine seconds only. An ARP
    # request from here tells it, and any packet (this one is to the port that discards) begins with one.
    return f"bash -c 'echo >/dev/udp/{network.address.ip}/9' || true"


def twins_script(
    container: ContainerSettings, containers: Iterable[ContainerSettings], network: NetworkSettings
) -> str:
    """POSIX shell that gives the clone its twin's production address, and the way to the other twins.

    The addresses live on a VXLAN between the clones, whose packets carry stage addresses only: no production
    address is ever seen on the bridge, so the host can neither answer for one nor forward to one, and its filters
    need no exception. Every neighbour is known beforehand: nothing is learnt, nothing is flooded. What has no twin
    is unreachable at once.
    """
    links = [
        f"link add {TWIN_DEVICE} address {_mac(container.address)} type vxlan id {TWIN_ID} dstport {TWIN_PORT} "
        f"local {container.address} dev eth0 nolearning"
    ]
    links.append(f"link set {TWIN_DEVICE} up")
    if container.production_address is not None:
        links.append(f"address add {container.production_address}/32 dev {TWIN_DEVICE}")
    source = f" src {container.production_address}" if container.production_address is not None else ""
    links.append(f"route add unreachable {network.production}")
    paths = []
    for other in containers:
        if other.production_address is None or other.name == container.name:
            continue
        mac = _mac(other.address)
        links.append(f"route add {other.production_address}/32 dev {TWIN_DEVICE}{source}")
        links.append(f"neighbour add {other.production_address} lladdr {mac} dev {TWIN_DEVICE} nud permanent")
        paths.append(f"fdb add {mac} dev {TWIN_DEVICE} dst {other.address}")
    ip_lines, bridge_lines = "\n".join(links), "\n".join(paths)
    # No line of it may be the END_OF_FILE that `place_script` puts behind it.
    return f"""#!/bin/sh
# Written by pytest-stagegbo: inside the stage, production's addresses belong to the clones.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
ip link delete {TWIN_DEVICE} 2>/dev/null || true
ip route delete unreachable {network.production} 2>/dev/null || true
ip -batch - <<'END'
{ip_lines}
END
bridge -batch - <<'END'
{bridge_lines}
END
"""


def _mac(address: IPv4Address) -> str:
    """Return a locally administered MAC address made from an IP address, so that both ends know it beforehand."""
    return ":".join(["02", "67", *(f"{byte:02x}" for byte in address.packed)])
