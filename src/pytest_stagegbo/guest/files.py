"""The files of a clone's first boot, as a pure function of the settings.

A oneshot unit runs before the network and before every service, and the boot can't pass it: the boot's target
requires it, what starts services comes after it, and its failure powers the clone off. It empties what must not
survive and leaves a stamp, so that later boots keep what the stage has done since. One boot does it all, on every
storage driver, local or remote.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_stagegbo.guest import clearing
from pytest_stagegbo.guest.keeping import keep_script

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

    from pytest_stagegbo.settings import ContainerSettings, NetworkSettings, Settings

__all__ = ["FOLDER", "RELEASE", "STAMP", "GuestFile", "guest_files", "holds_services", "machine_id"]

FOLDER = "/var/lib/stagegbo"
STAMP = f"{FOLDER}/prepared"
"""Written when the wipes are done and checked. Its absence makes the next boot wipe."""
SCRIPT = f"{FOLDER}/prepare"
UNIT = "stagegbo-prepare.service"
RELEASE = f"{FOLDER}/release"
"""Placed when what the clone needs answers, which may be before its boot has come far. Until then none of its services
is started."""
SERVICES = "stagegbo-services"
BOOT_LIMIT_SECONDS = 600

HOSTS = "# Written by pytest-stagegbo"
HOSTS_END = "# End of what pytest-stagegbo wrote"
"""Around its lines in /etc/hosts: a copy of a clone that was booted has them already, with other addresses."""
TWINS = f"{FOLDER}/twins"
TWIN_DEVICE = "twin0"
TWIN_ID = 5858
TWIN_PORT = 4789
"""IANA's port for VXLAN (RFC 7348)."""


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file to place in a stopped clone, owned by root."""

    path: str
    content: str
    mode: int = 0o644
    same_everywhere: bool = False
    """Whether a golden copy has it already: it holds no address."""
    replaces_link: bool = False
    """The path may hold a symbolic link, which is removed first: written through, it would change its target."""


def guest_files(container: ContainerSettings, settings: Settings) -> tuple[GuestFile, ...]:
    """Everything that a clone needs to come up as the stage's own, in the order of placing.

    Few files, since each is a request of some ten milliseconds: what is only needed once the script runs, the
    script writes itself. The network's configuration is not among that: a hotplug event could be quicker.
    """
    files = [
        GuestFile("/etc/network/interfaces", interfaces(container, settings.network)),
        GuestFile(SCRIPT, prepare_script(container, settings), mode=0o755),
        GuestFile(f"/etc/systemd/system/{UNIT}", prepare_unit(), same_everywhere=True),
    ]
    if container.boot == "units":
        path = "/etc/systemd/system/default.target"
        files.append(GuestFile(path, stage_target(container), same_everywhere=True, replaces_link=True))
        if holds_services(container):
            unit = f"/etc/systemd/system/{SERVICES}"
            files.append(GuestFile(f"{unit}.path", release_path(), same_everywhere=True))
            files.append(GuestFile(f"{unit}.target", services_target(container), same_everywhere=True))
    else:
        path = "/etc/systemd/system/sysinit.target.d/stagegbo.conf"
        files.append(GuestFile(path, sysinit_drop_in(), same_everywhere=True))
    return tuple(files)


def holds_services(container: ContainerSettings) -> bool:
    """Whether a new clone boots before what it needs answers, and its services wait for `RELEASE`.

    Not where hooks are run, which may want the services, nor in a full boot, whose services nobody lists.
    """
    return bool(container.needs) and container.boot == "units" and not container.hooks


def machine_id() -> GuestFile:
    """An identity of the clone's own: with production's it would share a journal folder and DHCP identity.

    Replaced rather than removed, since systemd takes a missing one for a first boot and enables every unit that
    its presets name.
    """
    return GuestFile("/etc/machine-id", secrets.token_hex(16) + "\n", mode=0o444)


def interfaces(container: ContainerSettings, network: NetworkSettings) -> str:
    """ifupdown's `/etc/network/interfaces` for the clone."""
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
        # The host may know the address with the MAC of an earlier clone, and asks again after nine seconds only. An
        # ARP request from here tells it, and any packet (this one is to the port that discards) begins with one.
        f"    up bash -c 'echo >/dev/udp/{network.address.ip}/9' || true",
    ]
    if network.twins:
        lines.append(f"    up {TWINS}")
    else:  # the host would answer at its own address there: Incus lets port 53 through to it from every bridge
        lines.append(f"    up ip route replace unreachable {network.production}")
    return "\n".join(lines) + "\n"


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
    # No line of it may be the END_OF_SCRIPT that `prepare_script` puts behind it.
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
    """A locally administered MAC made from an address, so that both ends know it beforehand."""
    return ":".join(["02", "67", *(f"{byte:02x}" for byte in address.packed)])


def prepare_script(container: ContainerSettings, settings: Settings) -> str:
    """POSIX shell: clears what the settings name, checks that it is gone, names the clones, stamps."""
    report = f"{FOLDER}/report"
    twins = ""
    if settings.network.twins:
        script = twins_script(container, settings.containers.values(), settings.network)
        twins = f"cat >{TWINS} <<'END_OF_SCRIPT'\n{script}END_OF_SCRIPT\nchmod 755 {TWINS}\n"
    hosts = "\n".join(f"{other.address} {other.name}" for other in settings.containers.values())
    return f"""#!/bin/sh
# Written by pytest-stagegbo: makes this clone of a production container safe before any service starts.
# A failure stops the boot, so that nothing runs on what should have been wiped.
set -eu
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec 2>{FOLDER}/prepare.log

{clearing.functions(report)}
: >{report}
{clearing.empty_folders(container.wipe)}{clearing.clear_files(container.logs)}\
{keep_script(container.data) if container.data and not container.hooks else ""}\
[ -L /etc/resolv.conf ] || echo 'nameserver {settings.network.address.ip}' >/etc/resolv.conf
sed -i '/^{HOSTS}/,/^{HOSTS_END}/d' /etc/hosts
cat >>/etc/hosts <<'END'
{HOSTS}: the stage has no DNS of its own.
{hosts}
{HOSTS_END}
END
{twins}mv {report} {STAMP}
"""


def prepare_unit() -> str:
    return f"""# Written by pytest-stagegbo.
[Unit]
Description=Make this clone safe before anything else starts
DefaultDependencies=no
ConditionPathExists=!{STAMP}
RequiresMountsFor={FOLDER} /opt
After=local-fs.target
Before=sysinit.target network-pre.target networking.service systemd-networkd.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target
FailureAction=poweroff-force

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={SCRIPT}
TimeoutStartSec={BOOT_LIMIT_SECONDS}

[Install]
WantedBy=sysinit.target
"""


def sysinit_drop_in() -> str:
    """For a full boot: services wait for `sysinit.target` by default, and it fails with the unit."""
    return f"# Written by pytest-stagegbo.\n[Unit]\nRequires={UNIT}\nAfter={UNIT}\n"


def stage_target(container: ContainerSettings) -> str:
    """A default target that starts the container's purpose and nothing else: no cron, no timers, no mail queue."""
    wanted = f"{SERVICES}.path" if holds_services(container) else " ".join(container.units)
    return f"""# Written by pytest-stagegbo: only what the settings name is started (containers.{container.name}.units).
[Unit]
Description=Stage clone of {container.source_name}
Requires={UNIT} sysinit.target
Wants=networking.service {wanted}
After={UNIT} sysinit.target networking.service
AllowIsolate=yes
Conflicts=rescue.service rescue.target
"""


def release_path() -> str:
    return f"""# Written by pytest-stagegbo: services start once those that they need answer.
[Unit]
Description=Wait for what this clone's services need

[Path]
PathExists={RELEASE}
Unit={SERVICES}.target
"""


def services_target(container: ContainerSettings) -> str:
    return f"""# Written by pytest-stagegbo: containers.{container.name}.units.
[Unit]
Description=Services of this clone
Wants={" ".join(container.units)}
After=networking.service
"""
