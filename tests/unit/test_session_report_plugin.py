"""`--stage-report` and `stagegbo report`, where there is no Incus."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from report_sessions import ran, record

from pytest_stagegbo import clocks
from pytest_stagegbo.cli import main
from pytest_stagegbo.errors import NoRoom
from pytest_stagegbo.plugin.process import StageProcess
from pytest_stagegbo.plugin.recording import Recording, _RunningTest
from pytest_stagegbo.session.requirements import Requirements
from pytest_stagegbo.session_report.events import Event, Freeze, Notice, Reset, Step, Test, Wait
from pytest_stagegbo.session_report.reading import find, read

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = """
import os, signal
import pytest
def test_passes(): pass
def test_fails():
    print("login with password=hunter22222")
    assert 1 == 2
@pytest.fixture
def broken():
    raise ValueError("broken")
def test_errs(broken): pass
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.xfail
def test_xfails(): raise ValueError
@pytest.mark.xfail
def test_xpasses(): pass
@pytest.mark.parametrize("text", ["</script>"])
def test_nasty(text): pass
"""
OUTCOMES = {
    "test_passes": "passed",
    "test_fails": "failed",
    "test_errs": "error",
    "test_skipped": "skipped",
    "test_xfails": "xfailed",
    "test_xpasses": "xpassed",
    "test_nasty[</script>]": "passed",
}


def recorded(folder: Path) -> list[Test]:
    return [event for records in read(find([folder])) for event in records.events if isinstance(event, Test)]


def outcomes(folder: Path) -> dict[str, str]:
    return {event.test.partition("::")[2]: event.outcome for event in recorded(folder)}


class TestOption:
    @pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["one process", "two workers"])
    def test_each_outcome_is_recorded_and_shown(self, pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
        pytester.makepyfile(test_it=CODE)
        result = pytester.runpytest_subprocess("--stage-report=out/report.html", "-p", "no:cacheprovider", *workers)
        result.assert_outcomes(passed=2, failed=1, errors=1, skipped=1, xfailed=1, xpassed=1)
        result.stdout.fnmatch_lines(["stage-gbo: report of the session: *report.html"])
        folder = pytester.path / "out"
        assert outcomes(folder / "report.records") == OUTCOMES
        page = (folder / "report.html").read_text()
        assert "test_it.py::test_nasty[\\u003c/script\\u003e]" in page
        assert "hunter22222" not in page
        assert "password=***" in page

    def test_of_ini_is_relative_to_the_root_folder(self, pytester: pytest.Pytester) -> None:
        pytester.makeini("[pytest]\nstage_report = stage.html\n")
        pytester.mkdir("below").joinpath("test_it.py").write_text("def test_it(): pass\n")
        pytester.runpytest_inprocess("below").assert_outcomes(passed=1)
        assert (pytester.path / "stage.html").exists()

    def test_without_it_nothing_is_registered(self, pytester: pytest.Pytester) -> None:
        config = pytester.parseconfigure()
        assert config.pluginmanager.get_plugin("stagegbo-recording") is None

    def test_an_earlier_report_and_its_records_are_replaced(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(test_it="def test_it(): pass")
        for _ in range(2):
            pytester.runpytest_inprocess("--stage-report=report.html").assert_outcomes(passed=1)
        assert len(list((pytester.path / "report.records").iterdir())) == 1

    def test_another_file_is_refused_before_a_test_runs(self, pytester: pytest.Pytester) -> None:
        path = pytester.makepyfile(test_it="def test_it(): raise SystemExit('run')")
        result = pytester.runpytest_inprocess(f"--stage-report={path}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: --stage-report: *test_it.py is there and is no report of a session*"])
        assert "SystemExit" in path.read_text()

    def test_a_name_that_the_records_need_is_refused(self, pytester: pytest.Pytester) -> None:
        """Else the page could not be written at the end of the session."""
        pytester.makepyfile(test_it="def test_it(): raise SystemExit('run')")
        result = pytester.runpytest_inprocess("--stage-report=report.records")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: --stage-report: *report.records can't be a page: name a file*"])

    def test_a_run_without_tests_leaves_it_alone(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(test_it="def test_it(): pass")
        pytester.runpytest_inprocess("--stage-report=report.html", "--collect-only")
        assert not list(pytester.path.glob("report*"))

    def test_where_it_cant_be_written_tests_run_all_the_same(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(test_it="def test_it(): pass")
        (pytester.path / "file").write_text("")
        result = pytester.runpytest_inprocess("--stage-report=file/below/report.html")
        result.assert_outcomes(passed=1)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["*the session can't be recorded in *below*"])

    def test_a_test_may_fake_the_files(self, pytester: pytest.Pytester) -> None:
        """pyfakefs replaces functions of `os` while the test runs, and time-machine the time."""
        pytester.makepyfile(
            test_it="""
            import time_machine
            def test_it(fs):
                with time_machine.travel(0, tick=False):
                    assert fs
            def test_after(): pass
            """
        )
        pytester.runpytest_subprocess("--stage-report=report.html").assert_outcomes(passed=2)
        (first, second) = recorded(pytester.path)
        assert first.began <= first.ended <= second.began

    def test_a_worker_that_dies_leaves_what_it_had_begun(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            test_it="import os, signal\ndef test_dies(): os.kill(os.getpid(), signal.SIGKILL)\ndef test_after(): pass"
        )
        pytester.runpytest_subprocess("--stage-report=report.html", "-n1").assert_outcomes(passed=1, failed=1)
        assert outcomes(pytester.path / "report.records") == {"test_dies": "killed", "test_after": "passed"}
        assert "worker gw0 died: " in (pytester.path / "report.html").read_text()


class TestCommand:
    def test_it_joins_those_of_several_runners(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("one", "two"):
            record(tmp_path / name, f"run-{name}", "main", [ran("test_it", 0, 1)])
        page = tmp_path / "all.html"
        assert main(["report", str(tmp_path), "-o", str(page)]) == 0
        assert capsys.readouterr().out == f"{page}: 2 sessions, 2 tests\n"
        assert main(["report", "--json", str(tmp_path / "one")]) == 0
        assert json.loads(capsys.readouterr().out)["page"] == str(tmp_path / "one" / "stage-report.html")

    def test_without_records_it_is_an_error_with_a_remedy(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["report", str(tmp_path)]) == 2
        assert "pytest --stage-report=report.html" in capsys.readouterr().err

    def test_it_needs_no_pytest_and_asks_no_daemon(self, tmp_path: Path) -> None:
        record(tmp_path, "run", "main", [ran("test_it", 0, 1)])
        code = f"import sys\nfrom pytest_stagegbo.cli import main\nmain(['report', {str(tmp_path)!r}])"
        code += "\nprint(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert not {"pytest", "pylxd", "requests", "pytest_stagegbo.incus"} & set(done.stdout.split())


class TestRecording:
    """What the plugin's other parts tell of a test that runs."""

    @pytest.fixture
    def events(self) -> list[Event]:
        return []

    @pytest.fixture
    def recording(self, pytester: pytest.Pytester, events: list[Event], monkeypatch: pytest.MonkeyPatch) -> Recording:
        config = pytester.parseconfigure("--stage-project=STAGE-2")
        configuration: Any = config.pluginmanager.get_plugin("stagegbo-configuration")
        provisioning: Any = config.pluginmanager.get_plugin("stagegbo-provisioning")
        process = StageProcess(config, configuration)
        recording = Recording(config, configuration, process, provisioning, Path("nowhere"), None)
        assert process.recording is recording
        monkeypatch.setattr(recording, "write", events.append)
        recording._test = _RunningTest("test_it.py::test_it")
        return recording

    def test_a_wait_and_what_is_frozen(self, recording: Recording, events: list[Event]) -> None:
        recording.note("waiting for stage STAGE-2: process 7 (test test_b) since 12:00:00")
        recording.reserved(Requirements(frozenset({"tables"}), ("tables",), frozenset({"system"})), 100.0, 2.5)
        recording._end(recording._test)
        wait, freeze, test = events
        assert isinstance(wait, Wait)
        assert (wait.project, wait.names, wait.ended - wait.began) == ("STAGE-2", ("tables",), 2.5)
        assert wait.holders == "process 7 (test test_b) since 12:00:00"
        assert isinstance(freeze, Freeze)
        assert (freeze.names, freeze.began) == (("system",), 102.5)
        assert isinstance(test, Test)
        assert (test.project, test.uses, test.resets) == ("STAGE-2", ("tables",), ("tables",))

    def test_a_lock_that_is_free_is_no_wait(self, recording: Recording, events: list[Event]) -> None:
        recording.reserved(Requirements(frozenset({"cache"}), ()), 100.0, 0.05)
        assert events == []

    @pytest.mark.parametrize(
        ("key", "project", "text"),
        [("copy:cache", "STAGE-2", "copy cache"), ("slot 3: copy:cache", "STAGE-2-3", "copy cache")],
    )
    def test_steps_of_provisioning(
        self, recording: Recording, events: list[Event], key: str, project: str, text: str
    ) -> None:
        recording.begin(key, key.replace("copy:", "copy "))
        recording.end(key, ValueError("token=abcdefgh"))
        (step,) = events
        assert isinstance(step, Step)
        assert (step.key, step.project, step.text, step.error) == ("copy:cache", project, text, "token=***")

    def test_resets_with_their_way(self, recording: Recording, events: list[Event]) -> None:
        recording.begin("clear:cache", "reset cache (hot)")
        recording.reset_done("STAGE-2", "cache", "restart", 1.0, 2.0, "something was started")
        recording.end("clear:cache")
        assert events == [
            Reset("STAGE-2", "cache", "restart", 1.0, 2.0, "something was started", "test_it.py::test_it")
        ]

    def test_the_disk_guards_stop(self, recording: Recording, events: list[Event]) -> None:
        recording.stopped(NoRoom("too little room", remedy="free some"))
        (notice,) = events
        assert isinstance(notice, Notice)
        assert (notice.kind, notice.text.splitlines()[0]) == ("stopped", "too little room")

    @pytest.mark.parametrize(
        "call",
        [
            lambda recording: recording.reserved(None, 0.0, 1.0),
            lambda recording: recording.took_fresh(None, 0.0),
            lambda recording: recording.watch(None, None),
            lambda recording: recording.pytest_runtest_logreport(SimpleNamespace(when="call")),
            lambda recording: recording.end("key"),
        ],
    )
    def test_an_error_ends_the_recording_alone(
        self, recording: Recording, monkeypatch: pytest.MonkeyPatch, call: Callable[[Recording], Any]
    ) -> None:
        recording._test = _RunningTest("test_it", SimpleNamespace(stash={}))  # type: ignore[arg-type]
        recording._holders = "process 7"
        recording._steps["key"] = ("text", clocks.monotonic())
        failed: list[BaseException] = []
        monkeypatch.setattr(recording, "give_up", failed.append)
        monkeypatch.setattr(recording, "write", lambda _: 1 / 0)
        call(recording)
        assert failed
