"""Shell that compares a PostgreSQL cluster with another folder of one, row by row, with a second server on a copy."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.guest.capsules import REFERENCE

if TYPE_CHECKING:
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["MOST_ROWS", "compare_script"]

MOST_ROWS = 100
"""Rows of one table that are printed as added, and as removed."""
PORT = 54329
"""Of the second server, which listens on a socket only."""


def compare_script(container: ContainerSettings) -> str:
    """POSIX shell for an opened capsule whose server runs. It prints lines of four fields with tabs between them:

    - `rows`, database and table, `+` or `-`, how many there are;
    - `row`, database and table, `+` or `-`, the row as PostgreSQL writes it;
    - `table`, database, `+` or `-`, the table's name.
    """
    data = shlex.quote(container.data.rstrip("/"))
    return f"""set -eu
export LC_ALL=C
data={data} clean={data}{REFERENCE} copy={data}.stagegbo-compared
[ -d "$clean" ] || {{ echo "the capsule has no clean state of the database to compare with"; exit 3; }}
{{ read -r pid; read -r _; read -r _; read -r port; read -r socket; }} <"$data/postmaster.pid"
program=$(readlink "/proc/$pid/exe") owner=$(stat -c %U "$data")
psql=${{program%/*}}/psql
[ -x "$psql" ] || psql=psql
own=$(mktemp -d)
chmod 755 "$own"
mkdir "$own/socket"
chown "$owner" "$own/socket"
finish() {{
    {{ read -r server <"$copy/postmaster.pid"; }} 2>/dev/null && kill -INT "$server" && wait
    rm -rf "$own" "$copy"
}}
trap finish EXIT
rm -rf "$copy"
cp -a --reflink=auto "$clean" "$copy"
rm -f "$copy/postmaster.pid"
tr '\\0' '\\n' <"/proc/$pid/cmdline" |
    sed "1d; s,^$data\\$,$copy,; s,^data_directory=.*,data_directory=$copy," >"$own/words"
cd /
xargs -d '\\n' -a "$own/words" runuser -u "$owner" -- "$program" -c "data_directory=$copy" -c port={PORT} \\
    -c listen_addresses= -c "unix_socket_directories=$own/socket" -c external_pid_file= -c logging_collector=off \\
    -c archive_mode=off -c ssl=off >"$own/log" 2>&1 &
started=$!
ask() {{ # HOST PORT DATABASE QUERY
    PGHOST=$1 PGPORT=$2 PGDATABASE=$3 PGCONNECT_TIMEOUT=5 runuser -u "$owner" -- "$psql" -XAtq -c "$4"
}}
now() {{ ask "$socket" "$port" "$1" "$2"; }}
before() {{ ask "$own/socket" {PORT} "$1" "$2"; }}
tries=0
until before postgres "SELECT 1" >/dev/null 2>&1; do
    tries=$((tries + 1))
    kill -0 "$started" 2>/dev/null && [ "$tries" -lt 600 ] || {{ tail -n 5 "$own/log"; exit 1; }}
    sleep 0.05
done
databases="SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate"
# Temporary tables of sessions that are gone are there until somebody clears them away, and nobody else may read them.
tables="SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables
    WHERE schemaname <> 'information_schema' AND schemaname !~ '^pg_'"
plain() {{ printf %s "$*" | tr '\\t' ' '; }} # a tab separates fields
say() {{ # DATABASE TABLE SIGN FILE
    [ -s "$4" ] || return 0
    where=$(plain "$1 $2")
    printf 'rows\\t%s\\t%s\\t%s\\n' "$where" "$3" "$(wc -l <"$4")"
    head -n {MOST_ROWS} "$4" | while IFS= read -r row; do printf 'row\\t%s\\t%s\\t%s\\n' "$where" "$3" "$row"; done
}}
both() {{ # DATABASE QUERY NAME: the answers of both servers, sorted, as NAME.now and NAME.before
    # In a pipe, a server that refuses to answer would be one that has nothing.
    now "$1" "$2" </dev/null >"$own/answer"
    sort "$own/answer" >"$own/$3.now"
    before "$1" "$2" </dev/null >"$own/answer"
    sort "$own/answer" >"$own/$3.before"
    comm -23 "$own/$3.now" "$own/$3.before" >"$own/$3.added"
    comm -13 "$own/$3.now" "$own/$3.before" >"$own/$3.removed"
    comm -12 "$own/$3.now" "$own/$3.before" >"$own/$3"
}}
whole() {{ # SIGN FILE [DATABASE]: databases, or tables of one, that only one of the servers has
    while IFS= read -r each; do
        if [ -n "${{3-}}" ]; then name=$(plain "$each"); else name='(database)'; fi
        printf 'table\\t%s\\t%s\\t%s\\n' "$(plain "${{3-$each}}")" "$1" "$name"
    done <"$2"
}}
both postgres "$databases" databases
whole + "$own/databases.added"
whole - "$own/databases.removed"
while IFS= read -r database; do
    both "$database" "$tables" tables
    whole + "$own/tables.added" "$database"
    whole - "$own/tables.removed" "$database"
    while IFS= read -r table; do
        both "$database" "COPY (SELECT each::text FROM ONLY $table each) TO STDOUT" rows
        say "$database" "$table" + "$own/rows.added"
        say "$database" "$table" - "$own/rows.removed"
    done <"$own/tables"
done <"$own/databases"
"""
