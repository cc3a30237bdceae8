"""What PostgreSQL's write-ahead log says was done to rows, as `pg_waldump` prints it. Pure.

Statistics come late: a session reports what it has done a second after its last report, and one that then waits for its
client ten seconds after that. The log has all that was committed, at once. It names rows by their place (block and
number in it), so a row that is updated twice, or added and removed, counts once or not at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["END", "SHORTEN", "Log", "Place", "RowCounts", "parse_log"]

END = "end of the log"
"""The last line of what `SHORTEN` prints."""

SHORTEN = f"""
function put() {{ if (verb != "") print "run " verb " " tx " " first " " last " " place; verb = "" }};
substr($0, 7, 5) == "Heap " && substr($0, 47, 6) == ", tx: " && (at = index($0, ", desc: ")) {{
    said = substr($0, at + 8, 6);
    rest = substr($0, at + 14);
    off = substr(rest, index(rest, " off") + 5, 6) + 0;
    at = index(rest, ", blkref #0: rel ");
    ref = substr(rest, at + 17);
    if (at && off == last + 1 && said == verb && ref == place && substr($0, 53, 10) == tx) {{ last = off; next }};
    if ((said == "INSERT" || said == "DELETE") && off && at && ref ~ /^[^ ]* blk /) {{
        put(); verb = said; tx = substr($0, 53, 10); first = last = off; place = ref; next
    }}
}};
/^(rmgr: (Heap|Heap2|Transaction|Storage|Sequence) |pg_waldump: (error|fatal))/ {{ put(); print }};
END {{ put(); print "{END}" }}
"""
"""A program of awk. It keeps the lines that count, and makes one of rows that one transaction added to a block, or
removed from it, one behind the other. Of thousands of lines, that leaves dozens to be sent and read."""

Place = tuple[int, int]
"""A file of a relation: the OID of its database, 0 for what databases share, and its number."""

_LINE = re.compile(r"rmgr: (\w+) [^,]*, tx: +(\d+), lsn: [^,]*, [^,]*, desc: (\w+)(\+INIT)? ?(.*)")
_RUN = re.compile(r"run (INSERT|DELETE) +(\d+) (\d+) (\d+) \d+/(\d+)/(\d+) blk (\d+)")
"""Verb, transaction, first and last row, place."""
_BLOCK = re.compile(r"blkref #\d+: rel \d+/(\d+)/(\d+) blk (\d+)")
_OFFSET = re.compile(r"off:? (\d+)")
_OFFSETS = re.compile(r"offsets: \[([\d, ]*)\]")
_TUPLES = re.compile(r"(?:ntuples: )?(\d+)")
_SUBTRANSACTIONS = re.compile(r"subxacts: ([\d ]+)")
_PREPARED = re.compile(r"(\d+):")
_CREATED = re.compile(r"(?:base|global)/(?:(\d+)/)?(\d+)")
_RUNS = frozenset(("INSERT", "DELETE"))
_WRITERS = frozenset(("Heap", "Heap2", *_RUNS))
"""What records of a transaction begin with that wrote to rows."""
_UPDATES = frozenset(("UPDATE", "HOT_UPDATE"))
_COMMITS = frozenset(("COMMIT", "COMMIT_PREPARED"))


class RowCounts(Struct):
    """Of one relation's file."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    exact: bool = True
    unplaced: int = 0
    """Rows that were added at places which the log does not name."""
    rows: dict[tuple[int, int], tuple[int, int] | None] = field(default_factory=dict)
    """By place, each row that was written: where it was at first; None: it was added since."""
    gone: list[tuple[int, int]] = field(default_factory=list)
    """Where rows that were removed had been at first."""
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    """Rows that were added, by block, first and last number in it: they get into `rows` only once that is looked up."""

    def insert_run(self, block: int, first: int, last: int) -> None:
        self.runs.append((block, first, last))
        self.added += last - first + 1

    def _place_runs(self) -> None:
        for block, first, last in self.runs:
            self.rows.update(((block, number), None) for number in range(first, last + 1))
        self.runs.clear()

    def insert(self, places: Iterable[tuple[int, int]]) -> None:
        for place in places:
            self.rows[place] = None
            self.added += 1

    def update(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        self._place_runs()
        if before not in self.rows:
            self.changed += 1
            self.exact = self.exact and not self.unplaced
        self.rows[after] = self.rows.pop(before, before)

    def delete(self, place: tuple[int, int]) -> None:
        self._place_runs()
        is_known, first = place in self.rows, self.rows.pop(place, place)
        if first is None:
            self.added -= 1
            return
        if is_known:
            self.changed -= 1
        else:
            self.exact = self.exact and not self.unplaced
        self.removed += 1
        self.gone.append(first)

    @property
    def any(self) -> bool:
        return bool(self.added or self.changed or self.removed)


class Log(Struct):
    """What the log says of all that was committed."""

    rows: dict[Place, RowCounts] = field(default_factory=dict)
    sequences: set[Place] = field(default_factory=set)
    is_silent: bool = False
    """Whether a transaction was committed without a word about rows, as one that wrote to unlogged tables only."""
    created: set[Place] = field(default_factory=set)
    """Files that a transaction made, committed or not: of new relations, and of those that were truncated or
    rewritten."""

    @property
    def _places(self) -> set[Place]:
        return {*(place for place, counts in self.rows.items() if counts.any), *self.sequences, *self.created}

    @property
    def databases(self) -> set[int]:
        """In which something was done; not those of relations that databases share."""
        return {database for database, _ in self._places} - {0}

    def files(self, database: int) -> list[int]:
        """Of one database, in which something was done."""
        return sorted(file for each, file in self._places if each == database)


def parse_log(lines: Iterable[str]) -> Log:
    """Read lines of `pg_waldump`, through `SHORTEN` or not, from first to last. What belongs to no transaction that has
    been committed in them is left out."""
    records = [found.groups() for line in lines if (found := _RUN.match(line) or _LINE.match(line))]
    log = Log()
    committed = _committed(log, records)
    for record in records:
        if record[0] not in _RUNS:
            _note(log, record, committed)
        elif record[1] in committed:
            _count_run(log, record)
    return log


def _count_run(log: Log, run: tuple[str, ...]) -> None:
    verb, _, *numbers = run
    first, last, database, file, block = map(int, numbers)
    counts = log.rows.setdefault((database, file), RowCounts())
    if verb == "INSERT":
        counts.insert_run(block, first, last)
        return
    for number in range(first, last + 1):
        counts.delete((block, number))


def _committed(log: Log, records: Sequence[tuple[str, ...]]) -> set[str]:
    """Transactions whose commit is in the log."""
    writers = {record[1] for record in records if record[0] in _WRITERS}
    committed: set[str] = set()
    for _, transaction, action, _, rest in (record for record in records if record[0] == "Transaction"):
        if action in _COMMITS:
            prepared = _PREPARED.match(rest) if action == "COMMIT_PREPARED" else None
            others = _SUBTRANSACTIONS.search(rest)
            family = {prepared[1] if prepared else transaction, *(others[1].split() if others else ())}
            committed |= family
            log.is_silent = log.is_silent or not family & writers
    return committed


def _note(log: Log, line: tuple[str, ...], committed: set[str]) -> None:
    kind, transaction, action, init, rest = line
    if kind == "Sequence":
        log.sequences.update(_place(block) for block in _BLOCK.findall(rest))
    elif kind == "Storage":  # a file is made before its transaction has a number
        if action == "CREATE" and (found := _CREATED.match(rest)):
            log.created.add((int(found[1] or 0), int(found[2])))
    elif kind in ("Heap", "Heap2") and transaction in committed:
        _count(log, action, bool(init), rest)


def _place(block: tuple[str, str, str]) -> Place:
    return int(block[0]), int(block[1])


def _count(log: Log, action: str, init: bool, rest: str) -> None:
    """Count one record of rows. `init`: it is the first of its block."""
    if action not in ("INSERT", "MULTI_INSERT", "DELETE", *_UPDATES):
        return
    blocks = _BLOCK.findall(rest)
    if not blocks:
        return
    counts = log.rows.setdefault(_place(blocks[0]), RowCounts())
    block, offsets = int(blocks[0][2]), [int(each) for each in _OFFSET.findall(rest)]
    if action == "INSERT":
        counts.insert([(block, offsets[0])])
    elif action in _UPDATES:
        counts.update((int(blocks[-1][2]), offsets[0]), (block, offsets[1]))
    elif action == "DELETE":
        counts.delete((block, offsets[0]))
    else:
        _count_many(counts, block, init, rest)


def _count_many(counts: RowCounts, block: int, init: bool, rest: str) -> None:
    number = _TUPLES.match(rest)
    many = int(number[1]) if number else 0
    named = _OFFSETS.search(rest)
    if init:
        counts.insert((block, each) for each in range(1, many + 1))
    elif named and named[1]:
        counts.insert((block, int(each)) for each in named[1].split(","))
    else:
        counts.added += many
        counts.unplaced += many
