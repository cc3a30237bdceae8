"""Records of sessions: written, read again onto one clock, joined, and what would have shortened them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from report_sessions import CLOCK, GIB, PROJECT, header, large, ran, record, waited

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.session_report.advice import advise
from pytest_stagegbo.session_report.disk import DiskCurves
from pytest_stagegbo.session_report.events import SUFFIX, BegunTest, Event, Notice, Reset, Room, Test, Usage
from pytest_stagegbo.session_report.page import LONGEST_PAGE, check_target, page, write_report
from pytest_stagegbo.session_report.page_data import MOST_POINTS, page_data
from pytest_stagegbo.session_report.reading import Records, find, read
from pytest_stagegbo.session_report.recorder import Recorder, cut, open_recorder
from pytest_stagegbo.session_report.timeline import Timeline, joined

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def timeline(**workers: list[Event]) -> Timeline:
    """Of one session, whose workers are named."""
    return joined([Records(header(worker=name, at=CLOCK), events) for name, events in workers.items()])


class TestRecords:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        recorder = open_recorder(tmp_path, "run", "gw0", workers=1, package="0", pytest="9")
        for event in (ran("a", 0, 1), Notice(CLOCK, "note", "so")):
            recorder.write(event)
        recorder.close()
        (records,) = read(find([tmp_path]))
        assert [type(event).__name__ for event in records.events] == ["Test", "Notice"]
        assert (records.header.run, records.header.worker, records.unread) == ("run", "gw0", 0)

    def test_a_killed_process_leaves_whole_lines_and_the_test_that_it_had_begun(self, tmp_path: Path) -> None:
        path = record(tmp_path, "run", "gw0", [ran("a", 0, 1), BegunTest(CLOCK + 2, "b"), waited("b", 2, 3, "cache")])
        with path.open("ab") as file:
            file.write(b'{"event":"test","te')
        (records,) = read([path])
        killed = records.events[-1]
        assert isinstance(killed, Test)
        assert (killed.test, killed.outcome, round(killed.ended - killed.began)) == ("b", "killed", 1)
        assert records.unread == 1

    def test_a_newer_format_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / f"a{SUFFIX}").write_text('{"event":"header","version":99,"more":1}\n{"event":"new"}\n')
        with pytest.raises(SettingsError, match="newer version"):
            read(find([tmp_path]))

    @pytest.mark.parametrize("content", ["", "no JSON\n", '{"event":"notice","at":1,"kind":"a","text":"b"}\n', "[]\n"])
    def test_a_file_without_a_header_is_left_out(self, tmp_path: Path, content: str) -> None:
        (tmp_path / f"a{SUFFIX}").write_text(content)
        assert read(find([tmp_path])) == []

    def test_processes_of_one_host_share_a_clock_and_others_have_their_own(self) -> None:
        event = Notice(100.0, "note", "so")
        coarse = Records(header(at=1000.0, clock=90.0), [event])
        later = Records(header(at=1009.992, clock=100.0, worker="gw1"), [event])
        elsewhere = Records(header(at=1000.0, clock=5.0, host="there"), [event])
        paths: Mapping[str, Records] = {"a": coarse, "b": later, "c": elsewhere}
        from pytest_stagegbo.session_report import reading

        offsets = reading._offsets([each.header for each in paths.values()])
        assert offsets[0] == offsets[1]
        assert offsets[2] == 995.0

    def test_a_file_that_cant_be_written_ends_the_recording_and_nothing_else(self, tmp_path: Path) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        recorder = Recorder(writing)
        for _ in range(2):
            recorder.write(Notice(1.0, "note", "so"))
        assert "BrokenPipeError" in recorder.trouble
        with pytest.raises(OSError, match="Not a directory"):
            open_recorder(tmp_path / "file" / "x", "run", "main", workers=1, package="0", pytest="9") if (
                tmp_path / "file"
            ).write_text("") == 0 else None

    def test_a_record_that_is_written_in_part_is_the_last_one(self, tmp_path: Path) -> None:
        """Else the next one would be part of its line."""
        recorder = open_recorder(tmp_path, "run", "main", workers=1, package="0", pytest="9")
        recorder._write = lambda file, line: os.write(file, bytes(line)[:9])
        recorder.write(Notice(1.0, "note", "so"))
        recorder.write(Notice(2.0, "note", "so"))
        assert "in part" in recorder.trouble
        (records,) = read(find([tmp_path]))
        assert (records.events, records.unread) == ([], 1)

    def test_a_forked_child_writes_nothing(self, tmp_path: Path) -> None:
        recorder = open_recorder(tmp_path, "run", "main", workers=1, package="0", pytest="9")
        recorder._getpid = lambda: 1
        recorder.write(Notice(1.0, "note", "so"))
        assert len(next(tmp_path.iterdir()).read_text().splitlines()) == 1

    def test_a_long_text_is_cut_at_a_line_and_without_its_secrets(self) -> None:
        text = "password=hunter22222\n" + "line\n" * 50
        shown = cut(text, mask, 40)
        assert shown.startswith("...\nline\n")
        assert len(shown) <= 44
        assert "hunter" not in cut(text, mask, 1000)

    def test_the_end_of_one_long_line_is_shown(self) -> None:
        assert cut("; ".join(["row"] * 100), mask, 20) == "...\n; row; row; row; row"
        assert "hunter" not in cut("password=hunter22222 " * 20, mask, 200)


class TestTimeline:
    def test_a_wait_is_for_the_tests_that_had_what_it_needed(self) -> None:
        found = timeline(
            gw0=[ran("keeps", 0, 5, resets=("cache",)), ran("also", 5, 6, resets=("cache",))],
            gw1=[ran("reads drive", 0, 9, uses=("drive",))],
            gw2=[waited("waits", 1, 5.5, "cache"), ran("waits", 1, 7)],
        )
        (blocked,) = found.waits
        assert [found.cases[each].test.test for each in blocked.by] == ["keeps", "also"]

    @pytest.mark.parametrize(
        ("holder", "other", "expected"),
        [
            ({}, {}, False),
            ({"resets": ("cache",)}, {}, True),
            ({}, {"resets": ("cache",)}, True),
            ({"quiet": ("system",), "uses": ("tables",)}, {"uses": ("system",)}, True),
            ({"quiet": ("system",)}, {"quiet": ("system",)}, False),
            ({"uses": ("system",)}, {"quiet": ("system",), "uses": ("tables",)}, True),
        ],
        ids=["both share", "it is reset", "it will be reset", "it is frozen", "both are quiet", "it will be frozen"],
    )
    def test_who_keeps_whom_out(self, holder: dict[str, Any], other: dict[str, Any], expected: bool) -> None:
        found = timeline(gw0=[ran("a", 0, 5, **holder)], gw1=[waited("b", 1, 5, "cache"), ran("b", 1, 6, **other)])
        assert bool(found.waits[0].by) is expected

    def test_sessions_of_several_runners_stay_apart(self, tmp_path: Path) -> None:
        record(tmp_path / "one", "run1", "main", [ran("a", 0, 1)])
        record(tmp_path / "two", "run2", "main", [ran("a", 0, 1)])
        found = joined(read(find([tmp_path])))
        assert (len(found.runs), len(found.workers), len(found.cases)) == (2, 2, 2)
        assert {worker.run for worker in found.workers} == {0, 1}

    def test_places_seen_by_several_processes_are_one_curve(self) -> None:
        found = timeline(gw0=[Room(CLOCK + 1, "pool p", 5, 1)], gw1=[Room(CLOCK, "pool p", 6, 1)])
        assert [room.free for room in found.rooms["pool p of here"]] == [6, 5]


class TestAdvice:
    def what(self, **workers: list[Event]) -> list[str]:
        return [each.what for each in advise(timeline(**workers))]

    def test_nothing_to_say_where_nobody_waited(self) -> None:
        assert self.what(gw0=[ran("a", 0, 1)], gw1=[ran("b", 0, 1)]) == []

    def test_more_slots(self) -> None:
        found = self.what(
            gw0=[ran("a", 0, 5, resets=("cache",), asked=("cache",))], gw1=[waited("b", 1, 5, "cache"), ran("b", 1, 6)]
        )
        assert found == ["--stage-slots=2"]

    def test_a_narrower_marker(self) -> None:
        found = self.what(
            gw0=[ran("a", 0, 5, uses=("cache", "drive"), resets=("cache", "drive"), asked=("cache",))],
            gw1=[waited("b", 1, 5, "drive"), ran("b", 1, 6, uses=("drive",))],
        )
        assert "a narrower marker: stage_reset without drive" in found

    def test_a_marker_is_not_to_blame_where_a_fixture_asks_for_the_same(self) -> None:
        found = self.what(
            gw0=[ran("a", 0, 5, uses=("cache", "drive"), resets=("cache", "drive"), asked=("cache",))],
            gw1=[waited("b", 1, 5, "cache", "drive"), ran("b", 1, 6, uses=("cache", "drive"))],
        )
        assert found == ["--stage-slots=2"]

    def test_quiet_tests_apart(self) -> None:
        found = self.what(
            gw0=[ran("a", 0, 5, uses=("tables",), quiet=("system",))],
            gw1=[waited("b", 1, 5, "system"), ran("b", 1, 6, uses=("system",))],
        )
        assert "stage_quiet apart from tests that use system" in found

    def test_quiet_tests_are_named_for_the_container_that_they_froze(self) -> None:
        found = timeline(
            gw0=[ran("a", 0, 5, quiet=("system",)), ran("c", 10, 15, quiet=("tables",))],
            gw1=[
                *(waited("b", 1, 5, "system"), ran("b", 1, 6, uses=("system",))),
                *(waited("d", 11, 15, "tables"), ran("d", 11, 16, uses=("tables",))),
            ],
        )
        said = {each.what.split()[-1]: each.why.split()[0] for each in advise(found) if "stage_quiet" in each.what}
        assert said == {"system": "a", "tables": "c"}

    def test_clean_stages_in_stock(self) -> None:
        assert self.what(gw0=[waited("a", 0, 2), ran("a", 0, 3)]) == ["--stage-slots=3 or more"]

    def test_slow_resets_with_their_reason(self) -> None:
        reset = Reset(PROJECT, "cache", "restart", CLOCK, CLOCK + 2, "a module was loaded", "a")
        (found,) = advise(timeline(gw0=[reset, ran("a", 0, 3)]))
        assert found.what == "quicker resets of cache"
        assert "a module was loaded" in found.why

    def test_processes_of_others(self) -> None:
        (found,) = advise(timeline(gw0=[waited("a", 0, 2, "cache", holders="process 7 (reset cache)"), ran("a", 0, 3)]))
        assert found.what == "a stage of this session's own: --stage-project=NAME"
        assert "process 7 (reset cache)" in found.why


class TestPage:
    def test_names_of_tests_stay_texts(self, tmp_path: Path) -> None:
        nasty = 'test[</script><script>alert("1")</script><!--&amp;\u2028]'
        record(tmp_path, "run", "main", [ran(nasty, 0, 1, "failed", failure=nasty)])
        write_report(tmp_path / "report.html", [tmp_path])
        text = (tmp_path / "report.html").read_text()
        assert "alert(" in text
        assert "<script>alert(" not in text
        inside = text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
        data = json.loads(inside)
        assert data["tests"][0][0] == nasty

    def test_it_is_no_larger_than_it_says_however_many_tests_fail(self, tmp_path: Path) -> None:
        lines = "E   assert a < b & c\n" * 400
        sections = tuple((f"stage container {name}: logged", lines) for name in ("cache", "drive"))
        tests = [
            ran(f"tests/test_many.py::test_it[{n}]", n, n + 1, "failed", failure=lines, sections=sections)
            for n in range(5000)
        ]
        record(tmp_path, "run", "main", tests)
        write_report(tmp_path / "report.html", [tmp_path])
        assert (tmp_path / "report.html").stat().st_size <= LONGEST_PAGE

    def test_a_large_session_fits(self, tmp_path: Path) -> None:
        large(tmp_path, 5000, workers=8)
        found = write_report(tmp_path / "report.html", [tmp_path])
        assert len(found.cases) == 5000
        assert (tmp_path / "report.html").stat().st_size <= LONGEST_PAGE

    def test_a_curve_keeps_its_lowest_points(self) -> None:
        rooms: list[Event] = [Room(CLOCK + n, "pool p", GIB if n == 4321 else 9 * GIB, 1) for n in range(9000)]
        (pool,) = page_data(timeline(gw0=rooms), 0.0, "0")["pools"]
        assert len(pool["points"]) <= MOST_POINTS
        assert min(size for _, size in pool["points"]) == GIB

    def test_another_file_is_not_replaced(self, tmp_path: Path) -> None:
        record(tmp_path, "run", "main", [ran("a", 0, 1)])
        other = tmp_path / "notes.txt"
        other.write_text("mine")
        with pytest.raises(SettingsError, match="is no report of a session"):
            write_report(other, [tmp_path])
        assert other.read_text() == "mine"
        write_report(tmp_path / "report.html", [tmp_path])
        check_target(tmp_path / "report.html")
        write_report(tmp_path / "report.html", [tmp_path])

    def test_without_records_it_says_how_to_make_some(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="no session has been recorded") as caught:
            write_report(tmp_path / "report.html", [tmp_path])
        assert "pytest --stage-report=report.html" in str(caught.value)
        with pytest.raises(SettingsError, match="there is no folder"):
            write_report(tmp_path / "report.html", [tmp_path / "none"])

    def test_its_script_makes_no_markup_of_texts(self) -> None:
        from importlib.resources import files

        script = (files("pytest_stagegbo.session_report") / "assets" / "page.js").read_text()
        assert not [
            word
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
            if word in script
        ]

    def test_only_its_own_scripts_may_run(self) -> None:
        text = page(timeline(gw0=[ran("a", 0, 1)]), 0.0, "0")
        assert text.count("&#x27;sha256-") == 2
        assert "default-src &#x27;none&#x27;" in text

    def test_the_library_is_the_one_that_is_documented(self) -> None:
        """As published: the file of the package that README.md beside it names, byte by byte."""
        import hashlib
        from importlib.resources import files

        assets = files("pytest_stagegbo.session_report") / "assets"
        digest = hashlib.sha256(assets.joinpath("echarts.min.js").read_bytes()).hexdigest()
        assert digest in assets.joinpath("README.md").read_text()
        assert "Apache License" in assets.joinpath("echarts.LICENSE").read_text()
        assert "Apache ECharts" in assets.joinpath("echarts.NOTICE").read_text()


class Guard:
    """A disk guard that has looked."""

    def __init__(self) -> None:
        self.spaces: list[Room] = [Room(0.0, "pool p", 9 * GIB, GIB)]
        self.used = {"cache": 1}
        self.asked = 0

    def usage(self) -> Mapping[str, int]:
        self.asked += 1
        return self.used


class TestDisk:
    @pytest.fixture
    def written(self) -> list[Event]:
        return []

    def curves(self, guard: Guard, written: list[Event], *, containers: bool = True) -> DiskCurves:
        return DiskCurves(guard, written.append, PROJECT, containers=containers)

    def test_what_did_not_change_is_not_written_again(self, written: list[Event]) -> None:
        guard = Guard()
        curves = self.curves(guard, written)
        for _ in range(3):
            curves.look()
        assert [type(event) for event in written] == [Room, Usage]
        assert guard.asked == 1
        guard.spaces = [Room(0.0, "pool p", 8 * GIB, GIB)]
        curves.look()
        assert [type(event) for event in written[2:]] == [Room]

    def test_the_last_look_is_written(self, written: list[Event]) -> None:
        curves = self.curves(Guard(), written)
        curves.start()
        curves.close()
        curves.close()
        assert [type(event) for event in written[-2:]] == [Room, Usage]

    def test_nobody_is_asked_below_the_floor_or_by_a_second_process(self, written: list[Event]) -> None:
        guard = Guard()
        self.curves(guard, written, containers=False).look()
        guard.spaces = [Room(0.0, "pool p", 0, GIB)]
        self.curves(guard, written).look()
        assert guard.asked == 0


def test_every_event_can_be_decoded_by_its_tag() -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(ran("a", 0, 1)), type=Event)
    assert decoded == ran("a", 0, 1)
