"""Shell scripts that hold everything in a clone that may write, and let it go on: what several clones hold at one
moment can be kept while all of them are held.

Processes are stopped by SIGSTOP, from inside: the daemon's freezer would stop the shell that copies, too. A hold ends
by itself: whoever asked for it may be killed.

This tool's own processes go on, but for what works behind a reset of a database: it removes folders of databases that
were used before, which a copy would miss halfway.
"""

from __future__ import annotations

from pytest_stagegbo.incus.channel import MARK

__all__ = ["LONGEST", "hold_script", "let_go_script"]

LONGEST = 10
"""Seconds after which a hold ends by itself."""
_HELD = "/run/stagegbo-held"
"""What is held: a line for each process, with its start."""
_BEHIND = "/run/stagegbo/*.server.behind"
"""Notes of what works behind resets of databases: see `resets.database`."""

_FUNCTIONS = rf"""held={_HELD}
seen() {{ # PID: a process, in $state, $parent and $started
    {{ read -r line <"/proc/$1/stat"; }} 2>/dev/null || return 1
    set -- ${{line##*) }}
    state=$1 parent=$2 started=${{20}}
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
behind=
for note in {_BEHIND}; do
    {{ read -r pid since <"$note"; }} 2>/dev/null && seen "$pid" && [ "$started" = "$since" ] || continue
    behind="$behind $pid "
done
known=' ' ours=' ' round=0 end='
'
while :; do
    busy= own=
    for folder in /proc/[0-9]*; do
        pid=${{folder#/proc/}}
        [ "$pid" != 1 ] && seen "$pid" || continue
        case $state in Z | X | T | t) continue ;; esac
        case $known in *" $pid:$started "*) busy=1 && continue ;; esac
        case $ours in *" $pid:$started "*) continue ;; esac
        case $behind in
        *" $pid "* | *" $parent "*) ;;
        *)
            [ -n "$own" ] || own="$end$(grep -lsa '{MARK}=' /proc/[0-9]*/environ || true)$end" # some end meanwhile
            case $own in *"$end$folder/environ$end"*) ours="$ours$pid:$started " && continue ;; esac
            ;;
        esac
        busy=1
        until [ -s "$held.guard" ]; do sleep 0.001; done # before anything is stopped: it goes on whatever happens
        known="$known$pid:$started "
        echo "$pid $started" >>"$held" # likewise
        kill -STOP "$pid" 2>/dev/null || true
    done
    [ -n "$busy" ] || break
    round=$((round + 1))
    [ "$round" -lt 1000 ] || {{ echo "process $pid can't be stopped"; exit 1; }}
    [ "$round" -lt 2 ] || sleep 0.002 # most stop at once
done
until [ -s "$held.guard" ]; do sleep 0.001; done
"""


def let_go_script() -> str:
    """POSIX shell that lets go on what `hold_script` has stopped. Status 1: something had gone on before."""
    return f"{_FUNCTIONS}let_go\n"
