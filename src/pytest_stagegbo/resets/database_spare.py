"""Spare databases: PostgreSQL gets clean databases in place of used ones while its server goes on.

What a database is, is a folder in `base`, named by its OID, and one row of `pg_database` with that OID. So copies of
all databases are kept beside the server, and take the place of the used ones when the rows get the copies' OIDs, in
one transaction which lets no session in. No server starts, nothing is copied while a test waits, and it takes as long
for large databases as for small ones. Their OIDs change; the server, its log and its transaction numbers go on.

Roles, settings, files and everything else that the databases of a cluster share do not come back like this. So they
are compared with the clean copy first, within that transaction. Whatever differs leads to the other way, which
exchanges the whole folder (`database.py`).
"""

from __future__ import annotations

from pytest_stagegbo.resets.database_making import MAKING
from pytest_stagegbo.resets.database_session import session

__all__ = ["FLIP", "MOST", "RECORD", "STEP"]

FIRST_OID = 2_000_000_000
"""Of spare databases. Numbers of one life of the server are never used twice: its buffers may hold pages of old ones.
Below 2^31, for clients that take an OID for a signed integer."""
STEP = 64
"""From one set of spare databases to the next, so at most as many databases."""
MOST = 100
"""Sets in one life of the server, which keeps statistics, and dead rows of shared catalogs, of each."""

_FOLDERS = {
    "global": r"(pg_internal\.init.*|pgstat\.stat|[0-9]+(_(fsm|vm|init))?(\.[0-9]+)?)",
    "base": "([0-9]+|pgsql_tmp)",
    "pg_wal": r"([0-9A-F]{24}|archive_status|xlogtemp\.[0-9]+)",
    "pg_wal/archive_status": r"[0-9A-F]{24}\.(ready|done)",
    "pg_xact": "[0-9A-F]+",
    "pg_subtrans": "[0-9A-F]+",
    "pg_multixact/members": "[0-9A-F]+",
    "pg_multixact/offsets": "[0-9A-F]+",
    "pg_commit_ts": "[0-9A-F]+",
    "pg_serial": "[0-9A-F]+",
    "pg_notify": "[0-9A-F]+",
    "pg_stat": r"(pgstat|global|db_[0-9]+)\.stat",
    **dict.fromkeys(
        ("pg_tblspc", "pg_replslot", "pg_twophase", "pg_snapshots", "pg_logical/mappings", "pg_logical/snapshots"), "-"
    ),
}
"""Folders of a cluster that the server writes to, with the names that it gives to files there, if only for a moment."""

_SHARED = " union all ".join(
    (
        "select 'roles', to_jsonb(x)::text from pg_authid x",
        "select 'roles', to_jsonb(x)::text from pg_auth_members x",
        "select 'tablespaces', to_jsonb(x)::text from pg_tablespace x",
        "select 'subscriptions', to_jsonb(x)::text from pg_subscription x",
        "select 'subscriptions', to_jsonb(x)::text from pg_replication_origin x",
        "select 'databases', (to_jsonb(d) - 'oid' - 'datfrozenxid' - 'datminmxid')::text from pg_database d",
        # One that nobody can connect to is not exchanged. Had it been opened for a while, its row would be another.
        "select 'databases', d.datname || d.xmin::text from pg_database d where not d.datallowconn",
        "select 'files', d.datname || f from pg_database d, pg_ls_dir('base/' || d.oid) f where not d.datallowconn",
        "select 'settings', jsonb_build_array(coalesce(d.datname::text, s.setdatabase::text), s.setrole, s.setconfig)"
        "::text from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase",
        "select 'comments', jsonb_build_array(x.classoid, coalesce(d.datname::text, x.objoid::text), x.description)"
        "::text from pg_shdescription x left join pg_database d on x.classoid = 1262 and d.oid = x.objoid",
        "select 'labels', jsonb_build_array(x.classoid, coalesce(d.datname::text, x.objoid::text), x.provider, "
        "x.label)::text from pg_shseclabel x left join pg_database d on x.classoid = 1262 and d.oid = x.objoid",
        "select 'dependencies', jsonb_build_array(x.classid, coalesce(d.datname::text, x.objid::text), x.objsubid, "
        "x.refclassid, x.refobjid, x.deptype)::text from pg_shdepend x left join pg_database d "
        "on x.classid = 1262 and d.oid = x.objid where x.dbid = 0",
        "select 'slots', slot_name::text from pg_replication_slots",
        "select 'transactions', gid from pg_prepared_xacts",
        # Below these numbers the server has forgotten how transactions ended, which a copy's rows may still need.
        "select 'transactions', oldest_xid || ' ' || oldest_multi_xid from pg_control_checkpoint()",
        "select 'files', f from pg_ls_dir('.') f where f not in ('postmaster.pid', 'postmaster.opts', "
        "'current_logfiles')",
        "select 'files', f || md5(pg_read_binary_file(f)) from pg_ls_dir('.') f where f not in "
        "('postmaster.pid', 'postmaster.opts', 'current_logfiles') and not (pg_stat_file(f)).isdir",
        *(
            f"select 'files', '{folder}/' || f from pg_ls_dir('{folder}', true, false) f where f !~ '^{names}$'"
            for folder, names in _FOLDERS.items()
        ),
    )
)
_FINGERPRINT = (
    "select string_agg(k || ':' || v, ' ' order by k) from (select k, md5(string_agg(r, '|' order by r collate "
    f'"C")) v from ({_SHARED} @NEWER@) p(k, r) group by k) g'
)
"""Of everything that databases share, by its kind. `@NEWER@` stands for what only newer servers have."""

_RECORDED = (
    f"select ({_FINGERPRINT})::text as stagegbo_golden",
    # A database that has parts in a tablespace, slots, subscriptions or prepared transactions: not this way.
    "select coalesce(string_agg(oid::text, ' ' order by oid), '')::text as stagegbo_oids from pg_database "
    "where datallowconn and not exists (select from pg_replication_slots) and not exists (select from "
    "pg_prepared_xacts) and not exists (select from pg_subscription) and not exists (select from pg_tablespace "
    "where spcname not in ('pg_default', 'pg_global')) and current_setting('shared_preload_libraries') = ''",
    "select coalesce(jsonb_agg(jsonb_build_array(n, md5(datname::text), datfrozenxid::text, datminmxid::text)), '[]')"
    "::text as stagegbo_databases from (select row_number() over (order by oid) - 1 as n, * from pg_database where "
    "datallowconn) d",
    "select coalesce(jsonb_agg(jsonb_build_array(n, classid::text, objid::text, objsubid, refclassid::text, "
    "refobjid::text, deptype)), '[]')::text as stagegbo_dependencies from (select row_number() over (order by oid) - 1 "
    "as n, oid from pg_database where datallowconn) d join pg_shdepend s on s.dbid = d.oid",
)

RECORD = (
    r"""
record() { # VERSION: what a copy of the cluster is like, asked of the server's own program, which recovers it so
    newer=
    [ "$1" -lt 15 ] || newer="union all select 'settings', to_jsonb(x)::text from pg_parameter_acl x"
    sed "s/@NEWER@/$newer/g" <<'END'
"""
    + "\n".join(_RECORDED)
    + r"""
END
}

recorded() { # what the server's program has answered, as psql's variables
    printf '%s\n' '-- Written by pytest-stagegbo.'
    sed -n "s/^.*: stagegbo_\([a-z]*\) = \"\(.*\)\"\t(typeid.*\$/\\\\set \1 '\2'/p"
}
"""
)

FLIP = (
    r"""
read_recorded() { # the databases of the copy, in $oids; empty: they can't be exchanged while the server goes on
    oids= each= start="""
    + f"{FIRST_OID}"
    + r"""
    while read -r word each value; do
        case $word:$each in '\set:oids') oids=${value#?} oids=${oids%?}; break ;; esac
    done <"$golden.clean"
    for each in $oids; do # that of a build has such numbers already
        [ "$each" -lt "$start" ] || start=$(((each / step + 1) * step))
    done
}

may_end() { # A reset that wants the lock may end this shell. It does what is left itself, at its own priority.
    trap let_go TERM
    look_at "$inner" && echo "$inner $started" >"$note.behind"
}

let_go() { # What is not done is left to that reset.
    trap '' TERM
    exec 9>&- 8<&- 7>&-
    wait # for the session: an orphan's end would wake the container's first process
    exit 0
}

hasten() { # Ends what works behind a test and has the lock, if it may be ended. 0: the lock is this shell's now.
    { read -r other since <"$note.behind"; } 2>/dev/null || return 1
    kept=
    { read -r kept rest <"$note.session"; } 2>/dev/null || true
    [ -e "/proc/$other/fd/9" ] && look_at "$other" && [ "$started" = "$since" ] && kill "$other" 2>/dev/null || return 1
    # It lets the lock go by itself, once the program that it waits for has ended. A program that loses its parent would
    # go to systemd, which wakes up for it. The next reset sees that systemd was awake, and has to ask it what runs.
    round=0
    while [ -e "/proc/$other/fd/9" ] && [ "$round" -lt 50 ]; do
        all= leaves=
        descend "$other"
        [ -z "$leaves" ] || kill -9 $leaves 2>/dev/null || true
        flock -w 0.003 9 2>/dev/null && return
        round=$((round + 1))
    done
    [ -e "/proc/$other/fd/9" ] && look_at "$other" && [ "$started" = "$since" ] && kill -STOP "$other" || return 1
    all=
    descend "$other"
    kill -9 $all 2>/dev/null || true
    return 1
}

children() { # PID: in $kids
    kids=
    if [ -e "/proc/$1/task/$1/children" ]; then # the line has no end, so `read` fails
        { read -r kids <"/proc/$1/task/$1/children" || true; } 2>/dev/null
        return
    fi
    for each in /proc/[0-9]*; do # of a kernel without it
        each=${each#/proc/}
        if look_at "$each" && [ "$parent" = "$1" ]; then kids="$kids $each"; fi
    done
}

descend() { # PID: it and what it has started, but for the session, in $all; programs without children, in $leaves
    all="$all $1"
    children "$1"
    case " $kids " in "  " | " $kept ") # A shell may start its next program right now.
        [ "/proc/$1/exe" -ef "/proc/$$/exe" ] || leaves="$leaves $1" ;;
    esac
    for each in $kids; do
        [ "$each" = "$kept" ] || descend "$each"
    done
}

look_at_rights() { # of what the folder holds, and of what is in the copy; what tells the copy from others, in $copy
    set -- "$data"
    for each in "$golden"/*; do set -- "$@" "$data/${each##*/}"; done
    count=$#
    set -- $(stat -c %f:%u:%g:%i.%W -- "$golden" "$golden"/* "$@" 2>/dev/null)
    copy=${1##*:} rights="$*"
}

same_rights() { # whether they are the same
    set -- $rights
    [ $# -eq $((2 * count)) ] || return 1
    while [ "$count" -gt 0 ]; do
        eval "each=\${$count} seen=\${$((count + $# / 2))}"
        [ "${each%:*}" = "${seen%:*}" ] || return 1
        count=$((count - 1))
    done
}

end_foreign() { # what the server's sessions have started
    round=0
    while :; do
        others
        children "$pid"
        foreign=
        for each in $left; do
            case " $kids " in *" $each "*) continue ;; esac # a look at each takes longer than all the rest
            look_at "$each" || continue
            [ "$parent" = "$pid" ] || [ "$state" = Z ] || foreign="$foreign $each"
        done
        [ -n "$foreign" ] || return 0
        kill -9 $foreign 2>/dev/null || true
        round=$((round + 1))
        [ "$round" -lt 50 ] || return 1
        sleep 0.002
    done
}

flip() { # spare databases take the place of those that are there; why they don't, in $doubt
    doubt='the server was not started by a reset'
    { read -r doubt <"$note.weak"; } 2>/dev/null || true
    [ -e "$note" ] && { read -r pid since first last base program <"$note"; } 2>/dev/null || return 1
    [ -n "$program" ] && look_at "$pid" && [ "$started" = "$since" ] || return 1
    [ "/proc/$pid/cwd" -ef "$data" ] || return 1
    doubt='every hundredth reset starts the server again'
    [ "$first" -lt "$last" ] || return 1
    doubt='the data folder has changed'
    { read -r each <"$data/postmaster.pid"; } 2>/dev/null && [ "$each" = "$pid" ] || return 1
    doubt='there are no spare databases'
    prepare "$first" || return 1
    heard=
    if ! { has_session && begin_alone; } && ! { keep_session "$first" && begin_alone; }; then
        doubt="the server refuses: $heard"
        return 1
    fi
    doubt='what the server started does not end'
    held=
    find_group && end_foreign || return 1
    # What follows takes no time of its own, as the server compares meanwhile.
    begin_compare
    doubt='the server runs on another copy' # its commit log says nothing of transactions in this one
    look_at_rights
    [ "$base" = "$copy" ] || return 1
    doubt='the data folder has changed'
    same_rights || return 1
    if hear same; then
        begin_exchange
        echo alone # While the server makes the exchange, its probe is asked: until here all cores are busy.
        if hear used && given=${said#used } before=${heard#at } && hear done; then
            used=$given at=$before
            return 0
        fi
    fi
    case $heard in
    differs*) differs ;;
    *) doubt="the server refuses: $heard" ;;
    esac
    return 1
}

differs() { # names what is not as in the copy, in $doubt
    while read -r word each value; do
        case $word:$each in '\set:golden') value=" ${value#?}" known="${value%?} " ;; esac
    done <"$golden.clean"
    doubt=
    for each in ${heard#differs}; do
        case $known in *" $each "*) ;; *) doubt="${doubt:+$doubt, }${each%:*}" ;; esac
    done
    doubt="${doubt:-something that databases share} changed"
}
"""
    + MAKING
    + session(_FINGERPRINT.replace("@NEWER@", ":newer"))
)
