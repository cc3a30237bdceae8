"""Whether a cluster is untouched since its last reset: what a reset leaves behind to tell, and the look that tells.

When all is made for the next reset, the session that waits for it looks once more. The cluster has to be as the reset
left it: the files of databases are as they were made, the write-ahead log has nothing but checkpoints after the reset's
own transaction, the fingerprint of what databases share is the copy's, and no other session is open. From then on
nothing can have happened in the container without a new process: a session is one, so is whatever a test starts.
Process ids are given one after the other, so the id of the shell that looks next tells whether there was any. What is
written from outside of the container needs no process in it, and shows in the files' times.
"""

from __future__ import annotations

import secrets
import shlex

__all__ = ["SETTLE", "new_mark"]

_HERE = r"""select l as here, 'here ' || l || ' ' || left(pg_walfile_name(l), 8) as told
    from (select pg_current_wal_insert_lsn()) x(l) \gset
\echo :told
"""
_LOOK = r"""execute compare(:'golden') \gset
select :'same' and pg_current_wal_insert_lsn() = :'here' and not exists (select from pg_stat_activity
    where pid <> pg_backend_pid() and (datid is not null or backend_type = 'walsender')) as quiet,
    (select string_agg(pid::text, ' ') from pg_stat_activity) as known \gset
\if :quiet
\echo quiet :known
\else
\echo touched
\endif
\q
"""
"""Answered with `quiet` and the server's processes that it knows: neither sessions, nor what is about to become one."""

SETTLE = rf"""
last_process() {{ # the id of a new process, in $last
    last=$(read -r inner rest </proc/self/stat; echo "$inner")
}}

is_untouched() {{ # MARK: since the reset with this mark
    read -r inner rest </proc/self/stat
    {{ read -r each last <"$note.last"; }} 2>/dev/null && [ "$each $((last + 1))" = "$1 $inner" ] || return 1
    [ -z "$(exec find "$data" -newercc "$note.settled" -print -quit 2>&1)" ] || return 1
    echo "$1 $((inner + 1))" >"$note.last" # that of find
}}

settle() {{ # notes that all is as the exchange left it, and which process was the last one then
    log=${{program%/*}}/pg_waldump
    [ -n "$used" ] && [ -e "$note" ] && has_session && [ -p "$name.look" ] && [ -x "$log" ] || return 0
    echo "$mark" >"$note.settled" # what changes in the folder from now on is newer
    are_as_made $((first - step)) || return 0
    exec 6<>"$name.told" 7<>"$name.look" 8<"$name.told" 6>&-
    printf %s {shlex.quote(_HERE)} >&7
    hear here || return 0
    set -- $said
    own="tx: +$((${{at#* }} % 4294967296)), "
    log=$("$log" -p "$data/pg_wal" -t "$((0x$3))" -s "${{at% *}}" -e "$2" 2>&1 |
        grep -vE "^rmgr: ((XLOG|Standby) |.* $own|Heap2 .* desc: PRUNE)" || true)
    [ -z "$log" ] || return 0
    last_process
    before=$last
    printf %s {shlex.quote(_LOOK)} >&7
    hear quiet touched && [ "${{said%% *}}" = quiet ] || return 0
    exec 7>&- 8<&-
    others
    for each in $left; do
        case " $said " in *" $each "*) ;; *) return 0 ;; esac
    done
    last_process
    [ "$last" != $((before + 1)) ] || echo "$mark $last" >"$note.last"
}}
"""
"""Shell functions. Whatever is not certain leaves no note, and the next reset is a whole one."""


def new_mark() -> str:
    """Tells one reset from every other."""
    return secrets.token_hex(8)
