"""What changed in a PostgreSQL cluster since its last reset.

A reset leaves in `/run` where the write-ahead log was when the cluster was clean, and the number of its own
transaction. From there on the log is read with the server's own `pg_waldump`. It is the only source that has all that
was committed and nothing else. Statistics count each write of a row, also one that was rolled back, and a session that
goes on keeps what it has done back from them for up to ten seconds. They are used where the log is too long or gone.

What was created or altered is found in the catalogs by the transactions that wrote there. What was dropped has left
them: the log has the place of its row, and the clean copy of the cluster still has the row.
"""

from __future__ import annotations

import base64
import shlex
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import msgspec

from pytest_stagegbo.changes.catalog import PAGE, relation_at
from pytest_stagegbo.changes.database_scripts import ASKED, first_script, parse_position, query, second_script
from pytest_stagegbo.changes.records import ContainerChanges, RowChange, SchemaChange, SequenceChange
from pytest_stagegbo.changes.write_ahead import END, parse_log
from pytest_stagegbo.resets.database import UNTOUCHED, untouched_script
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_stagegbo.changes.database_scripts import Position
    from pytest_stagegbo.changes.write_ahead import Log
    from pytest_stagegbo.resets.target import ResetTarget

__all__ = ["read_database", "touched"]

SECONDS = 10.0
"""For each of two scripts in the container."""
LONGEST_LOG = 4 << 20
"""Bytes of the log that are read. More takes longer than a report may."""
_KINDS = {
    "r": "table", "p": "table", "i": "index", "I": "index", "S": "sequence", "v": "view", "m": "materialized view",
    "f": "foreign table",
}  # fmt: skip

_SCHEMA = frozenset(("created", "altered", "touched", "catalog"))
"""What answers about a schema begin with."""

_busiest: WeakKeyDictionary[ResetTarget, str] = WeakKeyDictionary()
"""The database in which most was done when this process looked last. To begin there saves a session of the server."""


def read_database(target: ResetTarget) -> ContainerChanges:
    """Raises `StageGboError`, or ValueError for what can't be understood."""
    library, untouched = untouched_script(target)
    output = _run(target, untouched + first_script(target, LONGEST_LOG, _busiest.get(target, "postgres")), library)
    if output.startswith(f"{UNTOUCHED} "):
        return ContainerChanges(target.name, float(output.partition(" ")[2]))
    head, _, rest = output.partition("\n=\n")
    if head.startswith("unknown "):
        return ContainerChanges(target.name, unknown=head.removeprefix("unknown ").strip())
    position = parse_position(head)
    lines = rest.split("\n")
    rows = _rows(lines)
    now = next((each[1:] for each in rows if each[0] == "now"), None)
    if now is None and _busiest.pop(target, ""):  # it may have been dropped
        return read_database(target)
    if now is None or ASKED not in lines:
        return ContainerChanges(target.name, unknown=_complaint(lines))
    is_whole = END in lines and not any(line.startswith("pg_waldump: ") for line in lines)
    names = {int(each[1]): str(each[2]) for each in rows if each[0] == "database"}
    log = parse_log(lines) if is_whole or not now[0] else None
    wanted = sorted(names if log is None or log.is_silent else names.keys() & log.databases)
    answers: dict[str, list[list[Any]]] = {names[oid]: [] for oid in wanted}
    begin = next((place for place, each in enumerate(rows) if each[0] == "in"), len(rows))
    for _, name in rows[begin : begin + 1]:
        _busiest[target] = name
        known = next((oid for oid in wanted if names[oid] == name), None)
        if log is not None and known is not None and (found := touched(rows[begin + 1 :], log, known)) is not None:
            answers[name] = found
            wanted.remove(known)
    if wanted:
        script = second_script(target, {names[oid]: query(position, log, oid) for oid in wanted})
        lines = _run(target, script).split("\n")
        found, database = _rows(lines), ""
        if ASKED not in lines:
            return ContainerChanges(target.name, unknown=_complaint(lines))
        for each in found:
            if each[0] == "in":
                database = str(each[1])
            else:
                answers[database].append(each)
    oids = {name: oid for oid, name in names.items()}
    dropped = {
        name: _dropped(target, position, log, oids[name], answer) for name, answer in answers.items() if log is not None
    }
    return _changes(target.name, position, log, oids, answers, rows, dropped)


def touched(rows: Sequence[list[Any]], log: Log, oid: int) -> list[list[Any]] | None:
    """Those of a database's relations that something was done to; None: its schema was altered in a way that was not
    asked about, so ask for more."""
    files = set(log.files(oid))
    catalogs = next((each[1] for each in rows if each[0] == "catalogs"), None)
    if catalogs is None:
        return None
    found = [
        each
        for each in rows
        if (each[0] == "relation" and (each[3] in files or not each[4])) or (each[0] == "sequence" and each[4] in files)
    ]
    if files.intersection(catalogs):
        if not any(each[0] == "catalog" for each in rows):
            return None
        found += [each for each in rows if each[0] in _SCHEMA]
    return found


def _changes(
    container: str,
    position: Position,
    log: Log | None,
    oids: Mapping[str, int],
    answers: Mapping[str, Sequence[Sequence[Any]]],
    shared: Sequence[Sequence[Any]],
    dropped: Mapping[str, Iterable[tuple[str, str]]],
) -> ContainerChanges:
    """Put together what was read: by database, of all of them, and kinds and names of what was dropped. Pure."""
    if log is None and not position.counts_from_zero:
        unknown = "the write-ahead log is too long or gone, and statistics began before the last reset"
        return ContainerChanges(container, position.since, unknown)
    rows: list[RowChange] = []
    sequences: list[SequenceChange] = []
    schema = [SchemaChange("", str(each[1]), str(each[2]), _what(each[3])) for each in shared if each[0] == "shared"]
    if not schema and log is not None:  # of roles and databases, only those that are there were listed
        files = [(str(each[1]), each[2]) for each in shared if each[0] == "file"]
        altered = [name for name, file in files if (counts := log.rows.get((0, file))) is not None and counts.any]
        schema += [SchemaChange("", "catalog", f"pg_catalog.{name}", "altered") for name in altered]
    notes: list[str] = []
    for database, found in answers.items():
        for word, *values in found:
            if word == "relation":
                row = _row(database, values, log, oids[database], position)
                rows += [row] if row is not None else []
            elif word == "sequence":
                sequences.append(SequenceChange(database, values[0], values[1], values[2]))
            elif word == "created" or word == "altered":
                kind = _KINDS.get(values[0], values[0])
                what = _what(word == "created")
                if word == "altered" and log is not None and (oids[database], values[2]) in log.created:
                    what = "truncated or rewritten"
                if kind != "index" or word == "created":  # what is done to a table is done to its indexes
                    schema.append(SchemaChange(database, kind, values[1], what))
        schema += [SchemaChange(database, kind, name, "dropped") for kind, name in dropped.get(database, ())]
        if not any(each.database == database for each in schema):  # else these may be part of it
            done = set(log.files(oids[database])) if log is not None else set()
            altered = [name for word, *values in found if word == "touched" for name, file in values[0] if file in done]
            schema += [SchemaChange(database, "catalog", f"pg_catalog.{name}", "altered") for name in altered]
    if log is None:
        notes.append(
            "the write-ahead log is too long or gone, so rows are counted by the server's statistics: each write "
            "counts, also one that was rolled back, and one of the last seconds may be missing"
        )
    if writing := sum(each[0] == "writing" for each in shared):
        word = "transaction is" if writing == 1 else "transactions are"
        notes.append(f"{writing} {word} still open: what they wrote does not count yet")
    return ContainerChanges(
        container,
        position.since,
        rows=tuple(rows),
        sequences=tuple(sequences),
        schema=tuple(schema),
        notes=tuple(notes),
    )


def _what(created: object) -> Literal["created", "altered", "truncated or rewritten"]:
    return "created" if created else "altered"


def _row(database: str, values: Sequence[Any], log: Log | None, oid: int, position: Position) -> RowChange | None:
    """The change of one table; None: there is none. Only statistics know of an unlogged one."""
    schema, table, file, is_logged, added, changed, removed = values
    exact = log is not None and is_logged
    if log is not None and is_logged:
        counts = log.rows.get((oid, file))
        if counts is None:
            return None
        added, changed, removed, exact = counts.added, counts.changed, counts.removed, counts.exact
    elif not position.counts_from_zero:
        return None
    if not (added or changed or removed):
        return None
    return RowChange(database, schema, table, added, changed, removed, exact)


def _dropped(
    target: ResetTarget, position: Position, log: Log, oid: int, answer: Sequence[Sequence[Any]]
) -> list[tuple[str, str]]:
    """Kinds and names of relations that one database had in the clean copy, and has no more."""
    about = next((each[1:] for each in answer if each[0] == "catalog"), None)
    counts = log.rows.get((oid, about[0])) if about is not None else None
    if about is None or counts is None or not counts.gone:
        return []
    file, version, namespaces = about
    own = position.original(oid)
    blocks = sorted({block for block, _ in counts.gone})
    path = shlex.quote(f"{position.golden}/base/{own}/{file}")
    read = f"dd if={path} bs={PAGE} count=1 2>/dev/null"
    script = "".join(f"{read} skip={block} | base64 -w 0; echo\n" for block in blocks)
    pages = dict(zip(blocks, map(base64.b64decode, _run(target, script).splitlines()), strict=False))
    if not all(pages.get(block) for block in blocks):
        raise ValueError(f"the clean copy's file {file} can't be read, so what was dropped has no name")
    found = [relation_at(pages.get(block, b""), offset, version) for block, offset in counts.gone]
    named = [
        (_KINDS[each.kind], f"{namespaces.get(str(each.namespace), '?')}.{each.name}")
        for each in found
        if each is not None and each.kind in _KINDS
    ]
    tables = [each for each in named if each[0] != "index"]
    return sorted(tables or named, key=lambda each: each[1])  # a table takes its indexes with it


# -- asking


def _run(target: ResetTarget, script: str, library: str = "") -> str:
    return target.run(script, SECONDS, library=library)[1].decode("utf-8", "replace")


def _complaint(lines: Iterable[str]) -> str:
    said = [line for line in lines if line and line != ASKED and not line.startswith(("[", "rmgr: "))]
    return mask("; ".join(said)[-500:]) or "the server says nothing"


def _rows(lines: Iterable[str]) -> list[list[Any]]:
    """The lines that are JSON arrays, as psql prints rows of one column."""
    return [msgspec.json.decode(line) for line in lines if line.startswith("[")]
