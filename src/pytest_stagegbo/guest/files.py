"""Writes the boot file of a clone, as a pure function of the settings.

A oneshot unit runs before the network and before every service, and the boot can't pass it: the boot's target
requires it, what starts services comes after it, and its failure powers the clone off. It empties what must not
survive and leaves a stamp, so that later boots keep what the stage has done since. One boot does it all, on every
storage driver, local or remote. `units` says what else may start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.guest import clearing, removal, units
from pytest_stagegbo.guest.keeping import keep_script
from pytest_stagegbo.guest.place import PLACE, place_script
from pytest_stagegbo.guest.units import BOOT, FOLDER

if TYPE_CHECKING:
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["STAMP", "SYSTEM_LOGS", "GuestFile", "boot_file", "shown_stamp"]

STAMP = f"{FOLDER}/prepared"
"""Written when the wipes are done and checked. A boot that does not find one of this very clone's wipes."""
SHOWN = "stagegbo-stamp"
"""Begins each line of the stamp that the first boot shows on the container's console."""
SYSTEM_LOGS = ("/var/log",)
"""Emptied where `containers.NAME.system_logs` says so."""


class GuestFile(Struct, frozen=True):
    """A file to place in the boot folder of a new clone, owned by root."""

    name: str
    content: str
    mode: int = 0o644


def boot_file(container: ContainerSettings, settings: Settings) -> GuestFile:
    """Return the file with everything that a clone needs for its first boot.

    The daemon writes this one file as the clone starts. Its script writes the others.
    """
    return GuestFile(BOOT, boot_script(container, settings), mode=0o755)


def shown_stamp(console: str, identity: str) -> str:
    """Return the stamp that a clone's first boot printed on the console, or an empty text if it is not complete. Pure.

    The daemon reads a console in one cheap request. A file takes a process of the daemon's, which afterwards writes
    everything on the pool to its disk, production's data too. Each line bears the clone's identity, and the last line
    counts the others: what the console's buffer has lost, or another's output has cut, shows.
    """
    begin = f"{SHOWN} {identity} "
    lines = [line.removeprefix(begin) for line in console.splitlines() if line.startswith(begin)]
    if not identity or not lines or lines[-1] != f"lines {len(lines) - 1}":
        return ""
    return "".join(f"{line}\n" for line in lines[:-1])


def boot_script(container: ContainerSettings, settings: Settings) -> str:
    """Return the POSIX shell script that is PID 1's generator and, with the word `prepare`, a boot's first unit."""
    return f"""#!/bin/sh
# Written by pytest-stagegbo: says what this clone of a production container may start, and makes it safe before any
# service starts. A failure stops the boot, so that nothing runs on what should have been wiped.
set -eu
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
folder=${{0%/*}}
place=$(sed -zn 's/^{PLACE}=//p' /proc/1/environ)
identity=${{place%%:*}}
if [ "${{1:-}}" != prepare ]; then
{units.generator(container)}exit 0
fi
{_prepare(container, settings)}"""


def _prepare(container: ContainerSettings, settings: Settings) -> str:
    """Return POSIX shell that clears folders, checks that they are empty, sets the addresses, and writes the stamp."""
    report = f"{FOLDER}/report"
    return f"""
mkdir -p {FOLDER}
exec 2>{FOLDER}/prepare.log
[ -n "$identity" ] || {{ echo "PID 1 has no {PLACE} in its environment" >&2; exit 1; }}
{clearing.functions(report)}
placed="placed $identity"
if ! grep -qsxF "$placed" {STAMP}; then # a stamp of the source's is another's
rm -f {STAMP}
for file in {units.release('"$folder"', "*")}; do # the clone's own may be there already
    [ "$file" = {units.release('"$folder"', '"$identity"')} ] || rm -f "$file"
done
for other in {units.boot_folder("?" * 16)}; do # the source was a clone once
    [ "$other" = "$folder" ] || rm -rf "$other"
done
{_confined()}
: >{report}
{removal.delete_aside(container.wipe, wait=True)}\
{clearing.empty_folders(container.wipe)}{clearing.clear_files(container.logs)}\
{clearing.truncate_files(SYSTEM_LOGS) if container.system_logs else ""}\
{_identity(container.name)}\
{keep_script(container.data) if container.data and not (container.hooks or container.held) else ""}\
if [ -n "${{place#*:}}" ]; then
    printf %s "${{place#*:}}" | base64 -d | gzip -d >{FOLDER}/place
    . {FOLDER}/place
else
{place_script(container, settings)}fi
say "$placed"
mv {report} {STAMP}
show="{SHOWN} $identity"
{{ echo; sed "s/^/$show /" {STAMP}; echo "$show lines $(wc -l <{STAMP})"; }} >/dev/console || true
fi
{clearing.note_mounts(container.wipe)}{removal.delete_aside(container.wipe)}\
{_every_boot()}"""


def _confined() -> str:
    """Return shell that checks where systemd looks for units: its configuration (`ManagerEnvironment=`) could change
    it."""
    return f"""path=$(systemctl show --property=UnitPath --value)
[ "$path" = {units.UNIT_FOLDER} ] || {{ echo "PID 1 looks for units in $path" >&2; exit 1; }}
"""


def _identity(name: str) -> str:
    """A machine id and a host name of the clone's own. With production's machine id it would share a journal folder and
    a DHCP identity.

    Replaced rather than removed, since systemd takes a missing one for a first boot and enables every unit that its
    presets name.
    """
    return f"""tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id.stagegbo
chmod 444 /etc/machine-id.stagegbo
mv -f /etc/machine-id.stagegbo /etc/machine-id
[ ! -f /var/lib/dbus/machine-id ] || ln -sf /etc/machine-id /var/lib/dbus/machine-id
if [ "$(cat /etc/hostname 2>/dev/null)" != {name} ]; then
    echo {name} >/etc/hostname
    hostname {name}
fi
"""


def _every_boot() -> str:
    """Return shell that prepares `/run` and other things for the services at every boot.

    Lines of production's about other folders could put files back that were wiped, and a line that fails must not fail
    the boot. The journal's mark has it write to the disk from its start, where it has a folder there. journald gives
    each of its files room in steps of eight megabytes, on the disk or in memory, unless they may not be as large; old
    ones stay, as many as production's settings allow.
    """
    return """mkdir -p /run/systemd/journal /run/systemd/journald.conf.d
: >/run/systemd/journal/flushed
printf '[Journal]\\nSystemMaxFileSize=1M\\nRuntimeMaxFileSize=1M\\n' >/run/systemd/journald.conf.d/zz-stagegbo.conf
systemd-tmpfiles --create --remove --boot --prefix=/run --prefix=/tmp || true
rm -f /run/nologin
if grep -qsE '^-?net[./]' /etc/sysctl.conf /etc/sysctl.d/*.conf; then
    /usr/lib/systemd/systemd-sysctl --prefix=/net || true
fi
"""
