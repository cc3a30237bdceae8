"""What changed in real containers: rows, keys, objects and files, exactly as many as were changed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import psycopg
import pytest
from tests.lab.pollution import WORK
from tests.lab.support import until

from pytest_stagegbo.changes import database, read_changes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.lab.conftest import InNetwork
    from tests.lab.small_stage import CleanStage

    from pytest_stagegbo.changes import Changes

pytestmark = pytest.mark.lab

FOUR = ("tables", "cache", "drive", "system")


class Changing:
    """The stage, of which a session of PostgreSQL stays open, as a test's does: it holds statistics back."""

    def __init__(self, clean: CleanStage) -> None:
        self.clean = clean
        found = clean.place.secrets["tables"]
        self._login = {"user": found["username"], "password": found["password"], "dbname": found["database"]}
        self._host = str(clean.settings.containers["tables"].address)
        self._session: psycopg.Connection[Any] | None = None

    def sql(self, *statements: str) -> None:
        """Carry out statements and commit, in one session."""
        if self._session is None or self._session.closed:
            self._session = psycopg.connect(host=self._host, **self._login)
        for statement in statements:
            self._session.execute(statement)
        self._session.commit()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def key(self, *command: object) -> None:
        with contextlib.closing(self.clean.place.cache()) as cache:
            cache.call(*command)

    def put(self, path: str, body: bytes = b"") -> None:
        self.clean.place.drive().call("PUT", path, body=body)

    def reset(self, *names: str) -> dict[str, str]:
        self.close()
        return self.clean.ways(*(names or FOUR))

    def read(self, *names: str) -> Changes:
        containers = [self.clean.settings.containers[name] for name in names or FOUR]
        return read_changes(self.clean.engine.resetter(), containers, FOUR)

    def lines(self, *names: str) -> list[str]:
        return [str(each) for each in self.read(*names)]


@pytest.fixture
def changing(clean: CleanStage, in_network: InNetwork) -> Iterator[Changing]:
    found = Changing(clean)
    in_network(found.reset, timeout=120)
    yield found
    in_network(found.reset, timeout=120)


@pytest.mark.both_lts
def test_one_row_one_key_and_one_object_are_named_and_nothing_else(changing: Changing, in_network: InNetwork) -> None:
    """After either way of a reset of tables, at once after the commit, while the session that wrote goes on."""

    def check() -> None:
        for way in ("database", "spare"):
            changing.sql("UPDATE users SET name = 'dirty' WHERE id = 7")  # what is untouched is reset in neither way
            if way == "database":
                changing.clean.shell("tables", "rm -f /run/stagegbo/tables.server")
            assert changing.reset()["tables"] == way
            assert changing.lines() == []
            assert not changing.read()
            changing.sql("UPDATE users SET name = 'corrupt' WHERE id = 7")
            changing.key("SET", "session:4711", "corrupt")
            changing.put("/default.gbai")
            changing.put("/default.gbai/start.bas", b"corrupt")
            assert changing.lines() == [
                "botserver.public.users: 1 row changed",
                "session:*: 1 key added (string)",
                "bucket default.gbai: created, 1 object added (start.bas)",
            ]
            assert all(each.since is not None for each in changing.read().containers)

    in_network(check, timeout=120)


def test_rows_count_once_and_only_when_they_are_committed(changing: Changing, in_network: InNetwork) -> None:
    def check() -> None:
        changing.sql("UPDATE users SET name = 'a' WHERE id <= 3", "UPDATE users SET name = 'b' WHERE id = 1")
        changing.sql("INSERT INTO bots VALUES (10, 'x'), (11, 'y')", "DELETE FROM bots WHERE id = 10")
        changing.sql("DELETE FROM message_history WHERE id <= 5")
        changing.sql("SAVEPOINT a", "INSERT INTO bots VALUES (12, 'z')", "RELEASE a")
        changing.sql("INSERT INTO bot_configuration VALUES ('a', 'b', 'c')", "ROLLBACK")
        changing.sql("INSERT INTO bots VALUES (1, 'conflict') ON CONFLICT DO NOTHING")
        assert changing.lines("tables") == [
            "botserver.public.bots: 2 rows added",
            "botserver.public.message_history: 5 rows removed",
            "botserver.public.users: 3 rows changed",
        ]
        with psycopg.connect(host=changing._host, **changing._login) as other:
            other.execute("INSERT INTO bot_configuration VALUES ('open', 'b', 'c')")
            changes = changing.read("tables")
            assert "botserver.public.bot_configuration" not in changes.rows
            assert changes["tables"].notes == ("1 transaction is still open: what they wrote does not count yet",)
        assert changing.read("tables").rows["botserver.public.bot_configuration"].added == 1

    in_network(check, timeout=120)


def test_sequences_and_schema(changing: Changing, in_network: InNetwork) -> None:
    def check() -> None:
        changing.sql("INSERT INTO message_history (user_id, content) VALUES (1, 'x')")
        changing.sql("CREATE TABLE left_over (id integer PRIMARY KEY)", "INSERT INTO left_over VALUES (1)")
        changing.sql("ALTER TABLE bots ADD COLUMN extra text", "TRUNCATE bot_configuration", "DROP TABLE heartbeat")
        changing.sql("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        changing.clean.sql("CREATE ROLE left_over", "CREATE DATABASE left_over STRATEGY file_copy")
        found = changing.read("tables")
        assert {name: (each.added, each.changed, each.removed) for name, each in found.rows.items()} == {
            "botserver.public.left_over": (1, 0, 0),
            "botserver.public.message_history": (1, 0, 0),
        }
        last = changing.clean.sql("SELECT last_value FROM message_history_id_seq")
        assert found.sequences["botserver.public.message_history_id_seq"].value == int(last)
        told = {(each.database, each.kind, each.name, each.what) for each in found.schema}
        assert told >= {
            ("botserver", "table", "public.left_over", "created"),
            ("botserver", "index", "public.left_over_pkey", "created"),
            ("botserver", "table", "public.bots", "altered"),
            ("botserver", "table", "public.bot_configuration", "truncated or rewritten"),
            ("botserver", "function", "public.f", "created"),
            ("botserver", "table", "public.heartbeat", "dropped"),
            ("botserver", "sequence", "public.heartbeat_id_seq", "dropped"),
            ("", "role", "left_over", "created"),
            ("", "database", "left_over", "created"),
        }
        assert not [each for each in told if each[2] in ("public.users", "public.message_history")]

    in_network(check, timeout=120)


def test_what_is_no_table_is_seen_as_well(changing: Changing, in_network: InNetwork) -> None:
    """Large objects, types, comments, what was dropped. A temporary table is no change."""

    def check() -> None:
        for statement, named in (
            ("SELECT lo_from_bytea(0, 'x')", "botserver.pg_catalog.pg_largeobject: catalog altered"),
            ("CREATE TYPE mood AS ENUM ('sad')", "botserver.public.mood: type created"),
            ("CREATE TYPE pair AS (a int)", "botserver.public.pair: type created"),
            ("COMMENT ON TABLE users IS 'x'", "botserver.pg_catalog.pg_description: catalog altered"),
        ):
            changing.reset("tables")
            changing.sql("CREATE TEMPORARY TABLE own (a int)", "INSERT INTO own VALUES (1)")
            assert not changing.read("tables")
            changing.sql(statement)
            assert named in changing.lines("tables")
        changing.reset("tables")
        changing.clean.sql(f"GRANT pg_monitor TO {changing._login['user']}")
        assert changing.lines("tables") == ["pg_catalog.pg_auth_members: catalog altered"]
        changing.reset("tables")
        changing.clean.sql("DROP EXTENSION plpgsql")
        assert "botserver.pg_catalog.pg_extension: catalog altered" in changing.lines("tables")

    in_network(check, timeout=180)


@pytest.mark.both_lts
def test_what_a_lock_keeps_back_is_not_unchanged(changing: Changing, in_network: InNetwork) -> None:
    """psql ends at its first error, after it has answered some of the questions."""

    def check() -> None:
        changing.sql("INSERT INTO message_history (user_id, content) VALUES (1, 'x')")
        with psycopg.connect(host=changing._host, **changing._login) as other:
            other.execute("ALTER SEQUENCE message_history_id_seq RESTART 100000")
            found = changing.read("tables")
            assert found
            assert "lock timeout" in found.unknown["tables"]
            other.rollback()
        assert changing.lines("tables")[0] == "botserver.public.message_history: 1 row added"

    in_network(check, timeout=120)


def test_a_log_that_is_too_long_leaves_statistics(
    changing: Changing, in_network: InNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which no more is claimed than they say; an unlogged table is in no log."""

    def check() -> None:
        changing.sql("CREATE UNLOGGED TABLE quick AS SELECT 1 FROM generate_series(1, 3)")
        changing.sql("UPDATE users SET name = 'a' WHERE id <= 3")
        changing.close()
        assert not changing.read("tables").rows["botserver.public.quick"].exact
        monkeypatch.setattr(database, "LONGEST_LOG", 1)
        found = changing.read("tables")
        assert "botserver.public.users: about 3 rows changed" in [str(each) for each in found]
        assert "statistics" in found["tables"].notes[0]

    in_network(check, timeout=120)


def test_a_log_whose_beginning_is_gone_leaves_statistics(changing: Changing, in_network: InNetwork) -> None:
    def check() -> None:
        changing.sql("UPDATE users SET name = 'a' WHERE id <= 3")
        changing.close()
        changing.clean.sql("SELECT pg_switch_wal()", "INSERT INTO bots VALUES (10, 'x')", "CHECKPOINT")
        wanted = "botserver.public.users: about 3 rows changed"
        until(lambda: wanted in changing.lines("tables"), "the session that ended has reported what it did")

    in_network(check, timeout=120)


def test_files_and_keys_in_all_their_kinds(changing: Changing, in_network: InNetwork) -> None:
    def check() -> None:
        folder = changing.clean.place.rootfs["system"] / WORK / "new.gbai"
        folder.mkdir()
        (folder / "start.ast").write_text("{}")
        changing.key("HSET", "user:1:cart", "a", "b")
        changing.key("RPUSH", "user:2:list", "a")
        changing.key("SET", "user:3:cart", "a")
        changing.key("DEL", "user:3:cart")
        with contextlib.closing(changing.clean.place.cache()) as cache:
            cache.call("SELECT", 3)
            cache.call("SET", "n:1", "a")
            cache.call("SET", "n:2", "a")
        assert sorted(changing.lines("cache", "system")) == [
            f"/{WORK}/new.gbai/start.ast: added",
            "db3 n:*: 2 keys added (string)",
            "user:*:cart: 1 key added (hash)",
            "user:*:list: 1 key added (list)",
        ]

    in_network(check, timeout=120)


def test_that_nothing_changed_is_seen_without_leaving_a_trace(changing: Changing, in_network: InNetwork) -> None:
    """A look that started processes in the containers would have the next reset find them touched."""

    def settled() -> bool:
        """Whether the last reset of tables has left word that all is clean."""
        assert changing.clean.engine._resetter is not None
        target = changing.clean.engine._resetter._target(changing.clean.settings.containers["tables"])
        assert target._process is not None
        assert isinstance(target.mark, tuple)
        last = target._process / "root/run/stagegbo/tables.server.last"
        return last.exists() and last.read_text().startswith(target.mark[1])

    def proven() -> bool:
        """Several times: the server starts processes by itself, now and then."""
        changing.reset()
        with contextlib.suppress(AssertionError):
            until(settled, "the reset has settled", 5)
        for _ in range(2):
            found = changing.read()
            assert not found
            assert None not in [each.since for each in found.containers]
        return set(changing.reset().values()) == {"untouched"}

    def check() -> None:
        file = changing.clean.place.rootfs["system"] / WORK / "new.ast"
        changes: dict[str, Callable[[], object]] = {
            "botserver.public.users: 1 row changed": lambda: changing.sql("UPDATE users SET name = 'a' WHERE id = 1"),
            "n:*: 1 key added (string)": lambda: changing.key("SET", "n:1", "a"),
            "bucket new: created": lambda: changing.put("/new"),
            f"/{WORK}/new.ast: added": lambda: file.write_text("{}"),
        }
        for change in changes.values():
            assert any(proven() for _ in range(5))
            change()
            expected = [said for said, each in changes.items() if each is change]
            assert [each.partition(", 0")[0] for each in changing.lines()] == expected

    in_network(check, timeout=120)


def test_what_nobody_can_tell_is_said(changing: Changing, in_network: InNetwork) -> None:
    """A baseline, a server that another way brought back, a container that is not there."""

    def check() -> None:
        clean = changing.clean
        changing.sql("UPDATE users SET name = 'of the baseline' WHERE id <= 3")
        clean.engine.baselines.save("changes")
        try:
            clean.engine.reset(FOUR, baseline="changes")
            changing.close()
            changing.sql("UPDATE users SET name = 'a' WHERE id = 1")
            found = changing.read()
            assert [str(each) for each in found["tables"]] == ["botserver.public.users: 1 row changed"]
            assert list(found.unknown) == ["cache", "drive", "system"]
            assert "baseline" in found.unknown["cache"]
        finally:
            clean.engine.baselines.delete("changes")
        changing.reset()
        clean.shell("tables", "rm -f /run/stagegbo/tables.server.clean")
        found = changing.read("tables", "cache")
        assert "was not reset" in found.unknown["tables"]
        assert found
        assert not found["cache"].unknown

    in_network(check, timeout=180)


TESTS = """
import pytest

@pytest.mark.stage_quiet
@pytest.mark.stage_reset("cache", "drive", "tables")
@pytest.mark.parametrize("passes", [False, True])
def test_corrupts(stage_psycopg, stage_valkey, stage_s3, passes):
    stage_psycopg.execute("UPDATE users SET name = 'corrupt' WHERE id = 7")
    stage_psycopg.commit()
    stage_valkey.set("session:4711", "corrupt")
    stage_s3.create_bucket(Bucket="default.gbai")
    stage_s3.put_object(Bucket="default.gbai", Key="start.bas", Body=b"corrupt")
    assert passes

@pytest.mark.stage_quiet
@pytest.mark.stage_reset("cache", "drive", "tables")
def test_is_clean(stage_psycopg, stage_valkey, stage_changes):
    assert not stage_changes()
    stage_valkey.set("session:4711", "corrupt")
    assert [str(each) for each in stage_changes()] == ["session:*: 1 key added (string)"]
"""


def test_a_failed_test_reports_what_it_changed(
    provisioned: subprocess.CompletedProcess[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its section, JUnit's file, the annotation, the job's summary and Allure's results; the next test is clean.
    With `--stage-changes` one that passes reports it, too."""
    assert provisioned.returncode == 0
    pytester.makepyfile(test_it=TESTS)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    options = ("--stage-lab", "-p", "no:cacheprovider", "--stage-changes", "--alluredir=allure")
    done = pytester.runpytest_subprocess(*options, "--junitxml=report.xml", "-n", "1")
    done.assert_outcomes(passed=2, failed=1)
    named = [
        "  bucket default.gbai: created, 1 object added (start.bas)",
        "  session:*: 1 key added (string)",
        "  botserver.public.users: 1 row changed",
    ]
    printed = done.stdout.str()
    assert "stage changes" in printed
    assert all(each in printed for each in named)
    suite = ElementTree.parse(pytester.path / "report.xml").getroot()[0]
    failed, passed, _ = suite.findall("testcase")
    assert all(each in (failed.findtext("system-err") or "") for each in named)
    for case in (failed, passed):
        told = {each.get("name"): each.get("value") or "" for each in case.findall("properties/property")}
        assert all(each.strip() in told["stage.changes"] for each in named)
    annotation = next(line for line in printed.splitlines() if line.startswith("::error"))
    assert "users: 1 row changed" in annotation
    assert "session:*: 1 key added (string)<br>" in (pytester.path / "summary.md").read_text()
    attached = [file.read_text() for file in (pytester.path / "allure").glob("*-attachment.txt")]
    assert len([text for text in attached if all(each in text for each in named)]) == 2
