"""Resets of a database: every way, what it brings back, and what becomes of one that ended in the middle."""

from __future__ import annotations

import fcntl
import random
import shlex
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_stagegbo.resets import database
from pytest_stagegbo.resets.database_build import drop_build, keep_build
from pytest_stagegbo.resets.database_in_place import IN_PLACE
from pytest_stagegbo.resets.database_making import MOST_LEFT
from pytest_stagegbo.resets.target import ResetTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.lab.conftest import InNetwork
    from tests.lab.small_stage import CleanStage


pytestmark = pytest.mark.lab

SEED = 20261127
ROUNDS = 8


def session(statements: str) -> str:
    """A script that leaves a session open, in `pg_sleep`, and returns once the session is there or has failed."""
    return (
        f"runuser -u postgres -- psql -Xq botserver -c '{statements} SELECT pg_sleep(600)' >/dev/null 2>&1 &\n"
        "until runuser -u postgres -- psql -XtAc 'SELECT query FROM pg_stat_activity' | grep -q 'pg_sleep(6'\n"
        "do kill -0 $! || break; sleep 0.05; done\n"
    )


LOCKING = session("BEGIN; LOCK TABLE users;")


def start_again(clean: CleanStage) -> None:
    """Have the server start again, which forgets unlogged tables of used databases: after eight, no reset goes on."""
    clean.sql("CREATE ROLE left_over")
    assert clean.ways("tables") == {"tables": "database"}
    clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")


def test_the_database_comes_back_as_it_was_cloned(clean: CleanStage, in_network: InNetwork) -> None:
    """Rows, sequences, roles, settings, extensions, other databases; sessions of others are ended."""
    everything = """
        SELECT 'database', datname FROM pg_database UNION ALL SELECT 'role', rolname FROM pg_roles
        UNION ALL SELECT 'setting', name || '=' || setting FROM pg_file_settings
        UNION ALL SELECT 'table', relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'extension', extname FROM pg_extension
        UNION ALL SELECT 'rows', count(*)::text FROM message_history
        UNION ALL SELECT 'next', last_value::text FROM message_history_id_seq
        UNION ALL SELECT 'setting of a database', array_to_string(setconfig, ',') FROM pg_db_role_setting
        ORDER BY 1, 2
    """

    def check() -> None:
        clean.reset("tables")
        before = clean.sql(everything)
        for _ in range(2):
            clean.sql("INSERT INTO message_history (user_id, content) SELECT 1, 'left' FROM generate_series(1, 100)")
            clean.sql("DELETE FROM message_history WHERE id < 50; CREATE TABLE left_over (a int); DROP TABLE heartbeat")
            clean.sql("CREATE ROLE left_over LOGIN", "ALTER SYSTEM SET work_mem = '7MB'")
            clean.sql("DROP EXTENSION plpgsql", "ALTER DATABASE botserver SET work_mem = '9MB'")
            clean.sql("CREATE DATABASE left_over")
            clean.shell("tables", LOCKING)
            assert clean.sql(everything) != before
            assert clean.ways("tables") == {"tables": "database"}
            assert clean.sql(everything) == before
            assert clean.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%'") == "1"

    in_network(check, timeout=120)


def server_start(clean: CleanStage) -> str:
    """When the server's first process was started."""
    return clean.sql("SELECT pg_postmaster_start_time()")


ROWS = "SELECT count(*), (SELECT count(*) FROM pg_class WHERE relname = 'left_over') FROM message_history"


def test_the_server_of_a_database_goes_on(clean: CleanStage, in_network: InNetwork) -> None:
    """The first reset starts it; the others exchange what is in its folder. Its settings are those of the files."""
    data = clean.settings.containers["tables"].data

    def check() -> None:
        clean.reset("tables")
        rows = clean.sql(ROWS)
        for _ in range(3):
            started = server_start(clean)
            clean.sql("DELETE FROM message_history; CREATE UNLOGGED TABLE left_over AS SELECT 1")
            clean.sql("ALTER SYSTEM SET work_mem = '7MB'", "ALTER SYSTEM SET restart_after_crash = off")
            clean.sql("SELECT pg_reload_conf(), pg_create_physical_replication_slot('left_over')")
            clean.shell("tables", f"touch {data}/left {data}/.left")
            assert clean.ways("tables") == {"tables": "database"}
            assert clean.sql(ROWS) == rows
            assert clean.sql("SHOW work_mem", "SHOW restart_after_crash") == "4MB\non"
            assert clean.sql("SELECT count(*) FROM pg_replication_slots") == "0"
            assert "left" not in clean.shell("tables", f"ls -A {data}")
            assert server_start(clean) == started

    in_network(check, timeout=120)


@pytest.mark.parametrize(
    "tampering",
    [
        pytest.param("systemctl restart postgresql", id="another start"),
        pytest.param("chmod 750 $data", id="rights of the folder"),
        pytest.param("rm -f /run/stagegbo/tables.server", id="no note"),
        pytest.param(
            "rm -rf $data.stagegbo-next; mkdir $data.stagegbo-taken $data.stagegbo-old",
            id="one that ended",
        ),
    ],
)
def test_a_server_that_was_tampered_with_is_started(clean: CleanStage, in_network: InNetwork, tampering: str) -> None:
    data = clean.settings.containers["tables"].data

    def check() -> None:
        clean.reset("tables")
        rows, started = clean.sql(ROWS), server_start(clean)
        clean.sql("DELETE FROM message_history", "CREATE ROLE left_over")
        # the copy for the next reset is made behind the last one
        clean.shell("tables", f"data={data}; exec 9>/run/stagegbo-reset; flock 9; {tampering}")
        assert clean.ways("tables") == {"tables": "database"}
        assert clean.sql(ROWS) == rows
        assert server_start(clean) != started

    in_network(check, timeout=120)


STEPS = (
    ': >"$note" && ', 'mv "$next" "$taken" && ', 'kill -STOP "$held" && ', "wait_until all_ended || return 1\n",
    "wait_until is_alone || return 1\n", 'move_all "$data" "$old" && ', 'move_all "$taken" "$data" || return 1\n',
    'kill -HUP "$pid" && ', 'kill -9 "$held" && ',
)  # fmt: skip
"""Of the exchange below a server: those that change something."""


def test_an_exchange_that_ended_anywhere_is_made_good(clean: CleanStage, in_network: InNetwork) -> None:
    """Whatever state it left the server and its folder in."""
    whole = IN_PLACE
    container = clean.settings.containers["tables"]

    def check() -> None:
        clean.reset("tables")
        rows = clean.sql(ROWS)
        assert clean.engine._resetter is not None
        for step in STEPS:
            assert whole.count(step) == 1, step
            cut = whole[: whole.index(step) + len(step)] + "exit 9\n}\n"
            clean.sql("DELETE FROM message_history; CREATE TABLE left_over AS SELECT 1", "CREATE ROLE left_over")
            target = clean.engine._resetter._target(container)
            assert target.run(database._script(target).replace(whole, cut))[0] == 9, step
            assert clean.ways("tables") == {"tables": "database"}, step
            assert clean.sql(ROWS) == rows, step

    in_network(check, timeout=300)


def test_a_server_that_ends_instead_of_going_on_is_started(
    clean: CleanStage, in_network: InNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `restart_after_crash = off`."""
    monkeypatch.setattr(database, "IN_PLACE", IN_PLACE.replace("kill -HUP", 'kill -9 "$pid"; kill -HUP'))

    def check() -> None:
        clean.reset("tables")
        rows, started = clean.sql(ROWS), server_start(clean)
        clean.sql("DELETE FROM message_history", "CREATE ROLE left_over")
        assert clean.ways("tables") == {"tables": "database"}
        assert clean.sql(ROWS) == rows
        assert server_start(clean) != started

    in_network(check, timeout=120)


def test_tablespaces_are_as_cloned(clean: CleanStage, in_network: InNetwork) -> None:
    """Those of two tests in one folder, with what else is in it left alone, and what the server started ended."""
    folder = "/srv/a space"

    def check() -> None:
        clean.shell("tables", f"mkdir -p '{folder}' && touch '{folder}/other' && chown -R postgres '{folder}'")
        clean.reset("tables")
        try:
            for _ in range(2):
                clean.sql(f"CREATE TABLESPACE fast LOCATION '{folder}'", "CREATE TABLE t (a int) TABLESPACE fast")
                clean.sql("CREATE DATABASE left_over TABLESPACE fast")
                clean.sql("SELECT pg_create_physical_replication_slot('left_over', true)")
                clean.sql("COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; setsid sleep 1000 >/dev/null 2>&1 &'")
                assert clean.ways("tables") == {"tables": "database"}
                assert clean.shell("tables", f"ls '{folder}'; pgrep -x sleep || true") == "other"
                assert clean.sql("SELECT count(*) FROM pg_tablespace") == "2"
                assert clean.sql("SELECT count(*) FROM pg_replication_slots") == "0"
        finally:
            clean.shell("tables", f"rm -r '{folder}'")

    in_network(check)


CONTENT = """
    SELECT 'large objects', count(*)::text FROM pg_largeobject_metadata
    UNION ALL SELECT 'extension', extname FROM pg_extension
    UNION ALL SELECT 'table', relname || coalesce(array_to_string(reloptions, ','), '') FROM pg_class WHERE oid > 16383
    UNION ALL SELECT 'owner', count(*)::text FROM pg_shdepend d JOIN pg_database b ON b.oid = dbid
        WHERE datname = current_database()
    UNION ALL SELECT 'sequence', last_value::text FROM message_history_id_seq
    UNION ALL SELECT 'rows', md5(string_agg(m::text, ',' ORDER BY id)) FROM message_history m
    UNION ALL SELECT 'written', coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::text FROM pg_stat_user_tables
    UNION ALL SELECT 'setting', name || setting FROM pg_settings WHERE source <> 'client'
    UNION ALL SELECT 'comment', description FROM pg_shdescription
    UNION ALL SELECT 'frozen', datname || datfrozenxid::text || datminmxid::text FROM pg_database
    UNION ALL SELECT 'database', (to_jsonb(d) - 'oid' - 'datfrozenxid' - 'datminmxid')::text FROM pg_database d
    UNION ALL SELECT 'role', r::text FROM pg_authid r
    UNION ALL SELECT 'slot', slot_name FROM pg_replication_slots
    UNION ALL SELECT 'tablespace', spcname FROM pg_tablespace
    UNION ALL SELECT 'members', m::text FROM pg_auth_members m
    UNION ALL SELECT 'file', f FROM pg_ls_dir('.') f
    ORDER BY 1, 2
"""
"""Of a cluster, but for the numbers of databases, which spare ones don't share."""
INSIDE = (
    "INSERT INTO message_history (user_id, content) SELECT 1, 'left' FROM generate_series(1, {n})",
    "DELETE FROM message_history WHERE id % {n} = 0",
    "UPDATE message_history SET content = 'left' WHERE id < {n}",
    "TRUNCATE message_history",
    "DROP TABLE bot_configuration",
    "ALTER TABLE message_history ADD left_over_{n} int DEFAULT {n}",
    "CREATE TABLE left_over_{n} AS SELECT * FROM message_history",
    "CREATE UNLOGGED TABLE left_over_{n} AS SELECT {n} a",
    "SELECT setval('message_history_id_seq', {n}00000)",
    "SELECT nextval('message_history_id_seq')",
    "SELECT lo_from_bytea(0, 'left')",
    "COPY (SELECT 1) TO PROGRAM 'cat >pg_wal/xlogtemp.{n}'",  # as the server does while it makes a segment of its log
    "VACUUM FULL message_history",
    "VACUUM (FREEZE) message_history",
    "DROP EXTENSION plpgsql",
    "CREATE SCHEMA left_{n}; CREATE TYPE left_{n}.e AS ENUM ('a')",
    "GRANT SELECT ON message_history TO pg_monitor; ALTER TABLE message_history OWNER TO postgres",
    "BEGIN; SELECT pg_advisory_lock({n}); LISTEN left_over; NOTIFY left_over; COMMIT",
    "CREATE FUNCTION md5(text) RETURNS text LANGUAGE sql AS 'SELECT ''left'' '",
    "SELECT pg_stat_reset()",
    "\\connect postgres\nCREATE TABLE left_over AS SELECT {n} a",
    "\\connect template1\nCREATE TABLE left_over AS SELECT {n} a",
)
"""What a test may do inside of databases."""
SHARED = (
    ("CREATE ROLE left_over LOGIN", "roles"),
    ("ALTER ROLE gbuser PASSWORD 'left'", "roles"),
    ("GRANT pg_monitor TO gbuser", "roles"),
    ("CREATE DATABASE left_over", "databases"),
    ("ALTER DATABASE botserver CONNECTION LIMIT 50", "databases"),
    (
        "ALTER DATABASE template0 ALLOW_CONNECTIONS true;\nALTER DATABASE template0 ALLOW_CONNECTIONS false",
        "databases",
    ),
    ("ALTER DATABASE botserver SET work_mem = '9MB'", "settings"),
    ("ALTER ROLE gbuser SET work_mem = '9MB'", "settings"),
    ("GRANT SET ON PARAMETER log_statement TO gbuser", "settings"),
    ("ALTER SYSTEM SET work_mem = '7MB'", "files"),
    ("COMMENT ON ROLE gbuser IS 'left'", "comments"),
    ("COMMENT ON DATABASE botserver IS 'left'", "comments"),
    ("SELECT pg_create_physical_replication_slot('left_over')", "slots"),
    ("SELECT pg_replication_origin_create('left_over')", "subscriptions"),
    ("COPY (SELECT 1) TO '/opt/gbo/data/pgdata/left'", "files"),
    ("COPY (SELECT 1) TO '/opt/gbo/data/pgdata/global/left'", "files"),
    ("COPY (SELECT 1) TO '/opt/gbo/data/pgdata/base/left'", "files"),
    ("COPY (SELECT 'local all all trust') TO '/opt/gbo/data/pgdata/pg_hba.conf'", "files"),
    ("COPY (SELECT 1) TO PROGRAM 'chmod 750 /opt/gbo/data/pgdata/base'", "the data folder"),
)
"""What a test may do to what databases share, with a word that has to be in the reason for the other way."""


def pollute(clean: CleanStage, chance: random.Random, changes: Sequence[str]) -> list[str]:
    """Make these changes, and leave a session open. One that can't be made after another is fine."""
    done = [change.format(n=chance.randrange(1, 1000)) for change in changes]
    for change in done:
        text = shlex.quote(f"{change};\n")
        clean.shell("tables", f"printf %s {text} | runuser -u postgres -- psql -Xq botserver >/dev/null 2>&1 || true")
    clean.shell("tables", LOCKING)
    return done


def test_spare_databases_take_the_place_of_used_ones(clean: CleanStage, in_network: InNetwork) -> None:
    """Whatever was done inside of them, by chance of a seed, with sessions in them, while the server goes on."""

    def check() -> None:
        clean.reset("tables")
        start_again(clean)
        before, started = clean.sql(CONTENT), server_start(clean)
        for number in range(ROUNDS):
            chance = random.Random(f"{SEED} {number}")
            done = pollute(clean, chance, chance.sample(INSIDE, chance.randint(2, 6)))
            outcome = clean.reset("tables")["tables"]
            assert (outcome.way, outcome.doubt) == ("spare", ""), f"round {number}: {done}"
            assert clean.sql(CONTENT) == before, f"round {number}: {done}"
            assert clean.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%'") == "1"
            for name in ("postgres", "template1"):
                assert clean.sql(f"\\connect {name}", "SELECT to_regclass('left_over') IS NULL") == "t", done
            assert server_start(clean) == started
        start_again(clean)

    in_network(check, timeout=300)


def test_what_databases_share_comes_back_by_the_other_way(clean: CleanStage, in_network: InNetwork) -> None:
    """Which says why it was taken."""

    def check() -> None:
        clean.reset("tables")
        before = clean.sql(CONTENT)
        for change, word in SHARED:
            pollute(clean, random.Random(SEED), (change, INSIDE[0]))
            outcome = clean.reset("tables")["tables"]
            assert outcome.way == "database", change
            assert word in outcome.doubt, f"{change}: {outcome.doubt}"
            assert clean.sql(CONTENT) == before, change

    in_network(check, timeout=300)


def test_a_server_that_crashes_after_a_reset_is_clean(clean: CleanStage, in_network: InNetwork) -> None:
    """It recovers from a log in which the used databases are, before they are removed and after."""

    def check() -> None:
        clean.reset("tables")
        before = clean.sql(CONTENT)
        for wait in ("", "exec 9>/run/stagegbo-reset; flock 9;"):
            pollute(clean, random.Random(SEED), INSIDE[:3])
            assert clean.ways("tables") == {"tables": "spare"}
            crash = "kill -9 $(pgrep -f '[p]ostgres: walwriter')"
            clean.shell("tables", f"{wait} {crash}; until {crash.replace('-9', '-0')} 2>/dev/null; do :; done")
            clean.wait("tables")
            assert clean.sql(CONTENT) == before

    in_network(check, timeout=120)


def test_the_server_can_write_pages_of_unlogged_tables_after_a_reset(clean: CleanStage, in_network: InNetwork) -> None:
    """A checkpoint leaves them in memory, so the server writes them later, where their database was."""

    def check() -> None:
        clean.reset("tables")
        start_again(clean)
        ways = []
        for _ in range(MOST_LEFT + 1):
            clean.sql("CREATE UNLOGGED TABLE left_over AS SELECT generate_series(1, 1000) a")
            ways.append([(o.way, o.doubt) for o in clean.reset("tables").values()])
            clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")
        doubt = "the server has pages of unlogged tables of used databases"
        assert ways == [[("spare", "")]] * MOST_LEFT + [[("database", doubt)]]
        clean.sql("CREATE UNLOGGED TABLE left_over AS SELECT generate_series(1, 1000) a")
        assert clean.ways("tables") == {"tables": "spare"}
        clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")
        # Which has the server write all that it has in memory.
        clean.sql("CREATE DATABASE left_over STRATEGY file_copy")
        clean.reset("tables")

    in_network(check, timeout=120)


def test_a_reset_makes_what_it_does_not_find(clean: CleanStage, in_network: InNetwork) -> None:
    """As one that comes before the next copies are made: it ends what makes them, and goes on itself."""
    data = clean.settings.containers["tables"].data

    def check() -> None:
        clean.reset("tables")
        before = clean.sql(CONTENT)
        for _ in range(3):
            clean.sql("DELETE FROM message_history")
            assert [(o.way, o.doubt) for o in (clean.reset("tables")["tables"] for _ in range(3))] == [
                ("spare", "")
            ] * 3
            assert clean.sql(CONTENT) == before
        for change, way in (("SELECT", "spare"), ("CREATE ROLE left_over", "database")):
            clean.sql("DELETE FROM message_history", change)
            clean.shell(
                "tables", f"exec 9>/run/stagegbo-reset; flock 9; rm -rf {data}.stagegbo-next {data}.stagegbo-spare"
            )
            assert clean.ways("tables") == {"tables": way}
            assert clean.sql(CONTENT) == before
        clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")
        assert len(clean.shell("tables", f"ls {data}/base").split()) == 4, "used databases are removed"

    in_network(check, timeout=120)


def reset_at_leisure(clean: CleanStage) -> None:
    """So often that no set is left which a reset had to make itself: those do not serve again."""
    for _ in range(3):
        clean.reset("tables")
        clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")


def test_used_databases_serve_again(clean: CleanStage, in_network: InNetwork) -> None:
    """What was changed in them is copied again, also by somebody who sets times back; nothing else is."""
    data = clean.settings.containers["tables"].data
    oid = "runuser -u postgres -- psql -XqAtc \"select oid from pg_database where datname = 'botserver'\""
    live = f"{data}/base/$({oid})"
    differ = f"""exec 9>/run/stagegbo-reset; flock 9; ls {data}.stagegbo-spare; golden={data}.stagegbo-golden
        oids=$(sed -n "s/^.set oids '\\(.*\\)'/\\1/p" $golden.clean)
        for set in {data}.stagegbo-spare/*; do
            number=${{set##*/}}
            for oid in $oids; do diff -r $golden/base/$oid $set/$number; number=$((number + 1)); done
            ls $set/* | wc -l
        done; find {data}.stagegbo-spare -name PG_VERSION -printf '%i '"""
    changes = (
        ("true", True),
        (
            f"cd {live}; touch -r 1259 /t; dd if=/dev/zero of=1259 bs=1 count=9 conv=notrunc; touch -r /t 1259; rm /t",
            True,
        ),
        (f"cd {live}; chmod 640 1249; ln 1259 'a link'", False),
        (f"cd {live}; rm 1249; echo >left; mkdir folder; chmod 750 .", False),
    )

    def check() -> None:
        reset_at_leisure(clean)
        before = clean.sql(CONTENT)
        for change, serves in changes:
            clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")
            used = clean.shell("tables", f"stat -c %i {live}/PG_VERSION")
            clean.sql("DELETE FROM message_history; CREATE TABLE left_over AS SELECT 1")
            clean.shell("tables", f"{{ {change}; }} 2>/dev/null")
            assert clean.ways("tables") == {"tables": "spare"}, change
            *sets, counts, inodes = clean.shell("tables", differ).splitlines()
            assert (len(sets), counts) == (3, sets[-1]), f"{change}: {sets}"
            assert (used in inodes.split()) == serves, change
            assert clean.sql(CONTENT) == before, change
        # A server whose files were removed can't write a checkpoint any more: it is not kept.
        clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")
        started = server_start(clean)
        outcome = clean.reset("tables")["tables"]
        assert (outcome.way, outcome.doubt) == ("database", "the server could not write a checkpoint")
        assert server_start(clean) != started
        assert clean.sql(CONTENT) == before
        assert clean.ways("tables") == {"tables": "spare"}

    in_network(check, timeout=120)


BEHIND_STEPS = (
    'rm -rf "$spare/used" && ', '[ $# = 0 ] || mv -t "$spare/used" -- "$@" || return 1\n',
    '[ -s "$list" ] && mv "$folder" "$spare/new/.part" && ', 'rm -f -- "$to"/pg_internal.init* "$@" || return 1\n',
    '[ $# = 0 ] || cp -a --reflink=always -t "$to" -- "$@" || return 1\n',
    '{ [ -z "$listed" ] || list_made "$1"; } &&\n        ',
    'rm -rf "$spare/$1" && ',
)  # fmt: skip
"""Of what is done behind a reset with used databases and spare ones."""


def test_what_works_behind_a_reset_may_end_anywhere(clean: CleanStage, in_network: InNetwork) -> None:
    """The next resets find what is whole, and make the rest."""
    container = clean.settings.containers["tables"]

    def check() -> None:
        clean.reset("tables")
        before = clean.sql(CONTENT)
        assert clean.engine._resetter is not None
        target = clean.engine._resetter._target(container)
        for step in BEHIND_STEPS:
            reset_at_leisure(clean)
            clean.sql("DELETE FROM message_history; CREATE TABLE left_over AS SELECT 1")
            script = database._script(target)
            assert script.count(step) == 1, step
            end = "{ touch /run/ended; exit 9; } && " if "&&" in step.rstrip()[-2:] else "touch /run/ended; exit 9\n"
            assert target.run(script.replace(step, step + end), behind=True) == (0, b"alone\nstagegbo: spare\n"), step
            clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9; rm /run/ended")
            for _ in range(2):
                clean.sql("DELETE FROM message_history")
                assert clean.ways("tables") == {"tables": "spare"}, step
                assert clean.sql(CONTENT) == before, step

    in_network(check, timeout=300)


NOTE = "/run/stagegbo/tables.server"


def test_an_untouched_database_is_skipped(clean: CleanStage, in_network: InNetwork) -> None:
    """For as long as nothing happens in its container, and nothing to its files. What happens is ended as ever."""
    container = clean.settings.containers["tables"]
    data = container.data
    file = clean.place.rootfs["tables"] / f"{data.lstrip('/')}/PG_VERSION"
    content = file.read_text()

    def has_settled() -> bool:
        """Whether the last reset has left word that all is clean."""
        assert clean.engine._resetter is not None
        target = clean.engine._resetter._target(container)
        assert target._process is not None
        assert isinstance(target.mark, tuple)
        last, ends = target._process / f"root{NOTE}.last", time.monotonic() + 5
        while time.monotonic() < ends:
            if last.exists() and last.read_text().startswith(target.mark[1]):
                return True
            time.sleep(0.02)
        return False

    def is_skipped() -> bool:
        """Several times: the server starts processes by itself, now and then."""
        for _ in range(5):
            clean.reset("tables")
            if has_settled() and [clean.ways("tables")["tables"] for _ in range(3)] == ["untouched"] * 3:
                return True
        return False

    touches: tuple[Callable[[], object], ...] = (
        lambda: clean.shell("tables", "true"),
        lambda: clean.sql("SELECT nextval('message_history_id_seq')"),
        lambda: clean.wait("tables"),
        lambda: file.write_text(content),
    )

    def check() -> None:
        clean.reset("tables")
        before = clean.sql(CONTENT)
        for touch in touches:
            assert is_skipped()
            touch()
            assert clean.ways("tables") == {"tables": "spare"}
        assert clean.sql(CONTENT) == before

    in_network(check, timeout=120)


def test_what_happens_before_a_database_counts_as_untouched_is_seen(clean: CleanStage, in_network: InNetwork) -> None:
    """Between the reset and the look behind it."""
    container = clean.settings.containers["tables"]
    look = "settle || true\n"
    base = f"{container.data}/base"
    changes = (
        "SELECT nextval('message_history_id_seq')",
        "CREATE UNLOGGED TABLE left_over AS SELECT 1",
        "ALTER SYSTEM SET work_mem = '7MB'",
        "SELECT pg_create_physical_replication_slot('left_over')",
        f"COPY (SELECT 1) TO PROGRAM 'echo >$(ls -d {base}/2* | head -n 1)/left'",
        f"COPY (SELECT 1) TO PROGRAM 'cd $(ls -d {base}/2* | head -n 1); cat 1259 >1; mv 1 1259'",
        session(""),
    )

    def check() -> None:
        clean.reset("tables")
        assert clean.engine._resetter is not None
        target = clean.engine._resetter._target(container)
        assert target._find_process is not None
        process = target._find_process()
        assert process is not None
        run = process / "root/run"

        def counts(change: str) -> bool:
            """Whether the database counts as untouched after this change."""
            clean.reset("tables")
            clean.shell("tables", f"exec 9>/run/stagegbo-reset; flock 9; rm -f /run/at {NOTE}.last; : >/run/go")
            script = database._script(target, mark="test")
            assert script.count(look) == 1
            script = script.replace(look, f"touch /run/at; until [ -s /run/go ]; do sleep 0.01; done\n{look}")
            target.run(script, behind=True)
            # Until then folders of used databases are beside those in use.
            clean.shell("tables", "until [ -e /run/at ]; do sleep 0.01; done")
            if change == session(""):
                clean.shell("tables", change)
            elif change:
                clean.sql(change)
            # From outside, since a process in the container would be seen by itself.
            with (run / "go").open("r+") as go:
                go.write("go")
            with (run / "stagegbo-reset").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
            return (run / NOTE.removeprefix("/run/")).with_suffix(".server.last").exists()

        assert any(counts("") for _ in range(5)), "the server starts processes by itself, now and then"
        for change in changes:
            assert not counts(change), change
        clean.reset("tables")

    in_network(check, timeout=120)


def test_a_session_waits_for_the_next_reset(clean: CleanStage, in_network: InNetwork) -> None:
    """A reset that finds it starts none, and ends it. One whose server has ended it, or that is gone, is replaced."""
    container = clean.settings.containers["tables"]
    opened = '{ keep_session "$first" && begin_alone; }'

    def check() -> None:
        clean.reset("tables")
        before = clean.sql(CONTENT)
        assert clean.engine._resetter is not None
        target = clean.engine._resetter._target(container)
        script = database._script(target)
        assert script.count(opened) == 1
        for _ in range(2):
            clean.sql(*INSIDE[-3:-2], "DELETE FROM message_history")
            clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")
            waiting = clean.shell("tables", "pgrep -x psql")
            assert target.run(script.replace(opened, "false"), behind=True)[1] == b"alone\nstagegbo: spare\n"
            clean.shell("tables", f"until [ ! -e /proc/{waiting} ]; do :; done")
            assert clean.sql(CONTENT) == before
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pytest-stagegbo'"
        for end in (
            f'runuser -u postgres -- psql -Xq -c "{ends}" >/dev/null',
            "rm /run/stagegbo/tables.server.session",
            "kill -9 $(pgrep -x psql)",
        ):
            clean.sql("DELETE FROM message_history")
            clean.shell("tables", f"exec 9>/run/stagegbo-reset; flock 9; {end}")
            assert clean.ways("tables") == {"tables": "spare"}, end
            assert clean.sql(CONTENT) == before, end
        clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9; pgrep -x psql")
        try:
            keep_build(target)  # which stops the server, and some wait for the last session then
            clean.wait("tables")
            assert clean.shell("tables", "pgrep -x psql || true") == ""
        finally:
            drop_build(target, to="production")

    in_network(check, timeout=120)


def test_a_reset_looks_into_the_container_once(
    clean: CleanStage, in_network: InNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it wakes systemd, and new processes of the server are no strays. Others may wake systemd, seldom."""
    scripts: list[str] = []
    run = ResetTarget.run

    def counted(target: ResetTarget, script: str, *arguments: Any, **options: Any) -> tuple[int, bytes]:
        scripts.append(script)
        return run(target, script, *arguments, **options)

    def check() -> None:
        clean.reset("tables")
        monkeypatch.setattr(ResetTarget, "run", counted)
        found = []
        for _ in range(5):
            clean.sql("DELETE FROM message_history")
            clean.shell("tables", "exec 9>/run/stagegbo-reset; flock 9")
            scripts.clear()
            clean.reset("tables")
            found.append(len(scripts))
        assert min(found) == 1, found

    in_network(check, timeout=120)


FLIP_STEPS = (
    'mv -t "$data/base" -- "$spare/$first"/* || return 1\n', "begin;\n",
    "lock table pg_database in access exclusive mode;\n",
    "    begin_compare\n", "\\echo same\n", "        begin_exchange\n", "commit;\n",
    "            used=$given at=$before\n",
)  # fmt: skip
"""Of the exchange of databases: what the script does, and what the session does."""


def test_an_exchange_of_databases_that_ended_anywhere_is_made_good(clean: CleanStage, in_network: InNetwork) -> None:
    container = clean.settings.containers["tables"]

    def check() -> None:
        clean.reset("tables")
        before = clean.sql(CONTENT)
        assert clean.engine._resetter is not None
        target = clean.engine._resetter._target(container)
        for step in FLIP_STEPS:
            script = database._script(target)
            assert script.count(step) == 1, step
            pollute(clean, random.Random(SEED), INSIDE[:3])
            cut = "\\! kill -9 $PPID\n" if step.endswith((";\n", "same\n")) else "exit 9\n"
            target.run(script.replace(step, step + cut), behind=True)
            clean.reset("tables")
            assert clean.sql(CONTENT) == before, step

    in_network(check, timeout=300)
