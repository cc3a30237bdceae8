"""What a log, a listing and names of keys mean: without a container."""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_stagegbo.changes.catalog import PAGE, Relation, relation_at
from pytest_stagegbo.changes.database import touched
from pytest_stagegbo.changes.database_scripts import ASKED
from pytest_stagegbo.changes.files import file_changes, object_changes
from pytest_stagegbo.changes.keys import pattern_of
from pytest_stagegbo.changes.reading import read_changes
from pytest_stagegbo.changes.records import (
    Changes,
    ContainerChanges,
    FileChange,
    KeyChange,
    ObjectChange,
    RowChange,
    SchemaChange,
    SequenceChange,
)
from pytest_stagegbo.changes.write_ahead import END, SHORTEN, Log, parse_log
from pytest_stagegbo.resets.listing import Entry, Inspection
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.resets.valkey import key_counts, keys_in
from pytest_stagegbo.services.resp import Refused
from pytest_stagegbo.settings.model import default_containers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_stagegbo.resets.resetter import Resetter
    from pytest_stagegbo.services.resp import Resp

USERS = (5, 16390)


def line(kind: str, transaction: int, what: str, *blocks: str) -> str:
    """A line as `pg_waldump` of PostgreSQL 15 prints it."""
    references = "".join(f", blkref #{n}: rel 1663/5/16390 blk {block}" for n, block in enumerate(blocks))
    return (
        f"rmgr: {kind:<11} len (rec/tot):     54/   150, tx: {transaction:>10}, lsn: 0/0155A0C8, prev 0/0155A090, "
        f"desc: {what}{references}"
    )


def commit(transaction: int, more: str = "") -> str:
    return line("Transaction", transaction, f"COMMIT 2026-11-27 20:31:02.123456 UTC{more}")


def insert(transaction: int, offset: int, block: str = "0") -> str:
    return line("Heap", transaction, f"INSERT off {offset} flags 0x00", block)


def update(transaction: int, old: int, new: int, *blocks: str) -> str:
    return line("Heap", transaction, f"UPDATE off {old} xmax 7 flags 0x00 ; new off {new} xmax 0", *(blocks or ("0",)))


def delete(transaction: int, offset: int) -> str:
    return line("Heap", transaction, f"DELETE off {offset} flags 0x00 KEYS_UPDATED", "0")


def counted(log: Log) -> tuple[int, int, int, bool]:
    counts = log.rows[USERS]
    return counts.added, counts.changed, counts.removed, counts.exact


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([insert(7, 1), commit(7)], (1, 0, 0, True), id="added"),
        pytest.param([update(7, 1, 9), commit(7)], (0, 1, 0, True), id="changed"),
        pytest.param([update(7, 1, 9), update(7, 9, 10), commit(7)], (0, 1, 0, True), id="changed twice is once"),
        pytest.param([update(7, 1, 9, "4", "0"), delete(7, 9), commit(7)], (0, 1, 1, True), id="to another block"),
        pytest.param([update(7, 1, 9), delete(7, 9), commit(7)], (0, 0, 1, True), id="changed and removed is removed"),
        pytest.param([delete(7, 1), commit(7)], (0, 0, 1, True), id="removed"),
        pytest.param([insert(7, 1), update(7, 1, 2), commit(7)], (1, 0, 0, True), id="added and changed is added"),
        pytest.param([insert(7, 1), update(7, 1, 2), delete(7, 2), commit(7)], (0, 0, 0, True), id="it is gone again"),
        pytest.param([insert(8, 1), commit(7, "; subxacts: 8 9")], (1, 0, 0, True), id="in a subtransaction"),
        pytest.param(
            [insert(8, 1), line("Transaction", 0, "COMMIT_PREPARED 8: 2026-11-27 20:31:02 UTC")],
            (1, 0, 0, True),
            id="in a prepared transaction",
        ),
        pytest.param(
            [line("Heap2", 7, "MULTI_INSERT+INIT 3 tuples flags 0x02", "1"), commit(7)], (3, 0, 0, True), id="a copy"
        ),
        pytest.param(
            [line("Heap2", 7, "MULTI_INSERT 3 tuples flags 0x02", "1"), delete(7, 2), commit(7)],
            (3, 0, 1, False),
            id="a copy to unknown places",
        ),
        pytest.param(
            [line("Heap2", 7, "MULTI_INSERT ntuples: 2, flags: 0x02, offsets: [2, 3]", "0"), delete(7, 2), commit(7)],
            (1, 0, 0, True),
            id="a copy, PostgreSQL 16",
        ),
        pytest.param(
            [
                line("Heap", 7, "INSERT off: 1, flags: 0x08", "0"),
                line(
                    "Heap",
                    7,
                    "HOT_UPDATE old_xmax: 7, old_off: 4, old_infobits: [], flags: 0x10, new_xmax: 0, new_off: 9",
                    "0",
                ),
                line("Heap", 7, "DELETE xmax: 7, off: 5, infobits: [KEYS_UPDATED], flags: 0x00", "0"),
                commit(7),
            ],
            (1, 1, 1, True),
            id="as PostgreSQL 16 says it",
        ),
    ],
)
def test_rows_are_counted_once(lines: list[str], expected: tuple[int, int, int, bool]) -> None:
    assert counted(parse_log(lines)) == expected
    assert counted(parse_log(shortened(lines))) == expected


def shortened(lines: list[str]) -> list[str]:
    said = subprocess.run(["awk", SHORTEN], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    *found, last = said.splitlines()
    assert last == END
    return found


def test_rows_one_behind_the_other_are_one_line() -> None:
    """What is between them stays where it is, and what does not count goes."""
    rows = [insert(7, number) for number in range(1, 200)]
    index = line("Btree", 7, "INSERT_LEAF off 3", "1")
    others = [insert(8, 200), insert(7, 201, "5"), insert(7, 3, "5"), *[delete(7, number) for number in (4, 5, 6, 9)]]
    lines = [
        *rows[:100],
        index,
        *rows[100:],
        *others,
        commit(7),
        commit(8),
        line("Sequence", 0, "LOG rel 1663/5/7", "0"),
    ]
    found = shortened(lines)
    assert [each.split(" ")[0] for each in found] == ["run"] * 6 + ["rmgr:"] * 3
    assert (parse_log(found), counted(parse_log(found))) == (parse_log(lines), (198, 0, 0, True))


@given(
    st.lists(
        st.one_of(
            st.builds(insert, st.sampled_from((7, 8)), st.integers(1, 6), st.sampled_from(("0", "1"))),
            st.builds(delete, st.sampled_from((7, 8)), st.integers(1, 6)),
            st.builds(update, st.sampled_from((7, 8)), st.integers(1, 6), st.integers(1, 6)),
        ),
        max_size=30,
    )
)
@settings(deadline=None, max_examples=30)
def test_a_shortened_log_says_the_same(lines: list[str]) -> None:
    whole, short = parse_log([*lines, commit(7)]), parse_log(shortened([*lines, commit(7)]))
    assert whole.files(5) == short.files(5)
    for place, counts in whole.rows.items():
        assert [counts.added, counts.changed, counts.removed, counts.gone] == [
            short.rows[place].added,
            short.rows[place].changed,
            short.rows[place].removed,
            short.rows[place].gone,
        ]


@pytest.mark.parametrize("last", ["pg_waldump: error: invalid record", ""])
def test_a_log_without_an_end_is_not_counted_by(last: str) -> None:
    """Where the container has no awk, or pg_waldump gave up, the statistics are what is left."""
    log = LOG.replace(END, last)
    tables = Answering(f"{HEAD}{log}{ASKED}\n", f'["in", "app"]\n{RELATION}\n{ASKED}\n')
    assert [str(each) for each in tables.changes()] == ["app.public.users: about 1 row added"]


def test_a_schema_that_was_read_with_the_log_is_not_asked_for_again() -> None:
    """It counts only if the log has a change of a catalog; one that was not read is asked for."""
    relation = ["relation", "public", "users", USERS[1], True, 1, 0, 0]
    catalogs = ["catalogs", [1259, 2600]]
    schema: list[list[Any]] = [
        ["created", "r", "public.new", 5],
        ["touched", [["pg_proc", 1255]]],
        ["catalog", 1259, 150018, {}],
    ]
    in_table = parse_log([insert(7, 1), commit(7)])
    in_catalog = parse_log([insert(7, 1).replace("5/16390", "5/1259"), insert(7, 2), commit(7)])
    assert touched([relation, *schema, catalogs], in_table, 5) == [relation]
    assert touched([relation, *schema, catalogs], in_catalog, 5) == [relation, *schema]
    assert touched([relation, catalogs], in_catalog, 5) is None
    assert touched([relation, *schema], in_catalog, 5) is None


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([insert(7, 1)], id="not committed"),
        pytest.param([insert(7, 1), line("Transaction", 7, "ABORT 2026-11-27 20:31:02 UTC")], id="rolled back"),
        pytest.param([insert(8, 1), commit(7)], id="another's commit"),
        pytest.param([line("Heap", 7, "LOCK off 1: xid 7: flags 0x00 LOCK_ONLY", "0"), commit(7)], id="locked"),
        pytest.param([line("Heap", 7, "INPLACE off 1", "0"), commit(7)], id="in place"),
        pytest.param(["pg_waldump: error: could not find file", ""], id="no line of the log"),
    ],
)
def test_what_is_no_change_is_not_counted(lines: list[str]) -> None:
    log = parse_log(lines)
    assert (log.rows, log.databases) == ({}, set())


def test_sequences_and_files_count_whatever_becomes_of_their_transaction() -> None:
    log = parse_log([line("Sequence", 0, "LOG rel 1663/5/16390", "0"), line("Storage", 0, "CREATE base/5/16400")])
    assert (log.sequences, log.created, log.databases) == ({USERS}, {(5, 16400)}, {5})
    assert log.files(5) == [16390, 16400]


def test_a_transaction_without_rows_may_have_written_to_unlogged_tables() -> None:
    assert parse_log([commit(7)]).is_silent
    assert not parse_log([insert(7, 1), commit(7)]).is_silent
    assert not parse_log([insert(8, 1), commit(7, "; subxacts: 8")]).is_silent


def test_where_removed_rows_had_been_is_known() -> None:
    log = parse_log([update(7, 1, 9), delete(7, 9), insert(7, 10), delete(7, 10), delete(7, 4), commit(7)])
    assert log.rows[USERS].gone == [(0, 1), (0, 4)]


def page(*rows: bytes) -> bytes:
    """A page of a table as PostgreSQL has it on disk."""
    found, end = bytearray(PAGE), PAGE
    for number, row in enumerate(rows):
        end -= len(row)
        found[end : end + len(row)] = row
        struct.pack_into("<I", found, 24 + 4 * number, end | 1 << 15 | len(row) << 17)
    return bytes(found)


def row(name: str, kind: str, namespace: int, before_kind: int) -> bytes:
    header = bytes(22) + b"\x18\x00"
    columns = struct.pack("<I", 16400) + name.encode().ljust(64, b"\0") + struct.pack("<I", namespace)
    return header + columns.ljust(before_kind, b"\0") + kind.encode() + bytes(30)


@pytest.mark.parametrize(("version", "before_kind"), [(150008, 115), (180001, 119)])
def test_a_relation_has_its_name_in_a_page(version: int, before_kind: int) -> None:
    found = page(row("users", "r", 2200, before_kind), row("users_pkey", "i", 2200, before_kind))
    assert relation_at(found, 1, version) == Relation("users", "r", 2200)
    assert relation_at(found, 2, version) == Relation("users_pkey", "i", 2200)
    assert relation_at(found, 3, version) is None
    assert relation_at(b"", 1, version) is None
    assert relation_at(found[:30], 1, version) is None


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        (b"session:4711", "session:*"),
        (b"user:12:cart:3", "user:*:cart:*"),
        (b"config", "config"),
        (b"session:2f1d7c8e-0a2b-4c3d-9e8f-001122334455", "session:*"),
        (b"lock/deadbeef01", "lock/*"),
        (b"feedback:face", "feedback:face"),
        (b"mail:ada@example.org", "mail:*"),
        (b"token:eyJhbGciOiJIUzI1NiIsInR5cCI6", "token:*"),
        (b"\xff\xfe", r"\xff\xfe"),
    ],
)
def test_keys_are_shown_by_pattern(key: bytes, pattern: str) -> None:
    assert pattern_of(key) == pattern


def entry(path: str, kind: str = "f", *, size: int = 5, changed: str = "1.0") -> Entry:
    return Entry("1:2", kind, 0, size, changed, "1.0", path)


def inspection(*entries: Entry, note: str = "", complete: bool = True) -> Inspection:
    return Inspection(note, (), 0, 0, entries, complete)


def test_objects_are_files_below_a_bucket() -> None:
    seen = inspection(
        entry("/minio/", "d"),
        entry("/minio/a.gbai", "d"),
        entry("/minio/a.gbai/x", "d"),
        entry("/minio/a.gbai/x/one.bas"),
        entry("/minio/empty", "d"),
        entry("/minio/.minio.sys", "d"),
        entry("/minio/.minio.sys/tmp"),
        entry("/minio/stray"),
    )
    objects, others = object_changes(["/minio"], seen)
    assert objects == (
        ObjectChange("a.gbai", added=1, names=("x/one.bas",)),
        ObjectChange("empty"),
    )
    assert others == (FileChange("/minio/stray", "added"),)


def test_an_object_of_minio_is_a_folder() -> None:
    seen = inspection(
        entry("/minio/b", "d"),
        entry("/minio/b/x/one.bas", "d"),
        entry("/minio/b/x/one.bas/xl.meta"),
        entry("/minio/b/x/one.bas/2f1d7c8e", "d"),
        entry("/minio/b/x/one.bas/2f1d7c8e/part.1"),
    )
    objects, _ = object_changes(["/minio"], seen)
    assert objects == (ObjectChange("b", added=1, names=("x/one.bas",)),)


def test_files_of_the_services_own_start_are_no_changes() -> None:
    note = '{"kept": {"/work/own": ["1:2", "f", "5", "1.0"], "/work/gone": ["1:3", "f", "5", "1.0"]}}'
    seen = inspection(entry("/work/", "d"), entry("/work/own"), entry("/work/new"), note=note)
    assert [str(each) for each in file_changes(["/work"], seen)] == ["/work/new: added", "/work/gone: removed"]
    seen = inspection(entry("/work/own", size=6), entry("/work/gone", changed="2.0"), note=note)
    assert [str(each) for each in file_changes(["/work"], seen)] == ["/work/gone: changed", "/work/own: changed"]


ALL = Changes(
    (
        ContainerChanges(
            "tables",
            rows=(RowChange("bot", "public", "users", added=1, changed=2), RowChange("bot", "s", "t", 0, 0, 3, False)),
            sequences=(SequenceChange("bot", "public", "ids", 43),),
            schema=(
                SchemaChange("bot", "table", "public.new", "created"),
                SchemaChange("bot", "table", "public.old", "dropped"),
                SchemaChange("", "role", "eve", "created"),
            ),
            notes=("a note",),
        ),
        ContainerChanges("cache", keys=(KeyChange(0, "a:*", "string", 2), KeyChange(3, "b", "hash", 1, False))),
        ContainerChanges("drive", objects=(ObjectChange("b", 7, names=("x", "y")),)),
        ContainerChanges("system", files=tuple(FileChange(f"/work/{n:02}", "added") for n in range(30))),
        ContainerChanges("vault", unknown="nothing says what it was like"),
        ContainerChanges("llm", unknown="nothing says what it was like"),
    )
)


def test_changes_read_as_text() -> None:
    lines = ALL.lines(most=3)
    assert lines[:8] == [
        "tables, since it was emptied last:",
        "  bot.public.users: 1 row added, 2 rows changed",
        "  bot.s.t: about 3 rows removed",
        "  bot.public.ids: sequence at 43",
        "  and 3 more",
        "  (a note)",
        "cache, since it was emptied last:",
        "  a:*: 2 keys added (string)",
    ]
    assert "  db3 b: at least 1 key added (hash)" in lines
    assert "  bucket b: created, 7 objects added (x, y, ...)" in lines
    assert lines[-2:] == ["  and 27 more", "vault, llm: can't be told: nothing says what it was like"]
    assert "  bot.public.old: table dropped" in ALL.lines()
    assert "  eve: role created" in ALL.lines()


def test_secrets_are_taken_out_of_the_text() -> None:
    assert "users" not in "\n".join(ALL.lines(hide=lambda text: text.replace("users", "***")))


def test_a_name_is_part_of_one_line() -> None:
    """Else a key may add a line to a report, as if something else had changed."""
    odd = ContainerChanges("cache", keys=(KeyChange(0, "a\n  b: 1 key\tadded \x1b[31m", "string", 1),))
    assert Changes((odd,)).lines()[1:] == ["  a\\n  b: 1 key\\tadded \\x1b[31m: 1 key added (string)"]


def test_a_record_survives_json() -> None:
    assert Changes.from_json(ALL.to_json()) == ALL


def test_nothing_is_claimed_that_is_not_certain() -> None:
    quiet = ContainerChanges("cache", since=0.0)
    assert not Changes((quiet,))
    assert Changes((quiet, ContainerChanges("vault", unknown="why")))
    assert Changes((ContainerChanges("drive", complete=False),))
    assert ALL["cache"].keys[0].added == 2
    assert ALL.rows["bot.public.users"].exact
    assert list(ALL.unknown) == ["vault", "llm"]
    with pytest.raises(KeyError):
        ALL["nobody"]


# What is answered in part ---------------------------------------------------------------------------------------

HEAD = """1000.000 0/100 700 /var/lib/pg.stagegbo-golden
Latest checkpoint's NextOID:          20000
=
["now", true]
["database", 5, "app"]
"""


class Answering:
    """A container with a PostgreSQL server, whose scripts print these texts one after the other."""

    name = "tables"
    container = default_containers()["tables"]
    probe = container.probes[0]
    mark = None

    def __init__(self, *outputs: str) -> None:
        self.outputs = list(outputs)

    def run(self, script: str, seconds: float, *, library: str = "") -> tuple[int, bytes]:  # noqa: ARG002
        return 0, self.outputs.pop(0).encode()

    def on_targets(self, containers: Sequence[object], read: Callable[[Any], ContainerChanges]) -> list[Any]:
        return [read(self) for _ in containers]

    def changes(self) -> Changes:
        return read_changes(cast("Resetter", self), [self.container])


LOG = "\n".join((insert(7, 1), commit(7), END, ""))
RELATION = '["relation", "public", "users", 16390, true, 1, 0, 0]'


def test_a_database_that_answers_everything() -> None:
    tables = Answering(f"{HEAD}{LOG}{ASKED}\n", f'["in", "app"]\n{RELATION}\n{ASKED}\n')
    assert [str(each) for each in tables.changes()] == ["app.public.users: 1 row added"]


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        pytest.param([f"{HEAD}{LOG}ERROR:  out of memory\n"], "out of memory", id="the first script"),
        pytest.param(
            [f"{HEAD}{LOG}{ASKED}\n", '["in", "app"]\nERROR:  canceling statement due to statement timeout\n'],
            "statement timeout",
            id="the second script",
        ),
        pytest.param(
            [f"{HEAD}{LOG}{ASKED}\n", f'["in", "app"]\n{RELATION}\n\\connect: connection failed\n'],
            "connection failed",
            id="a further database",
        ),
        pytest.param([""], "can't be understood", id="nothing"),
        pytest.param(["what\n=\n"], "", id="nonsense"),
        pytest.param([f"{HEAD}[1, 2\n{ASKED}\n"], "", id="half a line"),
    ],
)
def test_what_a_database_has_not_answered_is_unknown(outputs: list[str], why: str) -> None:
    """psql ends at its first error: silence is not the answer that nothing changed."""
    found = Answering(*outputs).changes()
    assert found
    assert why in found.unknown["tables"]


def test_a_name_with_another_line_separator_is_one_line() -> None:
    relation = RELATION.replace("users", "us\u2028ers")
    tables = Answering(f"{HEAD}{LOG}{ASKED}\n", f'["in", "app"]\n{relation}\n{ASKED}\n')
    assert list(tables.changes().rows) == ["app.public.us\u2028ers"]


class Listing:
    """A Valkey that answers `SELECT` and `SCAN` with these."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def ask(self, *_: object) -> list[Any]:
        return [self.answers.pop(0)]


def test_keys_are_listed_to_the_end() -> None:
    valkey = Listing(b"OK", [b"17", [b"a"]], [b"0", [b"b", b"a"]])
    assert list(keys_in(cast("Resp", valkey), 0)) == [[b"a"], [b"b", b"a"]]
    assert key_counts(b"# Keyspace\r\ndb0:keys=2,expires=0\r\ndb12:keys=30,expires=1\r\n") == {0: 2, 12: 30}


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([Refused("NOPERM no")], id="SELECT"),
        pytest.param([b"OK", Refused("NOPERM no")], id="SCAN"),
        pytest.param([b"OK", b"what"], id="nonsense"),
    ],
)
def test_a_server_that_lists_nothing_is_not_empty(answers: list[object]) -> None:
    with pytest.raises(NeedsRestart):
        list(keys_in(cast("Resp", Listing(*answers)), 0))
    with pytest.raises(NeedsRestart):
        key_counts(Refused("NOAUTH Authentication required."))
