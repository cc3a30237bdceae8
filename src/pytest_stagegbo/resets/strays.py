"""Processes and units that were not there when a container was clean: found, ended, and proven to be gone.

What counts as clean is what the container's boot started, and its own units with whatever they start. systemd keeps
the record: which process belongs to which unit (its cgroup), and when a unit was started. A process outside of every
unit came by `exec`; a unit that was started after the boot, and that neither the boot nor the container's own units
ask for, was started by somebody. Timers, paths and sockets count too: they start processes later.

All of this takes 10 to 40 ms. It is skipped for as long as nothing can have changed, which takes a list of the
processes and one number: systemd is asleep until somebody talks to it, and the kernel counts how often it slept.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo.guest.units import PREPARE, UNIT_FOLDER
from pytest_stagegbo.incus.channel import MARK
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["StrayReport", "parse_strays", "strays_from_host", "strays_script"]

ROUNDS = 50
"""How often what is left is killed again, with 20 ms in between."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_CLOEXEC
_MOST = 1 << 12
"""Bytes of one read."""
_SLEPT = "voluntary_ctxt_switches:"
_TYPES = "service,timer,path,socket,scope"
_STATES = "active,activating,reloading,deactivating,failed"
"""One that has failed runs no more, but `systemd-run --unit=NAME` refuses its name to the next test."""


class StrayReport(Struct, frozen=True):
    """What runs in a container, after whatever should not was ended."""

    processes: frozenset[str]
    """Each as `PID:START`, with the start in ticks."""
    units: tuple[str, ...]
    """Those that may run."""
    slept: str
    """How often systemd has gone to sleep."""
    ended: tuple[str, ...] = ()
    """What was ended, for people."""
    left: tuple[str, ...] = ()
    """What could not be ended."""


def strays_from_host(process: Path, known: StrayReport) -> StrayReport | None:
    """What runs, as the host's kernel shows it; None as soon as there is a process that may have to be ended.

    Args:
        process: Folder of the container's first process below /proc.

    Raises:
        OSError, ValueError: it can't be seen from here.
    """
    base = str(process)
    status = _read(f"{base}/status").decode("ascii", "replace")
    slept = status.rpartition(f"\n{_SLEPT}")[2].split(None, 1)[0]
    folder = os.open(f"{base}/root/proc", _FOLDER)
    try:
        there = {f"{pid}:{_started(folder, pid)}" for pid in os.listdir(folder) if pid.isdecimal()}  # noqa: PTH208
        new = there - known.processes
        for each in new:
            pid, _, started = each.partition(":")
            if not started:
                there.discard(each)  # it has ended
            elif not _may_run(folder, pid, known):
                return None
    finally:
        os.close(folder)
    if not any(each.startswith("1:") for each in there & known.processes):
        raise ValueError("another start of the container, or not its processes")
    if slept == known.slept and there == known.processes:
        return known
    return replace(known, processes=frozenset(there), slept=slept, ended=())


def _started(folder: int, pid: str) -> str:
    """When a process was started; empty: it has ended. The number alone is no proof: the kernel gives it again."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return _read(f"{pid}/stat", folder).rpartition(b")")[2].split(None, 20)[19].decode()
    return ""


def _may_run(folder: int, pid: str, known: StrayReport) -> bool:
    """Whether a new process is of a unit that may run, or this tool's own, or has ended."""
    try:
        unit = _unit(_read(f"{pid}/cgroup", folder).decode("utf-8", "replace"))
        if unit and unit != PREPARE:
            return unit in known.units
        return f"{MARK}=".encode() in _read(f"{pid}/environ", folder)
    except (FileNotFoundError, ProcessLookupError):
        return True


def _read(path: str, folder: int | None = None) -> bytes:
    """A file of /proc; the kernel makes up its content when it is read."""
    file = os.open(path, _FILE, dir_fd=folder)
    try:
        data = more = os.read(file, _MOST)
        while len(more) == _MOST:  # what is shorter is the end, and to ask again costs as much as the first read
            more = os.read(file, _MOST)
            data += more
        return data
    finally:
        os.close(file)


def _unit(cgroup: str) -> str:
    """The unit that a process belongs to, by its `cgroup` below /proc; empty: none."""
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if (number, controllers) == ("0", "") or controllers == "name=systemd":
            for part in path.split("/"):
                if part.endswith((".service", ".scope", ".socket", ".mount", ".swap")):
                    return part
    return ""


def parse_strays(data: bytes) -> StrayReport:
    """Raises ValueError for anything that `strays_script` does not print."""
    found: dict[str, list[str]] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        word, _, rest = line.partition(" ")
        found.setdefault(word, []).append(rest)
    if not {"processes", "units", "slept"} <= found.keys():
        raise ValueError(data.decode("utf-8", "replace").strip()[-500:] or "no answer")
    return StrayReport(
        processes=frozenset(found["processes"][-1].split()),
        units=tuple(found["units"][-1].split()),
        slept=found["slept"][-1],
        ended=tuple(map(mask, found.get("ended", ()))),
        left=tuple(map(mask, found.get("left", ()))),
    )


def strays_script(own: Sequence[str], known: StrayReport | None, *, alone: bool = False, seen: bool = False) -> str:
    """POSIX shell that ends what should not run, and prints what `parse_strays` reads.

    Args:
        own: The container's units.
        known: The last report of this container, which is not gone through again.
        alone: Since that report nobody but this tool can have spoken to systemd, as nothing else ran.
        seen: A glance has just shown that no process has to be ended.
    """
    names = " ".join(each if "." in each else f"{each}.service" for each in own)
    units = " ".join(known.units) if known else ""
    processes = " ".join(known.processes) if known else ""
    slept = known.slept if known else ""
    return f"""own={shlex.quote(f" {names} ")}
allowed={shlex.quote(f" {units} ")}
known={shlex.quote(f" {processes} ")}
slept={shlex.quote(slept)}
{_FUNCTIONS}
for unit in $own; do # an instance is its own if systemd made it one of the unit's, as of PostgreSQL's, for each cluster
    for instance in "{UNIT_FOLDER}/$unit.wants/${{unit%.service}}@"*.service; do
        [ ! -L "$instance" ] || own="$own${{instance##*/}} "
    done
done
{"sleeps; slept=$now" if known and alone else ""}
round=0 strays=''
while :; do
    {'[ "$round" = 0 ] ||' if seen else ""} scan
    if [ -z "$strays" ]; then
        sleeps
        [ "$now" != "$slept" ] || break
        until units 2>/dev/null; do # a container that was just started takes a moment
            round=$((round + 1))
            [ "$round" -le {ROUNDS} ] || {{ echo "systemd in this container does not answer"; exit 1; }}
            sleep 0.1
        done
        if [ -z "$bad" ]; then
            scan
            if [ -z "$strays" ]; then sleeps; break; fi
        fi
    fi
    say ended
    round=$((round + 1))
    [ -z "$bad" ] || round=$((round + 15))
    [ "$round" -le {ROUNDS} ] || {{ told=' '; say left; break; }}
    finish_off
    sleep 0.02
done
echo "slept $now"
echo "units $allowed"
echo "processes $seen"
"""


_FUNCTIONS = rf"""
export LC_ALL=C TZ=UTC SYSTEMD_COLORS=0 SYSTEMD_PAGER=
read -r inner rest </proc/self/stat
told=' ' bad='' strays=''

sleeps() {{
    while read -r word value; do
        [ "$word" != {_SLEPT} ] || now=$value
    done </proc/1/status
}}

unit_of() {{ # PID: the unit that a process belongs to, in $unit
    unit=
    while IFS=: read -r number controllers path; do
        case $number:$controllers in 0: | *:name=systemd) ;; *) continue ;; esac
        while [ -n "$path" ]; do
            case ${{path%%/*}} in
            *.service | *.scope | *.socket | *.mount | *.swap) unit=${{path%%/*}}; return ;;
            esac
            case $path in */*) path=${{path#*/}} ;; *) path= ;; esac
        done
    done
}}

is_own() {{ # PID PARENT: this tool's, or what it has started, which has no environment for a moment of execve(2)
    grep -qsa '{MARK}=' "/proc/$1/environ" || {{ [ "$2" -gt 1 ] && grep -qsa '{MARK}=' "/proc/$2/environ"; }}
}}

scan() {{ # the processes that should not run, in $strays, and the others, in $seen
    # One that ends or starts another program has no environment for a moment: whose it is shows in another look.
    look_through
    [ -z "$strays" ] || look_through
}}

look_through() {{
    strays='' seen=''
    for folder in /proc/[0-9]*; do
        pid=${{folder#/proc/}}
        [ "$pid" != "$inner" ] || continue
        {{ read -r line <"$folder/stat"; }} 2>/dev/null || continue
        set -- ${{line##*) }}
        [ "$2" != "$inner" ] || continue
        key=$pid:${{20}}
        case $known in *" $key "*) seen="$seen $key"; continue ;; esac
        # Another start of the container: its boot may run units that the last one had ended, and to kill the one that
        # makes the clone safe powers it off.
        [ "$pid" != 1 ] || [ "$known" = '  ' ] || {{ slept='' allowed='  ' known='  '; }}
        case $pid:$1 in 1:* | "$$":* | *:Z | *:X) seen="$seen $key"; continue ;; esac
        # One that is exiting runs nothing more, and has no environment that could say whose it is.
        if [ $(($7 & 4)) != 0 ] && [ "${18}" -le 1 ]; then seen="$seen $key"; continue; fi
        {{ unit_of <"$folder/cgroup"; }} 2>/dev/null || continue
        case " init.scope $own $allowed " in # its own may have been down when units were looked at last
        *" ${{unit:-none}} "*) seen="$seen $key"; continue ;;
        esac
        if [ "$allowed" = '  ' ] && [ -n "$unit" ]; then seen="$seen $key"; continue; fi # not known yet
        case $unit in '' | {PREPARE})
            if is_own "$pid" "$2"; then seen="$seen $key"; continue; fi ;;
        esac
        strays="$strays $pid"
    done
}}

say() {{ # WORD: what is about to be ended, each once
    for pid in $strays; do
        case $told in *" $pid "*) continue ;; esac
        told="$told$pid "
        echo "$1 process $pid ($(tr '\0\n' '  ' </proc/$pid/cmdline 2>/dev/null | cut -c 1-200))"
    done
    for unit in $bad; do
        case $told in *" $unit "*) ;; *) told="$told$unit "; echo "$1 $unit" ;; esac
    done
}}

finish_off() {{
    [ -z "$strays" ] || kill -9 $strays 2>/dev/null || true
    [ -n "$bad" ] || return 0
    set -f
    systemctl stop --no-block -- $bad
    systemctl kill -s KILL -- $bad
    timeout 5 systemctl stop -- $bad
    systemctl reset-failed -- $bad
    set +f
}} >/dev/null 2>&1

units() {{ # what systemd runs that should not, in $bad, and the others, in $allowed
    bad='' good=' ' new='' finish=1
    listed=$(systemctl list-units --plain --no-legend --no-pager --full --type={_TYPES} --state={_STATES}) || return 1
    [ -n "$listed" ] || return 1
    while read -r name load active sub rest; do
        case $name:$sub in :* | init.scope:* | *:exited) continue ;; esac
        case $allowed in *" $name "*) good="$good$name " ;; *) new="$new $name" ;; esac
    done <<END
$listed
END
    [ -z "$new" ] || judge || return 1
    [ "$finish" = 0 ] || allowed=$good # of a boot that goes on, more units are to come
}}

judge() {{ # sorts the units in $new by when and for what they were started
    manager=$(systemctl show -p FinishTimestampMonotonic -p FinishTimestamp -p UnitPath) || return 1
    finish=0 stamp='' folders='' late='' name=''
    while IFS= read -r line; do
        case $line in
        FinishTimestampMonotonic=*) finish=${{line#*=}} ;;
        FinishTimestamp=*) stamp=${{line#*=}} ;;
        UnitPath=*) folders=${{line#*=}} ;;
        esac
    done <<END
$manager
END
    set -f
    shown=$(systemctl show -p Id -p Names -p InactiveExitTimestampMonotonic -p TriggeredBy -- $new) || return 1
    shown="$shown
"
    name='' names='' since=0 triggers=''
    while IFS= read -r line; do
        case $line in
        Id=*) name=${{line#*=}} ;;
        Names=*) names=${{line#*=}} ;;
        InactiveExitTimestampMonotonic=*) since=${{line#*=}} ;;
        TriggeredBy=*) triggers=${{line#*=}} ;;
        '') sort_in; name='' names='' since=0 triggers='' ;;
        esac
    done <<END
$shown
END
    if [ -n "$late" ]; then judge_late; fi
    set +f
}}

sort_in() {{
    [ -n "$name" ] || return 0
    if [ "$finish" != 0 ] && [ "$since" -le "$finish" ]; then good="$good$name "; return; fi
    for each in $names; do
        case $own in *" $each "*) good="$good$name "; return ;; esac
    done
    late="$late $name:$(echo "$triggers" | tr ' ' ,)"
}}

judge_late() {{ # one of the boot's that was started again stays, unless whoever did it made it one of the boot's
    asked=" $(systemctl list-dependencies --plain --all --no-pager default.target $own | tr -s ' \n' '  ')"
    changed=' '
    if [ "$finish" != 0 ]; then
        limit=$(($(date -d "$stamp" +%s) + 1))
        changed=" $(find $folders -newerct "@$limit" -printf '%f ' 2>/dev/null) "
    fi
    for entry in $late; do
        name=${{entry%%:*}} fine=''
        case $asked in
        *" $name "*) case $changed in *" $name "* | *" ${{name%%@*}}@.${{name##*.}} "*) ;; *) fine=1 ;; esac ;;
        esac
        for each in $(echo "${{entry#*:}}" | tr , ' '); do
            case $good in *" $each "*) fine=1 ;; esac
        done
        if [ -n "$fine" ]; then good="$good$name "; else bad="$bad $name"; fi
    done
}}
"""
