"""Reads files of events, of one session or of several runners, onto one clock."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.session_report.events import SUFFIX, VERSION, BegunTest, Event, Header, Test

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["Records", "find", "read"]

MOMENTS = ("at", "began", "called", "returned", "ended")
"""Fields of events that are moments."""
SAME_CLOCK = 0.1
"""Seconds between what two processes of one host take the time to be, up to which they have the same clock: a coarse
clock is up to 10 ms behind, and is read once by each."""


class Records(Struct):
    """What one process wrote. Moments are seconds since the epoch."""

    header: Header
    events: list[Event]
    unread: int = 0
    """Lines that are no events: of a killed process, the last one may be cut."""


def find(places: Iterable[Path]) -> list[Path]:
    """All files of events in and below folders, and those that are named themselves.

    Raises:
        SettingsError: there is no such folder or file.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.exists():
            raise SettingsError(f"there is no folder {place}", remedy="name one with records, in it or below it")
        paths = sorted(place.rglob(f"*{SUFFIX}")) if place.is_dir() else [place]
        found.update(dict.fromkeys(paths))
    return list(found)


def read(paths: Sequence[Path]) -> list[Records]:
    """The records of each file, the earliest session first. A file without a header, as a process leaves that is
    killed when it begins, is left out.

    Raises:
        SettingsError: a file is of a newer version of this package.
        OSError: a file can't be read.
    """
    found = [records for path in paths if (records := _read(path)) is not None]
    offsets = _offsets([records.header for records in found])
    for records, offset in zip(found, offsets, strict=True):
        records.events = [_moved(event, offset) for event in records.events]
        records.events += _killed(records.events)
    return sorted(found, key=lambda records: (records.header.at, records.header.run, records.header.worker))


def _read(path: Path) -> Records | None:
    decode = msgspec.json.Decoder(Event).decode
    events: list[Event] = []
    unread = 0
    lines = path.read_bytes().splitlines()
    for line in lines:
        try:
            events.append(decode(line))
        except msgspec.MsgspecError:
            unread += 1
    header = events[0] if events else None
    if _version(lines[0] if lines else b"") > VERSION:
        raise SettingsError(
            f"{path} was recorded by a newer version of pytest-stagegbo",
            remedy="pip install --upgrade pytest-stagegbo, and join the records again",
        )
    return Records(header, events[1:], unread) if isinstance(header, Header) else None


def _version(line: bytes) -> int:
    """The format's version that a header names; 0: this is no header."""
    try:
        found = msgspec.json.decode(line)
    except msgspec.MsgspecError:
        return 0
    version = found.get("version") if isinstance(found, dict) and found.get("event") == "header" else 0
    return version if isinstance(version, int) else 0


def _offsets(headers: Sequence[Header]) -> list[float]:
    """What to add to the moments of each file. Processes of one host share a steady clock, so they get one offset."""
    groups: dict[str, list[float]] = defaultdict(list)
    offsets = []
    for header in sorted(headers, key=lambda each: each.at - each.clock):
        offset = header.at - header.clock
        same = [each for each in groups[header.host] if abs(each - offset) <= SAME_CLOCK]
        if not same:
            groups[header.host].append(offset)
    for header in headers:
        offset = header.at - header.clock
        offsets.append(min(groups[header.host], key=lambda each: abs(each - offset)))
    return offsets


def _moved(event: Event, offset: float) -> Event:
    moments = {name: getattr(event, name) + offset for name in MOMENTS if getattr(event, name, 0.0)}
    return replace(event, **moments)


def _killed(events: Sequence[Event]) -> list[Event]:
    """The test that a process had begun when it ended without a word."""
    begun: BegunTest | None = None
    last = 0.0
    for event in events:
        if isinstance(event, BegunTest):
            begun = event
        elif isinstance(event, Test):
            begun = None
        last = max([last, *(getattr(event, name, 0.0) for name in MOMENTS)])
    if begun is None:
        return []
    return [Test(begun.test, "killed", begun.at, max(last, begun.at))]
