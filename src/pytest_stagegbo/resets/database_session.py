"""The session in which spare databases take their place: opened behind a test, so that a reset finds it ready.

A psql of its own that a reset starts takes 25 ms: its libraries, a process of the server, and the plans of statements
that read many catalogs. So one is started behind the reset before, plans everything, and waits for a reader's end of a
named pipe to be opened. A reset that finds none starts one, and waits for it. Another pipe comes before that one, for
the look with which a reset ends (`database_untouched.py`): the next reset ends its wait there.

It ends by itself after `IDLE` seconds, and when the shell of a reset ends that speaks to it: the pipe is closed then,
and the server takes back what the session has not committed. The note about it says process and start, the first OID
of the spare databases, the clean copy whose fingerprint it knows, and what its pipes are called.
"""

from __future__ import annotations

import shlex

from pytest_stagegbo.incus.channel import MARK

__all__ = ["session"]

IDLE = 60
"""Seconds after which a session ends that no reset has used."""

_END_SESSIONS = """do $$ begin
    for round in 1..300 loop
        perform pg_terminate_backend(pid) from pg_stat_get_activity(null)
            where pid <> pg_backend_pid() and (datid is not null or backend_type = 'walsender');
        if not found then return; end if;
        perform pg_sleep(0.001);
        perform pg_stat_clear_snapshot();
    end loop;
    raise exception 'a session does not end';
end $$;
"""
"""Ends all sessions but its own. It polls, as PostgreSQL tells nobody when a session has ended."""

_ALONE = rf"""{_END_SESSIONS}begin;
-- Whoever connects from now on waits until the end of this transaction.
lock table pg_database in access exclusive mode;
{_END_SESSIONS}\echo alone
"""
"""Answered with `alone`: no session is left, and none begins until the end of the transaction."""

_COMPARE = r"""select pg_reload_conf() \g /dev/null
execute compare(:'golden') \gset
\if :same
\echo same
\else
\echo differs :found
\q
\endif
"""
"""Answered with `same`, or with `differs` and the fingerprint; the session has ended then.

The server reads its settings again meanwhile, rather than when its first answer is waited for: nobody is left who could
change its files.
"""

_EXCHANGE = r"""execute exchange(:first, :'databases', :'dependencies');
commit;
\echo done
set statement_timeout = 0;
checkpoint;
\echo forgot
\q
"""
"""Answered with `at`, a position in the write-ahead log before which nobody has used the spare databases, and this
transaction's number; with `used` and the OIDs of the used databases; then with `done`, and
with `forgot` when nothing in the server's memory or log needs the used databases any more."""


def _plans(fingerprint: str) -> str:
    """The statements that open a session, with `fingerprint` as a query: answered with `ready`.

    Each statement is planned, and what only reads is done once, so that the catalogs are in the session's memory: also
    the end of sessions, of no process. Nothing is written: so `txid_current`, which planning would call, is in a query
    of its own.
    """
    return rf"""\set ON_ERROR_STOP on
\set QUIET on
do $$ begin perform set_config(name, '0', false) from pg_settings where name = 'idle_session_timeout'; end $$;
set plan_cache_mode = force_generic_plan;
prepare compare(text) as select f as found, f = $1 as same from (select ({fingerprint})::text) x(f);
prepare exchange(int, jsonb, jsonb) as
with wanted as (
    select d.oid as old, (w ->> 0)::int as n, ($1 + (w ->> 0)::int)::text::oid as new,
        (w ->> 2)::xid as frozen, (w ->> 3)::xid as multi
    from jsonb_array_elements($2) w join pg_database d on md5(d.datname::text) = w ->> 1
    where (pg_stat_file('base/' || ($1 + (w ->> 0)::int) || '/PG_VERSION')).size > 0
), a as (
    update pg_database d set oid = new, datfrozenxid = frozen, datminmxid = multi from wanted where d.oid = old
), b as (
    update pg_db_role_setting s set setdatabase = new from wanted where s.setdatabase = old
), c as (
    update pg_shdescription x set objoid = new from wanted where x.classoid = 1262 and x.objoid = old
), d as (
    update pg_shseclabel x set objoid = new from wanted where x.classoid = 1262 and x.objoid = old
), e as (
    update pg_shdepend x set objid = new from wanted where x.dbid = 0 and x.classid = 1262 and x.objid = old
), f as (
    delete from pg_shdepend x using wanted where x.dbid = old
), g as (
    insert into pg_shdepend (dbid, classid, objid, objsubid, refclassid, refobjid, deptype)
    select new, (s ->> 1)::oid, (s ->> 2)::oid, (s ->> 3)::int, (s ->> 4)::oid, (s ->> 5)::oid, (s ->> 6)::"char"
    from jsonb_array_elements($3) s join wanted on n = (s ->> 0)::int
)
select unnest(array['at ' || pg_current_wal_insert_lsn() || ' ' || (select txid_current()),
    'used ' || string_agg(old::text, ' ')]) from wanted;
{_END_SESSIONS.replace("pid <> pg_backend_pid()", "pid = 0")}execute compare(:'golden') \g /dev/null
explain execute exchange(:first, :'databases', :'dependencies') \g /dev/null
\echo ready
"""


def session(fingerprint: str) -> str:
    """Shell functions that open a session, end one, and speak to it.

    Args:
        fingerprint: A query for what databases share; `:newer` stands for what only newer servers have.
    """
    return _FUNCTIONS.format(
        mark=MARK,
        idle=IDLE,
        plans=_plans(fingerprint),
        alone=shlex.quote(_ALONE),
        compare=shlex.quote(_COMPARE),
        exchange=shlex.quote(_EXCHANGE),
    )


_FUNCTIONS = r"""
ask_server() {{ # ARGUMENT...: becomes psql, as the owner of the cluster; for a subshell
    psql=${{program%/*}}/psql
    [ -x "$psql" ] || psql=$(command -v psql) || {{ echo 'there is no psql'; exit 1; }}
    number=0 port= socket=
    while read -r each; do
        number=$((number + 1))
        case $number in 4) port=$each ;; 5) socket=$each ;; esac
    done <"$data/postmaster.pid"
    set -- $(stat -c '--reuid=%u --regid=%g' "$golden") --clear-groups "$psql" -XqAt "$@"
    exec env -i {mark}=1 PATH="$PATH" LC_ALL=C PGHOST="$socket" PGPORT="$port" PGDATABASE=postgres \
        PGCONNECT_TIMEOUT=2 PGAPPNAME=pytest-stagegbo \
        PGOPTIONS='-c search_path=pg_catalog -c client_min_messages=error -c lock_timeout=1000
        -c statement_timeout=5000 -c synchronous_commit=local -c default_transaction_read_only=off -c timezone=UTC
        -c jit=off' $bound setpriv "$@" 2>&1
}}

end_session() {{ # the one of the note, if it is there still
    {{ read -r other born rest <"$note.session"; }} 2>/dev/null || return 0
    # One that has just made the exchange writes a checkpoint, which is waited for, and ends by itself.
    if [ -z "$used" ] && look_at "$other" && [ "$started" = "$born" ]; then kill "$other" 2>/dev/null || true; fi
    rm -f "$note.session" "${{rest##* }}.ask" "${{rest##* }}.told" "${{rest##* }}.look"
}}

keep_session() {{ # FIRST: a session that can give the server the spare databases from this number on
    [ -n "$oids" ] || return 1
    end_session
    read -r inner rest </proc/self/stat
    name=$note.$1.$inner copy=$(copy_of "$golden")
    (umask 077; mkfifo "$name.look" "$name.ask" "$name.told") &&
        chown "$(stat -c %u:%g "$golden")" "$name.look" "$name.ask" || return 1
    newer=
    read -r version <"$golden/PG_VERSION"
    [ "$version" -lt 15 ] || newer="union all select 'settings', to_jsonb(x)::text from pg_parameter_acl x"
    exec 6<>"$name.told" # before it begins: a pipe that nobody has open to write to is at its end
    (
        read -r inner rest </proc/self/stat
        look_at "$inner"
        echo "$inner $started $1 $copy $name" >"$note.session"
        bound='timeout -s KILL {idle}'
        ask_server -v first="$1" -v newer="$newer" -f "$golden.clean" -f - -f "$name.look" -f "$name.ask"
    ) 9>&- 5>&- 7>&- 8<&- >&6 6>&- <<'END' &
{plans}END
    exec 6>&-
}}

has_session() {{ # one that knows these spare databases and this copy; what its pipes are called, in $name
    {{ read -r other born number copy name <"$note.session"; }} 2>/dev/null &&
        [ "$number $copy" = "$first $base" ] && [ -p "$name.ask" ] && [ -p "$name.told" ]
}}

hear() {{ # WORD...: reads up to a line that begins with one of them, in $said; the line before that, in $heard
    heard=
    while read -r said <&8; do
        case " $* " in *" ${{said%% *}} "*) return 0 ;; esac
        heard=$said
    done
    return 1
}}

begin_alone() {{ # has all other sessions ended, and lets none begin; meanwhile, spare databases get to the others
    # A pipe that is opened for both does not wait for its other end. 8 ends with psql, which has it open too.
    exec 5<>"$name.look" 6<>"$name.told" 7<>"$name.ask" 8<"$name.told" 6>&-
    printf '%s\n' '\q' >&5 # it need not look any more
    printf %s {alone} >&7
    [ ! -d "$spare/$first/$first" ] || mv -t "$data/base" -- "$spare/$first"/* || return 1
    hear alone
}}

begin_compare() {{ printf %s {compare} >&7; }}

begin_exchange() {{ printf %s {exchange} >&7; }}
"""
