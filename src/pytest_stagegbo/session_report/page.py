"""The page: one HTML file with its data, its script and the plotting library, which needs no network."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from contextlib import suppress
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.session_report.events import SUFFIX
from pytest_stagegbo.session_report.page_data import page_data, shorten
from pytest_stagegbo.session_report.reading import find, read
from pytest_stagegbo.session_report.timeline import Timeline, joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["LONGEST_PAGE", "check_target", "page", "write_page", "write_report"]

LONGEST_PAGE = 5_000_000
"""Bytes of a page for 5,000 tests, however many of them fail: texts of failures are cut for it."""
SPARE = 10_000
"""Bytes of these for what is filled into the page beside its data."""
GENERATOR = 'name="generator" content="pytest-stagegbo'
"""By which a page is known for one that may be replaced."""
HEAD = 2048
"""Bytes at the beginning of a file among which that is looked for."""
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(path: Path, places: Iterable[Path]) -> Timeline:
    """Make the page of all records in and below some folders, and return what it shows.

    Raises:
        SettingsError: there are no records, or the page would replace something else.
        OSError: a file can't be read or written.
    """
    places = list(places)
    records = read(find(places))
    if not records:
        shown = ", ".join(map(str, places))
        raise SettingsError(
            f"no session has been recorded in {shown}",
            seen=f"no file there has a name that ends in {SUFFIX} and begins with the head of a record",
            remedy="record one: pytest --stage-report=report.html, which writes records to report.records",
        )
    timeline = joined(records)
    write_page(path, page(timeline, clocks.now(), version("pytest-stagegbo")))
    return timeline


def page(timeline: Timeline, made: float, release: str) -> str:
    """The page for a timeline.

    Args:
        made: Seconds since the epoch.
        release: Of this package.
    """
    library, script = _asset("echarts.min.js"), _asset("page.js")
    data = page_data(timeline, made, release)
    failures, data["failures"] = data["failures"], []
    taken = _size(data) + sum(len(each.encode()) for each in (library, script, _asset("page.css"), _asset("page.html")))
    room = budget = max(0, LONGEST_PAGE - taken - SPARE)
    while _size(failures) > room and budget:  # escapes make a text longer than it looks
        shorten(failures, budget)
        budget //= 2
    data["failures"] = failures
    projects = ", ".join(sorted({case.test.project for case in timeline.cases if case.test.project}))
    return _filled(
        _asset("page.html"),
        {
            "title": html.escape(f"Session of {projects}" if projects else "Session of pytest"),
            "version": html.escape(release),
            "policy": html.escape(_policy(library, script)),
            "style": _asset("page.css"),
            "data": _json(data),
            "library": library,
            "script": script,
        },
    )


def check_target(path: Path) -> None:
    """Raise `SettingsError` if a page can't be written there without losing something that is no page."""
    try:
        with path.open("rb") as file:
            known = GENERATOR.encode() in file.read(HEAD)
    except IsADirectoryError:
        raise SettingsError(f"{path} is a folder", remedy="name a file, such as report.html") from None
    except OSError:  # writing it will tell
        return
    if not known:
        raise SettingsError(
            f"{path} is there and is no report of a session, so it is not replaced",
            remedy="name another file, or remove this one",
        )


def write_page(path: Path, text: str) -> None:
    """Replace the page, in one step. Raises as `check_target`, and `OSError`."""
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _policy(*scripts: str) -> str:
    """Only these scripts run, and nothing is fetched: should a text ever get past the escapes, it stays a text."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _json(data: object) -> str:
    """JSON that may stand in HTML: no tag ends or begins in it."""
    text = msgspec.json.encode(data).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _size(data: object) -> int:
    return len(_json(data).encode())


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda found: values[found[1]], template)


def _asset(name: str) -> str:
    return (files("pytest_stagegbo.session_report") / "assets" / name).read_text(encoding="utf-8")
