"""The records of what a test changed, and how they read as text. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from pytest_stagegbo.text import count_text, printable_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Changes",
    "ContainerChanges",
    "FileChange",
    "KeyChange",
    "ObjectChange",
    "RowChange",
    "SchemaChange",
    "SequenceChange",
]

SHOWN = 20
"""Lines about one container in a report; the records have all of it."""


class RowChange(Struct, frozen=True):
    """Rows of one table that are not as they were. A row that was added and removed again is none of them."""

    database: str
    schema: str
    table: str
    added: int = 0
    changed: int = 0
    """Rows that were there, and were updated since."""
    removed: int = 0
    exact: bool = True
    """False: the numbers are the server's statistics, or a rewritten table's. See `ContainerChanges.notes`."""

    @property
    def name(self) -> str:
        return f"{self.database}.{self.schema}.{self.table}"

    def __str__(self) -> str:
        counts = ((self.added, "added"), (self.changed, "changed"), (self.removed, "removed"))
        about = "" if self.exact else "about "
        parts = [f"{about}{count_text(number, 'row')} {word}" for number, word in counts if number]
        return f"{self.name}: {', '.join(parts)}"


class SequenceChange(Struct, frozen=True):
    """A sequence that was advanced or set."""

    database: str
    schema: str
    sequence: str
    value: int | None
    """The value that it gave last; None: it was set to begin again."""

    @property
    def name(self) -> str:
        return f"{self.database}.{self.schema}.{self.sequence}"

    def __str__(self) -> str:
        return f"{self.name}: sequence at {self.value if self.value is not None else 'its beginning'}"


class SchemaChange(Struct, frozen=True):
    """Something that was created, altered, rewritten or dropped in a database."""

    database: str
    kind: str
    """`table`, `index`, `sequence`, `view`, `function`, `role` and so on."""
    name: str
    """With its schema, where it has one."""
    what: Literal["created", "altered", "truncated or rewritten", "dropped"]

    def __str__(self) -> str:
        place = f"{self.database}." if self.database else ""
        return f"{place}{self.name}: {self.kind} {self.what}"


class KeyChange(Struct, frozen=True):
    """Keys of one pattern and type that are there, and were not."""

    database: int
    pattern: str
    """The keys' name, with `*` for numbers, identifiers and addresses of mail in it."""
    type: str
    """As `TYPE` says: `string`, `hash`, `list`, ..."""
    added: int
    exact: bool = True

    @property
    def name(self) -> str:
        return self.pattern if not self.database else f"db{self.database} {self.pattern}"

    def __str__(self) -> str:
        return f"{self.name}: {_least(self.exact)}{count_text(self.added, 'key')} added ({self.type})"


class ObjectChange(Struct, frozen=True):
    """A bucket and its objects that are there, and were not: a clean server has no bucket."""

    bucket: str
    added: int = 0
    names: tuple[str, ...] = ()
    """Some of these objects."""
    exact: bool = True

    @property
    def name(self) -> str:
        return self.bucket

    def __str__(self) -> str:
        more = ", ..." if len(self.names) < self.added else ""
        named = f" ({', '.join(self.names)}{more})" if self.names else ""
        return f"bucket {self.bucket}: created, {_least(self.exact)}{count_text(self.added, 'object')} added{named}"


class FileChange(Struct, frozen=True):
    """A file in one of the folders that resets empty."""

    path: str
    what: Literal["added", "changed", "removed"]

    @property
    def name(self) -> str:
        return self.path

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


Change = RowChange | SequenceChange | SchemaChange | KeyChange | ObjectChange | FileChange


class ContainerChanges(Struct, frozen=True):
    """What changed in one container."""

    container: str
    since: float | None = None
    """When it was clean, in epoch seconds; None: when it was emptied last, whenever that was."""
    unknown: str = ""
    """Why it can't be told what changed; empty: it can."""
    rows: tuple[RowChange, ...] = ()
    sequences: tuple[SequenceChange, ...] = ()
    schema: tuple[SchemaChange, ...] = ()
    keys: tuple[KeyChange, ...] = ()
    objects: tuple[ObjectChange, ...] = ()
    files: tuple[FileChange, ...] = ()
    notes: tuple[str, ...] = ()
    """What else is to be known of the numbers."""
    complete: bool = True
    """False: there is more than is listed."""

    def __iter__(self) -> Iterator[Change]:
        yield from self.rows
        yield from self.sequences
        yield from self.schema
        yield from self.keys
        yield from self.objects
        yield from self.files

    def lines(self, most: int = SHOWN, hide: Callable[[str], str] = str) -> list[str]:
        """What changed as text, if it can be told: a line that says since when, and a line for each change."""
        changes = [hide(printable_name(str(each))) for each in self]
        since = f"since {_time(self.since)}" if self.since is not None else "since it was emptied last"
        head = f"{self.container}, {since}:"
        notes = [f"  ({hide(printable_name(each))})" for each in self.notes]
        if not changes:
            return [f"{head} nothing{'' if self.complete else ' that could be looked at'}", *notes]
        left = [f"  and {len(changes) - most} more"] if len(changes) > most else []
        left += ["  and what could not be looked at"] if not self.complete else []
        return [head, *(f"  {each}" for each in changes[:most]), *left, *notes]


class Changes(Struct, frozen=True):
    """What changed in several containers since each of them was clean.

    It is true in an `if` or `assert` when something changed, and when it can't be told of one container whether
    something did. So `assert not stage.changes("cache")` passes only if it is certain that nothing changed.
    """

    containers: tuple[ContainerChanges, ...]

    def __bool__(self) -> bool:
        return any(each.unknown or not each.complete for each in self.containers) or any(self)

    def __iter__(self) -> Iterator[Change]:
        for each in self.containers:
            yield from each

    def __getitem__(self, container: str) -> ContainerChanges:
        """Of one container by its name. Raises `KeyError`: it was not looked at."""
        for each in self.containers:
            if each.container == container:
                return each
        raise KeyError(container)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    @property
    def rows(self) -> dict[str, RowChange]:
        """By `database.schema.table`."""
        return {row.name: row for each in self.containers for row in each.rows}

    @property
    def sequences(self) -> dict[str, SequenceChange]:
        """By `database.schema.sequence`."""
        return {sequence.name: sequence for each in self.containers for sequence in each.sequences}

    @property
    def schema(self) -> tuple[SchemaChange, ...]:
        return tuple(change for each in self.containers for change in each.schema)

    @property
    def keys(self) -> tuple[KeyChange, ...]:
        return tuple(key for each in self.containers for key in each.keys)

    @property
    def objects(self) -> dict[str, ObjectChange]:
        """By bucket."""
        return {change.bucket: change for each in self.containers for change in each.objects}

    @property
    def files(self) -> dict[str, FileChange]:
        """By path."""
        return {file.path: file for each in self.containers for file in each.files}

    @property
    def unknown(self) -> dict[str, str]:
        """By container that it can't be told of: why."""
        return {each.container: each.unknown for each in self.containers if each.unknown}

    def lines(self, most: int = SHOWN, hide: Callable[[str], str] = str) -> list[str]:
        """As text, for people.

        Args:
            most: Changes of one container that are listed.
            hide: Takes secrets out of text.
        """
        alike: dict[str, list[str]] = {}
        for name, reason in self.unknown.items():
            alike.setdefault(reason, []).append(name)
        told = [line for each in self.containers if not each.unknown for line in each.lines(most, hide)]
        return [
            *told,
            *(f"{', '.join(names)}: can't be told: {hide(printable_name(why))}" for why, names in alike.items()),
        ]

    def to_json(self) -> str:
        """All of it, for `from_json`. Names of tables, files and objects are as they are."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Changes:
        """Raises `msgspec.MsgspecError` for anything that `to_json` does not return."""
        return msgspec.json.decode(text, type=cls)


def _time(since: float) -> str:
    """`2026-11-27 20:31:02.123`, in the time of this machine."""
    return datetime.fromtimestamp(since).isoformat(sep=" ", timespec="milliseconds")


def _least(exact: bool) -> str:
    return "" if exact else "at least "
