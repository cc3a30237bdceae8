"""Which log lines a failed test's report shows, out of what containers print."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import clone, refused
from msgspec.structs import replace

from pytest_stagegbo import clocks
from pytest_stagegbo.guest import logs
from pytest_stagegbo.guest.logs import Wanted, fetch_script, parse, remember_script, show
from pytest_stagegbo.guest.stamps import UTC, Zones, parse_zones, stamp, zones_script
from pytest_stagegbo.incus import CommandResult
from pytest_stagegbo.services.masking import Masker, mask
from pytest_stagegbo.session import failure
from pytest_stagegbo.session.failure import LINES, LONGEST_LINE, SOME_LINES, sections
from pytest_stagegbo.session.logsizes import remember
from pytest_stagegbo.session.parallel import run_parallel
from pytest_stagegbo.settings import ContainerSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=timezone.utc).timestamp()
SINCE = datetime(2026, 11, 23, 12, 48, 17, 500000, tzinfo=timezone.utc).timestamp()
TOKEN = "t0ken"


def read(*parts: str, secrets: Sequence[str] = (), **wanted: Any) -> str:
    """As the report of a failed test shows it."""
    printed = "".join(f"{TOKEN} {part}\n" for part in parts)
    return shown(printed, replace(Wanted(LINES + 1, SINCE, untimed=SOME_LINES), **wanted), Masker(secrets).mask)


def shown(printed: str, wanted: Wanted, hide: Callable[[str], str] = mask) -> str:
    return show(parse(printed, TOKEN, wanted, hide), LINES, LONGEST_LINE)


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a line without a year is of."""
    monkeypatch.setattr(clocks, "now", lambda: NOW)


def file(content: str, *, inode: int = 7, size: int | None = None, path: str = "/opt/gbo/logs/x.log") -> str:
    return f"file {inode} {len(content) if size is None else size} {path}\n{content}"


# -- times in lines


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("2026-11-23T12:48:17Z x", id="iso"),
        pytest.param("2026-11-23T12:48:17.000+00:00 x", id="iso-offset"),
        pytest.param("2026-11-23T13:48:17+0100 host x", id="journal"),
        pytest.param("[2026-11-23T12:48:17Z INFO botserver] x", id="rust"),
        pytest.param("INFO 2026-11-23 12:48:17,000 - x", id="level-first"),
        pytest.param("2026-11-23 12:48:17.000 UTC [12] LOG:  x", id="postgresql"),
        pytest.param("2026-11-23 09:48:17.000 -03 [12] LOG:  x", id="postgresql-offset"),
        pytest.param("2026/11/23 12:48:17 NOTICE: x", id="go"),
        pytest.param("109:M 23 Nov 2026 12:48:17.000 * Ready", id="valkey"),
        pytest.param("Nov 23 12:48:17 tables postgres: x", id="syslog"),
        pytest.param('{"level":"INFO","time":"2026-11-23T12:48:17.000Z","message":"x"}', id="json"),
        pytest.param('10.0.3.1 - - [23/Nov/2026:12:48:17 +0000] "GET /" 200', id="access-log"),
    ],
)
def test_times_are_read(line: str) -> None:
    found = stamp(line, NOW, UTC)
    assert found is not None
    assert found[0] == datetime(2026, 11, 23, 12, 48, 17, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    "line",
    ["", "main: server is listening", "2026-13-45 12:48:17 x", "a row of 2026-11-23 12:48:17", "Feb 31 12:00:00 x"],
)
def test_lines_without_a_time_have_none(line: str) -> None:
    assert stamp(line, NOW, UTC) is None


def test_a_time_without_a_zone_is_in_the_container_s() -> None:
    zones = parse_zones("-0300 ")
    assert stamp("2026-11-23 09:48:17 x", NOW, zones) == stamp("2026-11-23 12:48:17Z x", NOW, zones)


@pytest.mark.parametrize(
    ("server", "line", "utc"),
    [
        pytest.param("America/New_York", "2026-11-23 07:48:17.000 EST", "2026-11-23T12:48:17", id="New York"),
        pytest.param("America/New_York", "2026-07-23 07:48:17.000 EDT", "2026-07-23T11:48:17", id="in summer"),
        pytest.param("America/New_York", "2026-11-01 01:30:00.000 EDT", "2026-11-01T05:30:00", id="the hour once"),
        pytest.param("America/New_York", "2026-11-01 01:30:00.000 EST", "2026-11-01T06:30:00", id="and once more"),
        pytest.param("Europe/Berlin", "2026-11-23 13:48:17.000 CET", "2026-11-23T12:48:17", id="Berlin"),
        pytest.param("Europe/Berlin", "2026-10-25 02:30:00.000 CEST", "2026-10-25T00:30:00", id="Berlin, autumn"),
        pytest.param("Asia/Kolkata", "2026-11-23 18:18:17.000 IST", "2026-11-23T12:48:17", id="half an hour"),
        pytest.param("Asia/Kathmandu", "2026-11-23 18:33:17.000 +0545", "2026-11-23T12:48:17", id="no letters"),
        pytest.param("Etc/UTC", "2026-11-23 12:48:17.000 UTC", "2026-11-23T12:48:17", id="UTC"),
        pytest.param("America/New_York", "2026-11-23 09:48:17.000", "2026-11-23T12:48:17", id="the container's"),
        pytest.param("America/New_York", "2026-11-23 09:48:17.000 ERROR", "2026-11-23T12:48:17", id="a level"),
        pytest.param("", "2026-11-23 09:48:17.000 XYZ", "2026-11-23T12:48:17", id="a zone that nobody knows"),
    ],
)
def test_the_server_s_own_zone_is_used(server: str, line: str, utc: str) -> None:
    zones = parse_zones(f"-0300 America/Sao_Paulo|{server}")
    found = stamp(f"{line} [12] LOG:  x", NOW, zones)
    assert found is not None
    assert found[0] == datetime.fromisoformat(f"{utc}+00:00").timestamp()


@pytest.mark.parametrize("text", ["", "nowhere", "+0000 No/Where|No/Where", "+00|../../etc/passwd", "|"])
def test_zones_that_cannot_be_told_are_utc(text: str) -> None:
    assert parse_zones(text) == Zones()


def test_the_zone_of_a_server_that_is_down_is_in_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "postgresql.conf").write_text("#log_timezone = 'GMT'\nlog_timezone = 'Etc/UTC'\n")
    (tmp_path / "postgresql.auto.conf").write_text("log_timezone = 'Europe/Berlin'\n")
    container = replace(Settings().containers["tables"], data=str(tmp_path))
    script = f"timeout() {{ return 1; }}\n{zones_script(container)}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("|Europe/Berlin")


def test_a_time_without_a_year_is_of_the_past_year() -> None:
    found = stamp("Dec 31 23:59:59 x", NOW, UTC)
    assert found is not None
    assert found[0] == datetime(2025, 12, 31, 23, 59, 59, tzinfo=timezone.utc).timestamp()


# -- which lines


def test_lines_before_the_test_are_left_out_and_lines_without_a_time_go_with_the_one_before() -> None:
    log = "2026-11-23 12:48:17.400 old\n  of old\n2026-11-23 12:48:17.600 new\n  of new\n"
    assert read("zone +0000", file(log)) == "file /opt/gbo/logs/x.log:\n2026-11-23 12:48:17.600 new\n  of new"


def test_a_time_that_is_exact_to_a_second_may_be_any_in_it() -> None:
    log = "2026-11-23 12:48:16 old\n2026-11-23 12:48:17 perhaps\n"
    assert read(file(log)).splitlines()[1:] == ["2026-11-23 12:48:17 perhaps"]


def test_the_container_s_zone_is_used() -> None:
    log = "2026-11-23 09:48:17.400 old\n2026-11-23 09:48:17.600 new\n"
    assert read("zone -0300", file(log)).splitlines()[1:] == ["2026-11-23 09:48:17.600 new"]


def test_lines_before_the_first_time_of_a_new_file_belong_to_it() -> None:
    assert "banner" in read(file("banner\n2026-11-23 12:48:18 new\n"))
    assert "banner" not in read(file("banner\n2026-11-23 12:48:10 old\n2026-11-23 12:48:18 new\n"))


def test_files_without_times_are_told_by_their_noted_size() -> None:
    sizes = f"sizes\n7 9 {SINCE - 60}\n0 0 {SINCE - 60}"
    shown = read("zone +0000", sizes, file("old plain\nnew plain\n"))
    assert shown == ("file /opt/gbo/logs/x.log, whose lines carry no times: what was added since 12:47:17:\nnew plain")


def test_a_file_that_was_not_there_or_was_longer_is_new() -> None:
    sizes = f"sizes\n7 900 {SINCE - 60}\n0 0 {SINCE - 60}"
    assert "whole" in read(sizes, file("whole\n", inode=8))
    assert "whole" in read(sizes, file("whole\n", inode=7))


def test_noted_sizes_fit_files_that_are_no_utf8() -> None:
    """Each byte of those comes back as one character, of three bytes."""
    sizes = f"sizes\n7 8 {SINCE - 60}\n0 0 {SINCE - 60}"
    old = b"caf\xe9 \xfc\xfc\n".decode("utf-8", "replace")
    assert read("zone +0000", sizes, file(f"{old}new plain\n", size=19)).splitlines()[1:] == ["new plain"]


def test_colours_hide_no_time() -> None:
    log = "\x1b[2m2026-11-23T12:48:17.400Z\x1b[0m old\n\x1b[2m2026-11-23T12:48:17.600Z\x1b[0m new\n"
    assert [line[-3:] for line in read(file(log)).splitlines()[1:]] == ["new"]


def test_a_pattern_chooses_lines_and_the_last_of_these_are_shown() -> None:
    log = "".join(f"2026-11-23 12:48:18 {word} {number}\n" for number in range(9) for word in ("a", "b"))
    found = read(file(log), pattern=re.compile("b [0-5]$"), lines=2)
    assert [line[-3:] for line in found.splitlines()[1:]] == ["b 4", "b 5"]


def test_files_stand_below_the_journal_in_the_order_of_their_names() -> None:
    found = read(file("x", path="/b"), file("x", path="/a"), "journal\nx", untimed=None)
    assert found.index("journal") < found.index("/a") < found.index("/b")


def test_without_noted_sizes_the_last_lines_are_shown_and_called_so() -> None:
    shown = read("sizes", file("".join(f"line {number}\n" for number in range(100))))
    assert "some may be older" in shown
    assert shown.splitlines()[1:] == [f"line {number}" for number in range(80, 100)]


def test_of_a_tail_the_broken_first_line_is_dropped_and_noted_sizes_still_fit() -> None:
    content = "roken\nold\nnew\n"
    size = Wanted().size + 1000
    noted = size - Wanted().size + len("roken\nold\n")
    shown = read(f"sizes\n7 {noted} {SINCE - 1}", file(content, size=size))
    assert shown.splitlines()[1:] == ["new"]
    assert "roken" not in read(file(content, size=size))


# -- how they are shown


def test_secrets_are_masked_by_value_and_by_shape() -> None:
    log = "2026-11-23 12:48:18 key hunter2secret\n2026-11-23 12:48:18 password=abc\n"
    shown = read("journal\n2026-11-23T12:48:18+0000 hunter2secret", file(log), secrets=["hunter2secret"])
    assert "hunter2" not in shown
    assert "abc" not in shown
    assert shown.count("***") == 3


def test_lines_of_probes_that_came_too_early_are_dropped_where_postgresql_is() -> None:
    log = "2026-11-23 12:48:18 UTC [1] FATAL:  the database system is starting up\n2026-11-23 12:48:18 UTC x\n"
    assert "starting up" in read(file(log))
    assert "starting up" not in read(file(log), quiet=True)


def test_two_hundred_lines_are_shared_out() -> None:
    journal = "\n".join(f"2026-11-23T12:49:00+0000 j{number}" for number in range(300))
    long = "".join(f"2026-11-23 12:49:00 a{number}\n" for number in range(300))
    short = "".join(f"2026-11-23 12:49:00 b{number}\n" for number in range(20))
    shown = read(f"journal\n{journal}", file(long), file(short, path="/b"))
    lines = [line for line in shown.splitlines() if line and not line.endswith(":")]
    assert len(lines) == LINES
    assert "journal, the last 90 lines:" in shown
    assert "a299" in shown
    assert "b0" in shown


def test_a_very_long_line_is_cut() -> None:
    shown = read(file(f"2026-11-23 12:49:00 {'x' * 5000}\n"))
    assert len(shown) < 1200
    assert shown.endswith("... (5020 characters)")


@pytest.mark.parametrize(
    "printed", ["", "garbage", f"{TOKEN} file\n", f"{TOKEN} zone nowhere\n{TOKEN} sizes\na b c d\na b c\n"]
)
def test_whatever_comes_back_is_borne(printed: str) -> None:
    assert shown(printed, Wanted(since=SINCE)) == ""


# -- the scripts, in a real shell


def run(script: str) -> str:
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContainerSettings:
    """One whose log folder and notes are files here. It has no units: there may be no journal here."""
    monkeypatch.setattr(logs, "SIZES", str(tmp_path / "sizes"))
    folder = tmp_path / "the logs"
    folder.mkdir()
    return replace(Settings().containers["cache"], logs=(str(folder),), units=())


def test_only_what_was_written_since_comes_back(container: ContainerSettings, tmp_path: Path) -> None:
    plain, untouched = tmp_path / "the logs/plain.log", tmp_path / "the logs/untouched.log"
    plain.write_text("old plain\n")
    untouched.write_text("2026-11-23 12:00:00 untouched\n")
    os.utime(untouched, (1, 1))
    run(remember_script(container))
    since = time.time()
    with plain.open("a") as stream:
        stream.write("new plain, no line end")
    for _ in range(2):  # a failed test has sizes noted again, which takes nothing from a test that began before
        printed = run(fetch_script(container, TOKEN, Wanted(since=since)))
        assert shown(printed, Wanted(since=since)).splitlines()[1:] == ["new plain, no line end"]
        run(remember_script(container))
    later = time.time()
    os.utime(plain)
    assert shown(run(fetch_script(container, TOKEN, Wanted(since=later))), Wanted(since=later)) == ""


def test_notes_do_not_grow_for_ever(
    container: ContainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SIZES_KEPT", 5)
    (tmp_path / "the logs/a.log").write_text("a")
    for _ in range(10):
        run(remember_script(container))
    assert len((tmp_path / "sizes").read_text().splitlines()) <= 5 + 2


def test_a_container_without_logs_and_units_has_nothing_to_run(container: ContainerSettings) -> None:
    bare = replace(container, logs=())
    run(remember_script(bare))
    assert shown(run(fetch_script(bare, TOKEN, Wanted(since=0.0))), Wanted(since=0.0)) == ""


# -- the whole


def silent(name: str, token: str) -> str:
    assert name
    assert token
    return ""


@dataclass
class World:
    """An engine whose containers print what the test says."""

    prints: Callable[[str, str], str] = silent
    settings: Settings = field(default_factory=Settings)
    clones: dict[str, Instance] = field(default_factory=dict)
    commands: list[tuple[str, ...]] = field(default_factory=list)
    fails: Exception | None = None

    @property
    def reader(self) -> World:
        return self

    def instances(self, project: str) -> Mapping[str, Instance]:
        assert project == self.settings.project
        if self.fails:
            raise self.fails
        return self.clones or {name: clone(name, self.settings) for name in self.settings.containers}

    def clone_writer(self) -> World:
        return self

    def execute(self, name: str, command: Sequence[str], *, timeout: float, record: bool = True) -> CommandResult:
        assert timeout <= 5
        assert record is ("echo '" in command[-1]), "output that nobody reads"
        self.commands.append((name, *command))
        script = command[-1]
        token = script.split("echo '", 1)[1].split(" ", 1)[0] if "echo '" in script else ""
        return CommandResult(0, self.prints(name, token), "")

    @property
    def engine(self) -> StageEngine:
        return cast("StageEngine", self)


def test_each_container_is_asked_once() -> None:
    world = World(lambda name, token: f"{token} journal\n2026-11-23T12:49:00+0000 {name} hunter2secret\n")
    found = sections(world.engine, ["cache", "tables"], SINCE, Masker(["hunter2secret"]).mask)
    assert sorted(command[0] for command in world.commands) == ["cache", "tables"]
    assert found == [
        (
            f"stage container {name}: logged since the test began",
            f"journal:\n2026-11-23T12:49:00+0000 {name} ***",
        )
        for name in ("cache", "tables")
    ]


def test_a_container_that_logged_nothing_says_so() -> None:
    ((_, text),) = sections(World().engine, ["llm"], SINCE, mask)
    assert text == "nothing"


def test_failures_to_fetch_are_told_and_never_raised() -> None:
    stopped = World(clones={"cache": clone("cache", Settings(), status="Stopped")})
    texts = [text for _, text in sections(stopped.engine, ["cache", "llm"], SINCE, mask)]
    assert texts[0] == "cache is stopped: a container that is not running tells nothing"
    assert texts[1] == "(the logs could not be fetched: STAGE-GBO has no container llm)"
    ((_, text),) = sections(World(fails=refused(500)).engine, ["llm"], SINCE, mask)
    assert text == "(the logs could not be fetched: Incus refused)"
    ((_, text),) = sections(World(fails=RuntimeError("odd")).engine, ["llm"], SINCE, mask)
    assert text == "(the logs could not be fetched: odd)"


def test_a_container_that_hangs_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "SECONDS", 0.6)
    hang = threading.Event()

    def prints(name: str, token: str) -> str:
        if name == "cache":
            hang.wait(20)
        return f"{token} journal\n2026-11-23T12:49:00+0000 here\n"

    try:
        found = dict(sections(World(prints).engine, ["cache", "llm"], SINCE, mask))
    finally:
        hang.set()
    assert [("no answer within" in text, "here" in text) for text in found.values()] == [(True, False), (False, True)]


def test_remember_asks_running_containers_and_never_raises() -> None:
    world = World()
    world.clones = {
        "cache": clone("cache", world.settings),
        "llm": clone("llm", world.settings, status="Stopped"),
    }
    remember(world.engine, ["cache", "llm", "tables"])
    assert [command[0] for command in world.commands] == ["cache"]
    remember(World(fails=refused(500)).engine, ["cache"])


def test_remember_asks_no_further_container_once_the_session_is_over() -> None:
    world = World()
    remember(world.engine, ["cache", "llm", "tables"], lambda: len(world.commands) == 2)
    assert [command[0] for command in world.commands] == ["cache", "llm"]


def test_together_gives_results_and_exceptions_by_name() -> None:
    def fail() -> int:
        raise ValueError("no")

    found: dict[str, Any] = run_parallel({"one": lambda: 1, "two": fail}, 10)
    assert found["one"] == 1
    assert isinstance(found["two"], ValueError)
    assert run_parallel({}, 10) == {}
