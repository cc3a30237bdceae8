"""Which lines of a container's logs were written since a moment."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.guest.logs import Wanted, fetch_script, moment, parse, show
from pytest_stagegbo.guest.stamps import UTC, is_new, stamp
from pytest_stagegbo.settings.model import ContainerSettings, default_containers

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("2026-01-31T12:00:00.001 compiled", True, id="BotServer"),
        pytest.param("2026-01-31T11:59:59.999 compiled", False, id="BotServer-before"),
        pytest.param("2026-01-31T12:00:00.001Z [INFO]  core: unsealed", True, id="Vault"),
        pytest.param("2026-01-31 11:59:59.100 UTC [77] LOG:  ready", False, id="PostgreSQL"),
        pytest.param("2026/01/31 12:00:01 NOTICE: Serving s3", True, id="rclone"),
        pytest.param("123:M 31 Jan 2026 12:00:00.500 * Ready", True, id="Valkey"),
        pytest.param("123:M 31 Jan 2026 11:00:00.500 * Ready", False, id="Valkey-before"),
        pytest.param("[2026-01-31 12:00:00,500] started", True, id="in-brackets"),
        pytest.param("2026-01-31T13:00:00+02:00 started", False, id="its-own-zone"),
        pytest.param("2026-01-31T07:00:01-0500 started", True, id="another-zone"),
        pytest.param("2026/01/31 12:00:00 the same second", True, id="cut-to-seconds"),
        pytest.param("2026-02-31T12:00:00 no such day", None, id="no-such-day"),
        pytest.param("  at line 5", None, id="no-time"),
    ],
)
def test_a_line_is_judged_by_its_time(line: str, expected: bool | None) -> None:
    found = stamp(line, NOON, UTC)
    assert (None if found is None else is_new(found, NOON + 0.0005)) is expected


def read(*parts: str, since: float | None = NOON) -> str:
    """As `Service.logs` gives it."""
    return show(parse("".join(f"t0ken {part}\n" for part in parts), "t0ken", Wanted(since=since)))


def test_a_line_without_a_time_goes_with_the_one_before_it() -> None:
    log = "2026-01-31 11:00:00 old\n  old, too\n2026-01-31 12:30:00 new\n  new, too"
    assert read("zone +0000", f"file 7 70 /a.log\n{log}") == "file /a.log:\n2026-01-31 12:30:00 new\n  new, too"


def test_a_file_that_knows_no_times_is_shown_whole_and_called_so() -> None:
    assert read("file 7 14 /llm.log\nloading\nready") == (
        "file /llm.log, whose lines carry no times, so some may be older:\nloading\nready"
    )


def test_a_file_without_new_lines_is_not_named() -> None:
    assert read("file 7 23 /a.log\n2026-01-31 11:00:00 old", "file 8 23 /b.log\n2026-01-31 12:30:00 new") == (
        "file /b.log:\n2026-01-31 12:30:00 new"
    )


def test_the_journal_is_taken_as_it_is() -> None:
    assert read("journal\n2026-01-31T11:00:00 system x: y\n") == "journal:\n2026-01-31T11:00:00 system x: y"


def test_without_a_moment_everything_is_shown() -> None:
    assert read("file 7 40 /a.log\n2020-01-01 00:00:00 old\nodd \x1e line\x0b", since=None) == (
        "file /a.log:\n2020-01-01 00:00:00 old\nodd \x1e line\x0b"
    )


def test_what_was_cut_begins_with_a_whole_line() -> None:
    wanted = Wanted(size=20)
    printed = "t0ken journal\nroken line\nwhole line\nt0ken file 7 1000 /a\noken\nwhole"
    assert show(parse(printed, "t0ken", wanted)) == "journal:\nwhole line\n\nfile /a:\nwhole"


@pytest.mark.parametrize(
    "since",
    [
        pytest.param(NOON, id="seconds"),
        pytest.param(int(NOON), id="whole-seconds"),
        pytest.param(datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))), id="with-a-zone"),
        pytest.param(datetime.fromtimestamp(NOON), id="local-time"),
    ],
)
def test_a_moment_is_a_number_or_a_datetime(since: datetime | float) -> None:
    assert moment(since) == NOON


def test_the_script_prints_files_written_to_since_then(tmp_path: Path) -> None:
    """In this machine's own shell: the unit doesn't exist, which must not matter."""
    folder = tmp_path / "log's"
    folder.mkdir()
    (folder / "old.log").write_text("2020-01-01 00:00:00 old\n")
    (folder / "new.log").write_text("".join(f"line {number}\n" for number in range(10)) + "no end of line")
    os.utime(folder / "old.log", (1, 1))
    container = ContainerSettings(
        "system", default_containers()["system"].address, units=("not-there.service",), logs=(str(folder),)
    )
    wanted = Wanted(3, 1000.5)
    script = fetch_script(container, "t0ken", wanted)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    (log,) = [log for log in parse(done.stdout, "t0ken", wanted) if log.title != "journal"]
    assert (log.title, log.lines) == (f"file {folder}/new.log", ["line 8", "line 9", "no end of line"])
