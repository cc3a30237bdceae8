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
from pytest_stagegbo.guest.place import FOLDER, INTERFACES, NETWORK, PLACE, interfaces, place_script

if TYPE_CHECKING:
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["RELEASE", "STAMP", "GuestFile", "guest_files", "holds_services", "machine_id"]

STAMP = f"{FOLDER}/prepared"
"""Written when the wipes are done and checked. A boot that does not find one of this very clone's wipes."""
SCRIPT = f"{FOLDER}/prepare"
UNIT = "stagegbo-prepare.service"
RELEASE = f"{FOLDER}/release"
"""Placed when what the clone needs answers, which may be before its boot has come far. Until then none of its services
is started."""
SERVICES = "stagegbo-services"
BOOT_LIMIT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file to place in a stopped clone, owned by root."""

    path: str
    content: str
    mode: int = 0o644
    replaces_link: bool = False
    """The path may hold a symbolic link, which is removed first: written through, it would change its target."""


def guest_files(container: ContainerSettings, settings: Settings) -> tuple[GuestFile, ...]:
    """Everything that a clone needs to come up as the stage's own, in the order of placing.

    Few files, since each is a request of some ten milliseconds: what is only needed once the script runs, the
    script writes itself. The network's configuration is not among that: a hotplug event could be quicker.
    """
    files = [
        GuestFile(INTERFACES, interfaces(container, settings.network)),
        GuestFile(SCRIPT, prepare_script(container, settings), mode=0o755),
        GuestFile(f"/etc/systemd/system/{UNIT}", prepare_unit()),
    ]
    if container.boot == "units":
        files.append(GuestFile("/etc/systemd/system/networking.service.d/stagegbo.conf", network_drop_in()))
        path = "/etc/systemd/system/default.target"
        files.append(GuestFile(path, stage_target(container), replaces_link=True))
        if holds_services(container):
            unit = f"/etc/systemd/system/{SERVICES}"
            files.append(GuestFile(f"{unit}.path", release_path()))
            files.append(GuestFile(f"{unit}.target", services_target(container)))
    else:
        path = "/etc/systemd/system/sysinit.target.d/stagegbo.conf"
        files.append(GuestFile(path, sysinit_drop_in()))
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


def prepare_script(container: ContainerSettings, settings: Settings) -> str:
    """POSIX shell: clears what the settings name, checks that it is gone, gives the clone its place, stamps."""
    report = f"{FOLDER}/report"
    return f"""#!/bin/sh
# Written by pytest-stagegbo: makes this clone of a production container safe before any service starts.
# A failure stops the boot, so that nothing runs on what should have been wiped.
set -eu
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec 2>{FOLDER}/prepare.log

# A copy of this clone has its stamp, and a place of its own.
place=$(sed -zn 's/^{PLACE}=//p' /proc/1/environ)
placed="placed ${{place%%:*}}"
if grep -qsxF "$placed" {STAMP}; then exit 0; fi
rm -f {STAMP}

{clearing.functions(report)}
: >{report}
{clearing.empty_folders(container.wipe)}{clearing.clear_files(container.logs)}\
{keep_script(container.data) if container.data and not container.hooks else ""}\
if [ -n "$place" ]; then
    printf %s "${{place#*:}}" | base64 -d | gzip -d >{FOLDER}/place
    . {FOLDER}/place
else
{place_script(container, settings)}fi
say "$placed"
mv {report} {STAMP}
"""


def prepare_unit() -> str:
    return f"""# Written by pytest-stagegbo.
[Unit]
Description=Make this clone safe before anything else starts
DefaultDependencies=no
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


def network_drop_in() -> str:
    return f"# Written by pytest-stagegbo.\n[Service]\nExecStart=\nExecStart={NETWORK}\n"


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
