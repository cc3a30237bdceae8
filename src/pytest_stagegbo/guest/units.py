"""Limits what a clone may start to one folder of units, which a generator of ours makes at each boot.

PID 1 looks for units and generators where its environment says (systemd(1): `SYSTEMD_UNIT_PATH`,
`SYSTEMD_GENERATOR_PATH`, `SYSTEMD_ENVIRONMENT_GENERATOR_PATH`), and Incus gives an instance's `environment.*` keys to
PID 1. `boot_environment` names nothing but our generator and the folder that it writes. So units, `.wants`, drop-ins
for all, generators and presets of production are not looked at, wherever they are, and what a clone can start is what
`generator` puts into that folder: a few units of systemd's own package, the units that the settings name, with their
drop-ins, and ours.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.settings import ContainerSettings

__all__ = [
    "BOOT",
    "CONFINED",
    "FOLDER",
    "OWN_UNITS",
    "PACKAGE_UNITS",
    "PREPARE",
    "UNIT_FOLDER",
    "boot_environment",
    "boot_folder",
    "boot_folder_of",
    "confinement",
    "generator",
    "holds_services",
    "release",
]

FOLDER = "/var/lib/stagegbo"
"""Everything that the first boot leaves in a clone."""
BOOT = "boot"
"""The one file that is placed in a clone, in `boot_folder`: PID 1's generator, and with the word `prepare` the first
boot's work."""
_HERE, _IDENTITY = "@FOLDER@", "@IDENTITY@"
"""Stand for the boot folder and the clone's identity in the text of a unit. The script knows both only in the clone."""
UNIT_FOLDER = "/run/systemd/generator"
"""Where systemd has generators write; it empties the folder before each of their runs."""
PREPARE = "stagegbo-prepare.service"
SERVICES = "stagegbo-services"
OWN_UNITS = (PREPARE, "networking.service", f"{SERVICES}.path", f"{SERVICES}.target", "default.target")
"""What this tool adds to those of the settings."""
BOOT_LIMIT_SECONDS = 600

_GENERATORS = "environment.SYSTEMD_GENERATOR_PATH"
CONFINED = ("environment.SYSTEMD_UNIT_PATH", _GENERATORS, "environment.SYSTEMD_ENVIRONMENT_GENERATOR_PATH")
"""Configuration keys of the instance. Every clone has them for its first boot, one with a full boot for that alone."""

PACKAGE_UNITS = (
    *("basic.target", "dbus.service", "dbus.socket", "exit.target", "final.target", "halt.target"),
    *("local-fs-pre.target", "local-fs.target", "multi-user.target", "network-online.target", "network-pre.target"),
    *("network.target", "nss-lookup.target", "nss-user-lookup.target", "paths.target", "poweroff.target"),
    *("reboot.target", "remote-fs-pre.target", "remote-fs.target", "shutdown.target", "slices.target"),
    *("sockets.target", "swap.target", "sysinit.target", "system.slice", "systemd-exit.service"),
    *("systemd-halt.service", "systemd-journald-dev-log.socket", "systemd-journald.service"),
    *("systemd-journald.socket", "systemd-poweroff.service", "systemd-reboot.service", "time-set.target"),
    *("time-sync.target", "timers.target", "umount.target", "user.slice"),
)
"""Units of systemd's package, and D-Bus's: what services order themselves by, the journal, and the way to a clean stop.
None of them is started unless something needs it."""


def boot_folder(identity: str) -> str:
    """Return the folder of the boot file, in a clone with this identity and in all copies of it.

    PID 1 runs every program in it as a generator, and the daemon writes it, which follows links in a container as if
    they were the host's (before Incus 6.0.6). So its name is one that nothing of production's can have: the identity
    is random.
    """
    return f"/stagegbo-{identity}"


def boot_folder_of(config: Mapping[str, str]) -> str:
    """Return the boot folder that a confined clone's configuration names, or an empty text for any other instance."""
    folder = config.get(_GENERATORS, "")
    return folder if re.fullmatch(re.escape(boot_folder("")) + "[0-9a-f]{16}", folder) else ""


def confinement(folder: str) -> dict[str, str]:
    """Return the values of the keys `CONFINED` for a clone with this boot folder."""
    return dict(zip(CONFINED, (UNIT_FOLDER, folder, f"{folder}/none"), strict=True))


def boot_environment(container: ContainerSettings, folder: str) -> dict[str, str]:
    """Return configuration keys of the instance that confine PID 1. There are none for a clone with full boots."""
    return confinement(folder) if container.boot == "units" else {}


def holds_services(container: ContainerSettings) -> bool:
    """Whether a new clone boots before what it needs answers, and its services wait for the file `release`. Those of an
    opened capsule do so until somebody wants them.

    Not where hooks are run, which may want the services, nor in a full boot, whose services nobody lists.
    """
    return (bool(container.needs) or container.held) and container.boot == "units" and not container.hooks


def release(folder: str, identity: str) -> str:
    """Return the path of the file in the boot folder that starts the services of a clone that waits for others.

    It is placed once what they need answers. The boot need not have come far by then, and the folder is there before
    it. It bears the clone's identity, so that none of the source's counts.
    """
    return f"{folder}/release-{identity}"


def generator(container: ContainerSettings) -> str:
    """POSIX shell, a generator (systemd.generator(7)): `$1` is the folder for units, `$identity` the clone's, `$folder`
    the boot folder."""
    full = container.boot == "full"
    named = () if full else container.units
    files = {
        "default.target": _last_target() if full else _default_target(container),
        PREPARE: _prepare_unit(last=full),
        "networking.service": _network_unit(),
        # The first boot gives the clone a machine id of its own, which names the journal's folder.
        "systemd-journald.service.d/stagegbo.conf": f"[Unit]\nAfter={PREPARE}\n",
    }
    if holds_services(container):
        files[f"{SERVICES}.target"] = _services_target(container)
        files[f"{SERVICES}.path"] = _release_path()
    written = "".join(f"printf %s {_quoted(text)} >{name}\n" for name, text in files.items())
    own = "".join(f"own {shlex.quote(unit)}\n" for unit in named)
    return f"""units=$1
cd "$units"
package=/usr/lib/systemd/system
[ -d $package ] || package=/lib/systemd/system
generators=${{package%/system}}/system-generators

find_unit() {{ # NAME: sets `file` to the unit's, in systemd's own order
    for folder in /etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system $package; do
        file=$folder/$1
        if [ -e "$file" ] || [ -L "$file" ]; then return 0; fi
    done
    return 1
}}

drop_ins() {{ # NAME
    for folder in /etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system $package; do
        for file in "$folder/$1.d"/*.conf; do
            [ -e "$file" ] || continue
            [ -d "$1.d" ] || mkdir "$1.d"
            [ -e "$1.d/${{file##*/}}" ] || ln -s "$file" "$1.d/"
        done
    done
}}

link() {{ # NAME: the unit, the one that it is another name of, and their drop-ins
    [ ! -e "$1" ] && [ ! -L "$1" ] || return 0
    find_unit "$1" || return 1
    real=$(readlink -f "$file")
    case ${{real##*/}} in
    "$1" | null) ln -s "$file" "$1" ;;
    *)
        [ -e "${{real##*/}}" ] || ln -s "$real" "${{real##*/}}"
        ln -s "$units/${{real##*/}}" "$1"
        drop_ins "${{real##*/}}"
        ;;
    esac
    drop_ins "$1"
}}

own() {{ # NAME: a unit that the settings name, and what it can't be without
    name=$1 stem=${{1%.*}}
    link "$name" || case $name in
    *@*.*) link "${{name%%@*}}@.${{name##*.}}" || true ;;
    *.service) # of an init script
        if [ -x "/etc/init.d/$stem" ] && [ -x $generators/systemd-sysv-generator ]; then
            mkdir .sysv
            $generators/systemd-sysv-generator "$units/.sysv" "$units/.sysv" "$units/.sysv" || true
            [ ! -f ".sysv/$name" ] || mv ".sysv/$name" .
            rm -rf .sysv
        fi
        ;;
    esac
    case $name in
    *.service) # as PostgreSQL's, which has an instance for each cluster
        if [ -x "$generators/$stem-generator" ]; then
            link "$stem@.service" || true
            "$generators/$stem-generator" "$units" "$units" "$units" || true
        fi
        ;;
    *) link "$stem.service" || true ;; # what a socket, a timer or a path starts
    esac
}}

set --
for name in {" ".join(PACKAGE_UNITS)}; do
    [ ! -e $package/$name ] || set -- "$@" $package/$name
done
ln -s -t . "$@"
mkdir systemd-journald.service.d
{written}{own}
# Only folders that are elsewhere in the container are mounted, and file systems in memory: other lines of fstab would
# run programs of production's, and reach for its servers.
if [ -x $generators/systemd-fstab-generator ] && [ -r /etc/fstab ]; then
    while read -r what where type options rest; do
        case $what in '' | \\#*) continue ;; esac
        case ,$options, in *,bind,* | *,rbind,*) ;; *) case $type in tmpfs) ;; *) continue ;; esac ;; esac
        printf '%s %s %s %s 0 0\\n' "$what" "$where" "$type" "$options"
    done </etc/fstab >.fstab
    export SYSTEMD_FSTAB="$units/.fstab"
    [ ! -s .fstab ] || $generators/systemd-fstab-generator "$units" "$units" "$units" || true
fi

# For people, should a service not come up: it is an error of systemd's only in the journal.
for name in {shlex.join(named)}; do
    [ ! -f "$name" ] || sed -n 's/^[[:space:]]*\\(Requires\\|Requisite\\|BindsTo\\)[[:space:]]*=//p' "$name" |
        while read -r wanted; do
            for each in $wanted; do
                case $each in *%* | *.slice | *.mount | *.device | -*) continue ;; esac
                [ -e "$each" ] || echo "$name requires $each, which is not in containers.{container.name}.units"
            done
        done
done >.missing
"""


def _quoted(text: str) -> str:
    """Return a shell word in which boot folder and identity are replaced."""
    return shlex.quote(text).replace(_HERE, "'\"$folder\"'").replace(_IDENTITY, "'\"$identity\"'")


def _prepare_unit(*, last: bool) -> str:
    """Return the unit that does the work of the first boot.

    Args:
        last: The boot ends with it, and a full one follows.
    """
    end = "SuccessAction=poweroff-force\n" if last else ""
    remain = "no" if last else "yes"
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
{end}
[Service]
Type=oneshot
RemainAfterExit={remain}
ExecStart={_HERE}/{BOOT} prepare
StandardOutput=null
TimeoutStartSec={BOOT_LIMIT_SECONDS}
"""


def _last_target() -> str:
    """Return the last target of a first boot that only makes the clone safe and ends, because later boots are full."""
    return f"# Written by pytest-stagegbo.\n[Unit]\nDescription=First boot of this clone\nRequires={PREPARE}\n"


def _network_unit() -> str:
    """Return a network unit in place of ifupdown's, whose scripts are production's and which starts some forty
    processes."""
    return f"""# Written by pytest-stagegbo.
[Unit]
Description=Address and routes of this clone
DefaultDependencies=no
After={PREPARE} network-pre.target
Before=network.target network-online.target shutdown.target
Wants=network.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={FOLDER}/network
"""


def _default_target(container: ContainerSettings) -> str:
    """Return the boot's target, which starts the container's units and nothing else: no cron, timer or mail queue."""
    wanted = f"{SERVICES}.path" if holds_services(container) else " ".join(container.units)
    return f"""# Written by pytest-stagegbo: only what the settings name is started (containers.{container.name}.units).
[Unit]
Description=Stage clone of {container.name if container.held else container.source_name}
Requires={PREPARE} sysinit.target
Wants=systemd-journald.service networking.service {wanted}
After={PREPARE} sysinit.target networking.service
AllowIsolate=yes
"""


def _release_path() -> str:
    return f"""# Written by pytest-stagegbo: services start once those that they need answer.
[Unit]
Description=Wait for what this clone needs

[Path]
PathExists={release(_HERE, _IDENTITY)}
Unit={SERVICES}.target
"""


def _services_target(container: ContainerSettings) -> str:
    return f"""# Written by pytest-stagegbo: containers.{container.name}.units.
[Unit]
Description=Services of this clone
Wants={" ".join(container.units)}
After=networking.service
"""
