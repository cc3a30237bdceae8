"""The scripts that ask a container with a PostgreSQL server what changed in its cluster, and what their head says.

Both speak psql as the owner of the cluster, so they need no credentials. The first one is answered by the log, too.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.changes.write_ahead import SHORTEN
from pytest_stagegbo.guest.keeping import BUILD
from pytest_stagegbo.incus.channel import MARK
from pytest_stagegbo.resets.database_spare import STEP
from pytest_stagegbo.resets.listing import NOTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.changes.write_ahead import Log
    from pytest_stagegbo.resets.target import ResetTarget

__all__ = ["ASKED", "Position", "first_script", "parse_position", "query", "second_script"]

ASKED = "stagegbo has asked all of it"
"""What psql prints behind the answers that have to be there. It ends at its first error, so what is missing is unknown
then, and not unchanged."""

STATISTICS = "'pg_statistic', 'pg_statistic_ext_data'"
"""Catalogs that ANALYZE writes to, which are no part of the schema."""
SHARED = "'pg_authid', 'pg_auth_members', 'pg_parameter_acl', 'pg_tablespace'"
"""Catalogs that databases share, but for those that resets write to."""
READ = (
    "'pg_attrdef', 'pg_attribute', 'pg_class', 'pg_constraint', 'pg_depend', 'pg_index', 'pg_inherits', "
    "'pg_namespace', 'pg_rewrite', 'pg_sequence', 'pg_trigger', 'pg_type'"
)
"""Catalogs whose rows are read for what is created and altered, or go with these. Temporary tables are in them, too."""


class Position(Struct, frozen=True):
    """What a container says of its last reset and of now."""

    since: float
    """When it was reset, in epoch seconds."""
    begins: str
    """Position in the log of the reset."""
    transaction: int
    """The last one that belongs to the clean state."""
    next_oid: int
    """What was created since has this number or a higher one."""
    counts_from_zero: bool
    """Whether statistics were empty then."""
    golden: str
    """The clean copy's folder."""
    databases: tuple[int, ...] = ()
    """The OIDs of databases in it that spare databases are made of."""

    def original(self, oid: int) -> int:
        """The OID that a database has in the clean copy: spare ones are numbered in the order of theirs."""
        is_spare = oid not in self.databases and oid % STEP < len(self.databases)
        return self.databases[oid % STEP] if is_spare else oid


def parse_position(text: str) -> Position:
    """Read what `first_script` prints first. Raises ValueError."""
    lines = text.splitlines()
    since, begins, transaction, golden = lines[0].split(" ", 3)
    control = {name: value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    latest = "Latest checkpoint's "
    is_spare = begins != "-"
    try:
        last = int(transaction) if is_spare else int(control[f"{latest}NextXID"].rpartition(":")[2]) - 1
        return Position(
            since=float(since),
            begins=begins if is_spare else control[f"{latest}REDO location"],
            transaction=last % 2**32,
            next_oid=int(control[f"{latest}NextOID"]),
            # What a build's server counted before it was stopped is read back by the next one.
            counts_from_zero=is_spare or not golden.endswith(BUILD),
            golden=golden,
            databases=tuple(map(int, control.get("databases", "").split())),
        )
    except KeyError as error:
        raise ValueError(f"pg_controldata does not tell {error}") from None


def _begin(target: ResetTarget) -> str:
    data = shlex.quote(target.container.data.rstrip("/"))
    return f"""export LC_ALL=C
data={data}
unknown() {{ echo "unknown $1"; exit 0; }}
{{ read -r begins transaction golden; }} 2>/dev/null <{NOTES}/{target.name}.server.clean && [ -n "$golden" ] ||
    unknown 'it was not reset since it was started, or by another way than spare databases and copies of its folder'
{{ read -r pid; read -r _; read -r _; read -r port; read -r socket; }} 2>/dev/null <"$data/postmaster.pid" ||
    unknown 'its server does not run'
program=$(readlink "/proc/$pid/exe") || unknown 'its server does not run'
program=${{program%/*}}
owner() {{ # USER GROUP WHEN: what stat says of the folder, and when the note was written
    user=$1 group=$2 clean=${{6-}}
}}
owner $(stat -c '%u %g %.3Y' "$data" {NOTES}/{target.name}.server.clean)
ask() {{ # DATABASE: psql, as the owner of the cluster
    psql=$program/psql
    [ -x "$psql" ] || psql=psql
    exec env -i {MARK}=1 PATH="$program:$PATH" LC_ALL=C PGHOST="$socket" PGPORT="$port" PGDATABASE="$1" \\
        PGCONNECT_TIMEOUT=2 PGAPPNAME=pytest-stagegbo PGCLIENTENCODING=UTF8 \\
        PGOPTIONS='-c search_path=pg_catalog -c client_min_messages=error -c lock_timeout=200 -c jit=off
        -c statement_timeout=2000 -c synchronous_commit=local -c default_transaction_read_only=off' \\
        setpriv --reuid="$user" --regid="$group" --clear-groups "$psql" -XqAt -v ON_ERROR_STOP=1 2>&1
}}
"""


def first_script(target: ResetTarget, longest: int, database: str) -> str:
    """Prints time and place of the last reset, what the clean copy's server noted, then the log's lines and an answer
    for each question. Last come all relations of one database, in which most is done; and its schema, if one of them
    was created or altered. Another psql would take as long as all of this.

    Args:
        longest: Bytes of the log that are read; of a longer one nothing is.
        database: Where to begin. If it is `postgres`, that one database is looked for.
    """
    waldump = '{ pg_waldump $KINDS -p "$WAL" -t "$TIMELINE" -s "$BEGINS" -e "$HERE" || echo "pg_waldump: error"; } 2>&1'
    shorten = shlex.quote(" ".join(SHORTEN.split()))
    fresh = _fresh("$transaction")
    schema = _schema_query(fresh, "$oid")
    return f"""{_begin(target)}
control=$("$program/pg_controldata" "$golden" 2>&1) || unknown 'the clean copy of its folder is gone'
echo "$clean $begins $transaction $golden"
echo "$control"
while read -r word name value; do
    case $word:$name in '\\set:oids') value=${{value#\\'}}; echo "databases: ${{value%\\'}}" ;; esac
done 2>/dev/null <"$golden.clean"
echo =
timeline=1 oid=0 version=0 kinds=
read -r version <"$data/PG_VERSION" || true
# Before, it takes the last one alone.
[ "$version" -lt 15 ] || kinds='-r Heap -r Heap2 -r Transaction -r Storage -r Sequence'
while IFS= read -r line; do
    case $line in
    "Latest checkpoint's TimeLineID:"*) timeline=${{line##* }} ;;
    "Latest checkpoint's REDO location:"*) [ "$begins" != - ] || begins=${{line##* }} ;;
    "Latest checkpoint's NextXID:"*) [ "$transaction" != - ] || transaction=$((${{line##*:}} - 1)) ;;
    "Latest checkpoint's NextOID:"*) oid=${{line##* }} ;;
    esac
done <<END
$control
END
transaction=$((transaction % 4294967296))
questions() {{
ask {shlex.quote(database)} <<END
\\set begins $begins
\\setenv BEGINS $begins
\\setenv TIMELINE $timeline
\\setenv WAL $data/pg_wal
\\setenv KINDS '$kinds'
select pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn() as unwritten \\gset
\\if :unwritten
select from pg_logical_emit_message(true, 'stagegbo', '') \\g /dev/null
\\endif
select here, here > :'begins'::pg_lsn as moved, here - :'begins'::pg_lsn between 1 and {longest} as readable
from (select pg_current_wal_insert_lsn() as here) as p \\gset
\\setenv HERE :here
\\if :readable
\\! {_in_document(f"{waldump} | awk {shorten} >&3 &")}
\\endif
select json_build_array('now', :'moved'::bool);
select json_build_array('database', oid::bigint, datname) from pg_database where datallowconn;
select json_build_array('writing') from pg_stat_get_activity(null)
where backend_xid is not null and backend_type = 'client backend' and pid <> pg_backend_pid();
select json_build_array('shared', 'role', rolname, oid::bigint >= $oid) from pg_authid where {fresh};
select json_build_array('shared', 'database', datname, oid::bigint >= $oid) from pg_database where {fresh};
select json_build_array('file', relname, pg_relation_filenode(oid)::bigint) from pg_class
where relnamespace = 'pg_catalog'::regnamespace and relname in ({SHARED});
\\echo {ASKED}
select current_database() = 'postgres' and main <> 'postgres' as elsewhere, main from (select coalesce((select datname
    from pg_database where datallowconn and datname not in ('postgres', 'template1')
    order by pg_stat_get_db_xact_commit(oid) desc limit 1), 'postgres') as main) as m \\gset
\\if :elsewhere
\\connect :"main"
\\endif
select json_build_array('in', current_database());
{_RELATIONS}
where relpersistence <> 'u' or added + changed + removed > 0 order by nspname, relname;
{_SEQUENCES} order by nspname, relname;
select exists (select from pg_class where {fresh}) as altered \\gset
\\if :altered
{schema}\\endif
select json_build_array('catalogs', json_agg(pg_relation_filenode(oid)::bigint)) from pg_class
where relnamespace = 'pg_catalog'::regnamespace and relkind = 'r' and relname not in ({STATISTICS});
END
}}
# The log is read beside the questions. It is at its end when nobody has this shell's end of the pipe for answers any
# more: awk has it for what it complains of.
exec 3>&1
answers=$(questions)
printf '%s\n' "$answers"
"""


def _in_document(text: str) -> str:
    """A text that the shell reads as it is between `<<END` and `END`."""
    return text.replace("\\", "\\\\").replace("$", "\\$").replace("`", "\\`")


def _fresh(transaction: str) -> str:
    """Whether a row of a catalog was written by a later transaction. What was there at the cluster's very beginning
    counts as infinitely old. The age of `transaction` is found once a statement, as it stays what it is in it."""
    return f"age(xmin) < (select age('{transaction}'::xid))"


_RELATIONS = """select json_build_array('relation', nspname, relname, file, relpersistence <> 'u', added, changed,
    removed)
from (
    select c.*, nspname, pg_relation_filenode(c.oid)::bigint as file, pg_stat_get_tuples_inserted(c.oid) as added,
        pg_stat_get_tuples_updated(c.oid) as changed, pg_stat_get_tuples_deleted(c.oid) as removed
    from pg_class c join pg_namespace n on n.oid = relnamespace
    where relkind in ('r', 'm') and nspname <> 'information_schema' and nspname !~ '^pg_'
) as tables"""
_SEQUENCES = """select json_build_array('sequence', nspname, relname, pg_sequence_last_value(c.oid),
    pg_relation_filenode(c.oid)::bigint)
from pg_class c join pg_namespace n on n.oid = relnamespace where relkind = 'S'"""


def query(position: Position, log: Log | None, oid: int) -> str:
    """What to ask in one database."""
    files = log.files(oid) if log is not None else []
    numbers, wanted = ", ".join(map(str, files)) or "null", "added + changed + removed > 0"
    if log is not None:
        wanted = f"case relpersistence when 'u' then {wanted} else file in ({numbers}) end"
    query = f"{_RELATIONS} where {wanted} order by nspname, relname;\n"
    altered = f"""exists (select from pg_class where relnamespace = 'pg_catalog'::regnamespace
    and pg_relation_filenode(oid) in ({numbers}) and relname not in ({STATISTICS}))"""
    if log is None:
        altered = "true"
    query += f"""{_SEQUENCES} and pg_relation_filenode(c.oid) in ({numbers}) order by nspname, relname;
select {altered} as altered \\gset
\\if :altered
{_schema_query(_fresh(str(position.transaction)), str(position.next_oid))}\\endif
"""
    return query


def _schema_query(fresh: str, next_oid: str) -> str:
    """`fresh`: whether a row is younger than the clean state; what was created since has `next_oid` or a higher one."""
    created = f"case when {{oid}}::bigint >= {next_oid} then 'created' else 'altered' end"
    return f"""with touched as (
    select oid from pg_class where {fresh} union select attrelid from pg_attribute where {fresh} and attnum > 0
    union select conrelid from pg_constraint where {fresh} union select tgrelid from pg_trigger where {fresh}
)
select json_build_array({created.format(oid="c.oid")}, relkind::text, nspname || '.' || relname,
    pg_relation_filenode(c.oid)::bigint)
from touched join pg_class c using (oid) join pg_namespace n on n.oid = relnamespace
where nspname !~ '^pg_' and relkind <> 'c' and nspname <> 'information_schema' order by nspname, relname;
select json_build_array({created.format(oid="p.oid")}, 'function', nspname || '.' || proname, 0)
from pg_proc p join pg_namespace n on n.oid = pronamespace where {_fresh_of("p", fresh)} order by nspname, proname;
select json_build_array({created.format(oid="oid")}, 'schema', nspname, 0) from pg_namespace
where {fresh} and nspname !~ '^pg_' order by nspname;
select json_build_array({created.format(oid="oid")}, 'extension', extname, 0) from pg_extension where {fresh};
select json_build_array({created.format(oid="t.oid")}, 'type', nspname || '.' || typname, 0)
from pg_type t join pg_namespace n on n.oid = typnamespace left join pg_class c on c.oid = typrelid
where {_fresh_of("t", fresh)} and nspname !~ '^pg_' and coalesce(relkind, 'c') = 'c' and typcategory <> 'A'
order by nspname, typname;
select json_build_array('touched', json_agg(json_build_array(relname, pg_relation_filenode(oid)::bigint)))
from (select * from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'i')
    and relname not in ({READ}, {STATISTICS}) order by relname) as catalogs;
select json_build_array('catalog', pg_relation_filenode('pg_class'::regclass)::bigint,
    current_setting('server_version_num')::int,
    (select json_object_agg(oid::text, nspname) from pg_namespace));
"""


def _fresh_of(alias: str, fresh: str) -> str:
    return fresh.replace("xmin", f"{alias}.xmin")


def second_script(target: ResetTarget, queries: Mapping[str, str]) -> str:
    """Asks in each database in turn, over one psql."""
    first = next(iter(queries))
    text = "".join(
        f"{_connect(database) if database != first else ''}select json_build_array('in', current_database());\n{query}"
        for database, query in queries.items()
    )
    return f"""{_begin(target)}
ask {shlex.quote(first)} <<'STAGEGBO_END'
{text}\\echo {ASKED}
STAGEGBO_END
"""


def _connect(database: str) -> str:
    """A command of psql. Its quotes take another backslash for each backslash."""
    value = database.replace("\\", "\\\\").replace("'", "\\'")
    text = f"dbname='{value}'".replace("'", "''").replace("\\", "\\\\")
    return f"\\connect -reuse-previous=on '{text}'\n"
