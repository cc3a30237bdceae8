"""Shell scripts that hold everything in a clone that may write, and let it go on: what several clones hold at one
moment can be kept while all of them are held.

Processes are stopped by SIGSTOP, from inside: the daemon's freezer would stop the shell that copies, too. A hold ends
by itself: whoever asked for it may be killed.
"""

from __future__ import annotations

from pytest_stagegbo.incus.channel import MARK

__all__ = ["LONGEST", "hold_script", "let_go_script"]

LONGEST = 10
"""Seconds after which a hold ends by itself."""
_HELD = "/run/stagegbo-held"
"""What is held: a line for each process, with its start."""

_FUNCTIONS = rf"""held={_HELD}
seen() {{ # PID: a process, in $state and $started
    {{ read -r line <"/proc/$1/stat"; }} 2>/dev/null || return 1
    set -- ${{line##*) }}
    state=$1 started=${{20}}
}}

let_go() {{ # whether all of them were held until now
    whole=1
    [ -e "$held" ] || return 1
    while read -r pid since; do
        seen "$pid" && [ "$started" = "$since" ] || continue
        case $state in T | Z | X) ;; *) whole= ;; esac # one that was ending has no one who waits for it
        kill -CONT "$pid" 2>/dev/null || true
    done <"$held"
    rm -f "$held"
    {{ read -r pid since <"$held.guard"; }} 2>/dev/null || return 1
    if seen "$pid" && [ "$started" = "$since" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -f "$held.guard"
    [ -n "$whole" ]
}}
"""


def hold_script() -> str:
    """POSIX shell that stops every process but the first one and this tool's own. Status 1: one can't be stopped."""
    return f"""set -eu
{_FUNCTIONS}
let_go || true # what a run that was killed has left
umask 077
rm -f "$held.guard"
: >"$held"
(
    sleep {LONGEST} &
    if seen $!; then echo "$! $started" >"$held.guard"; fi
    if wait $!; then let_go || true; fi # it was not ended by `let_go`
) </dev/null >/dev/null 2>&1 &
until [ -s "$held.guard" ]; do sleep 0.001; done
known=' ' round=0
while :; do
    own=" $(grep -lsa '{MARK}=' /proc/[0-9]*/environ | tr '\\n' ' ')"
    busy=
    for folder in /proc/[0-9]*; do
        pid=${{folder#/proc/}}
        [ "$pid" != 1 ] && seen "$pid" || continue
        case $state in Z | X | T | t) continue ;; esac
        case $own in *" $folder/environ "*) continue ;; esac
        busy=1
        case $known in *" $pid:$started "*) continue ;; esac
        known="$known$pid:$started "
        echo "$pid $started" >>"$held" # before it is stopped, so that it goes on whatever happens
        kill -STOP "$pid" 2>/dev/null || true
    done
    [ -n "$busy" ] || break
    round=$((round + 1))
    [ "$round" -lt 1000 ] || {{ echo "process $pid can't be stopped"; exit 1; }}
    sleep 0.002
done
"""


def let_go_script() -> str:
    """POSIX shell that lets go on what `hold_script` has stopped. Status 1: something had gone on before."""
    return f"{_FUNCTIONS}let_go\n"
