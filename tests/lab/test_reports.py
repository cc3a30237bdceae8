"""What a run in a pipeline leaves behind about the stage: JUnit's file, annotations, a job's summary."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from tests.lab.support import held

from pytest_stagegbo.session_report.events import Reset, Room, Test, Usage
from pytest_stagegbo.session_report.reading import find, read
from pytest_stagegbo.session_report.timeline import joined

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.lab.conftest import StageGbo

pytestmark = pytest.mark.lab

TESTS = """
import pytest

@pytest.mark.stage_reset("cache")
def test_fails(stage_cache):
    stage_cache.exec("sh", "-c", "echo from-a-test | systemd-cat -t valkey-server; exit 3")

def test_passes(stage_cache): pass
"""
WAITING = """
import pathlib, time
import pytest
from pytest_stagegbo.plugin.stash import PROCESS
from pytest_stagegbo.processes import lock_holders

@pytest.mark.stage_reset("cache")
@pytest.mark.parametrize("number", [1, 2])
def test_alone(number, stage_cache, request):
    # The first one ends when the other one waits for it.
    try:
        pathlib.Path("first").touch(exist_ok=False)
    except FileExistsError:
        return
    gate = request.config.stash[PROCESS].engine().lock().folder / "cache.gate"
    deadline = time.monotonic() + 60
    while not lock_holders(gate):
        assert time.monotonic() < deadline
        time.sleep(0.005)

@pytest.mark.stage_quiet
def test_quiet(stage_tables): pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "a worker"])
def test_a_pipeline_learns_of_the_stage(
    provisioned: subprocess.CompletedProcess[str],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    workers: tuple[str, ...],
) -> None:
    assert provisioned.returncode == 0
    pytester.makepyfile(test_it=TESTS)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    reports = ("--junitxml=report.xml", "--stage-report=stage.html")
    done = pytester.runpytest_subprocess("--stage-lab", "-p", "no:cacheprovider", *reports, *workers)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*::error file=test_it.py,line=5,title=test_it.py%3A%3Atest_fails::*CommandFailed*"])
    assert "pytest_stagegbo/" not in done.stdout.str()  # no frame of this package's own
    suite = ElementTree.parse(pytester.path / "report.xml").getroot()[0]
    properties = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
    assert (properties["stage.project"], properties["stage.verify"]) == ("STAGE-GBO", "not asked for")
    failed = suite.find("testcase[@name='test_fails']")
    assert failed is not None
    assert "stage.reset.cache" in [each.get("name") for each in failed.findall("properties/property")]
    assert "stage container cache: logged since the test began" in (failed.findtext("system-err") or "")
    summary = (pytester.path / "summary.md").read_text()
    assert "- reset cache: once" in summary
    assert "| `test_it.py::test_fails` | pytest_stagegbo.errors.CommandFailed:" in summary
    look_at_records(pytester.path / "stage.records")
    assert "from-a-test" in (pytester.path / "stage.html").read_text()


def look_at_records(folder: Path) -> None:
    """What the report of the session shows of a real stage."""
    events = [event for records in read(find([folder])) for event in records.events]
    failed, passed = (event for event in events if isinstance(event, Test))
    assert (failed.project, failed.uses, failed.resets, failed.asked) == ("STAGE-GBO", *[("cache",)] * 3)
    assert (passed.outcome, passed.resets) == ("passed", ())
    assert "stage container cache: logged since the test began" in [title for title, _ in failed.sections]
    (reset,) = (event for event in events if isinstance(event, Reset))
    assert (reset.project, reset.container, reset.test) == ("STAGE-GBO", "cache", failed.test)
    assert reset.way in {"untouched", "hot", "restart"}
    assert failed.began <= reset.began <= reset.ended <= failed.called
    rooms = [event for event in events if isinstance(event, Room)]
    assert rooms
    assert all(room.free > room.floor > 0 for room in rooms)
    used = [event.used for event in events if isinstance(event, Usage)]
    assert used
    assert set(used[-1]) == {"system", "tables", "vault", "cache", "drive", "llm"}


def test_the_report_shows_who_waited_for_whom_and_what_was_frozen(
    provisioned: subprocess.CompletedProcess[str], stagegbo: StageGbo, pytester: pytest.Pytester
) -> None:
    assert provisioned.returncode == 0
    pytester.makepyfile(test_it=WAITING)
    done = pytester.runpytest_subprocess("--stage-lab", "-p", "no:cacheprovider", "--stage-report=stage.html", "-n2")
    done.assert_outcomes(passed=3)
    timeline = joined(read(find([pytester.path / "stage.records"])))
    assert sorted(worker.name for worker in timeline.workers) == ["gw0", "gw1"]
    blocked = next(each for each in timeline.waits if "test_alone" in each.wait.test)
    (holder,) = (timeline.cases[each].test.test for each in blocked.by)
    assert {holder, blocked.wait.test} == {f"test_it.py::test_alone[{number}]" for number in (1, 2)}
    (frozen,) = (each for _, each in timeline.freezes)
    assert (frozen.names, frozen.test) == (("system",), "test_it.py::test_quiet")
    joined_again = held(stagegbo("report", str(pytester.path / "stage.records"), "--json").stdout)
    assert (joined_again["sessions"], joined_again["tests"]) == (1, 3)
