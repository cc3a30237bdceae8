"""What pytest says of a stage beside its own report: a line while it is provisioned, annotations, short tracebacks."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.plugin import live
from pytest_stagegbo.plugin.forge import annotation, in_pipeline, job_summary
from pytest_stagegbo.plugin.tracebacks import shorten
from pytest_stagegbo.progress import Relay, Silent, expect, task
from pytest_stagegbo.settings.size import parse_size

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.session.summary import Summary


def test_without_a_terminal_there_is_a_line_for_each_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUIET", 0.0)
    lines: list[str] = []
    relay = Relay()
    with live.Live(lines.append, None) as relay.target:
        expect(relay, 3)
        with task(relay, "copy:cache", "copy cache"), task(relay, "copy:drive", "copy drive"):
            pass
        with task(relay, "slot 1: start:cache", "slot 1: start cache"):
            relay.note("waiting for somebody")
    assert lines == [
        "stage-gbo: 0 s, 0 of 3 steps done; copy cache",
        "stage-gbo: 0 s, 2 of 3 steps done; slot 1: start cache",
        "stage-gbo: waiting for somebody",
    ]


def test_what_is_done_at_once_is_not_shown() -> None:
    lines: list[str] = []
    with live.Live(lines.append, None) as shown, task(shown, "copy:cache", "copy cache"):
        pass
    assert lines == []


def test_a_live_line_is_drawn_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUIET", 0.0)
    monkeypatch.setattr(live, "PERIOD", 0.01)
    drawn: list[str] = []
    seen = threading.Event()

    def draw(line: str) -> None:
        drawn.append(line)
        if "copy cache, copy drive" in line:
            seen.set()

    with live.Live(drawn.append, draw) as shown:
        expect(shown, 2)
        with task(shown, "copy:cache", "copy cache"), task(shown, "copy:drive", "copy drive"):
            assert seen.wait(20)
    assert drawn[0].startswith("stage-gbo: 0 s, 0")
    assert drawn[-1] == ""


def test_steps_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "stagegbo"), task(Silent(), "copy:cache", "copy cache"):
        pass
    assert [(each.name, each.getMessage().partition(":")[0]) for each in caplog.records] == [
        ("stagegbo.provision", "copy cache")
    ]


def test_names_of_the_stage_are_text_in_a_jobs_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forge shows the summary as a page."""
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    text = "tables, since 20:31:\n  bot.public.<img src=x>|y: 1 row added"
    report = pytest.TestReport(
        "test_x.py::test_it[a|b]",
        ("test_x.py", 1, "test_it"),
        {},
        "failed",
        "<b>why</b>",
        "call",
        [("stage changes", text), ("my own: changes", "of the test")],
    )
    reporter = SimpleNamespace(stats={"failed": [report]})
    summary = SimpleNamespace(broken=(), trouble=())
    job_summary([], cast("pytest.TerminalReporter", reporter), cast("Summary", summary))
    row = path.read_text().splitlines()[-1]
    assert row == (
        r"| `test_x.py::test_it[a\|b]` | &lt;b>why&lt;/b> | "
        r"tables, since 20:31:<br>bot.public.&lt;img src=x>\|y: 1 row added |"
    )


def test_an_annotation_is_one_line() -> None:
    assert annotation("error", "a::b, c", "100%\nof it", "test_x.py", 3) == (
        "::error file=test_x.py,line=3,title=a%3A%3Ab%2C c::100%25%0Aof it"
    )
    assert annotation("warning", "stage-gbo", "so") == "::warning title=stage-gbo::so"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, False), ({"GITHUB_ACTIONS": "true"}, True), ({"FORGEJO_ACTIONS": "true"}, True), ({"CI": "true"}, False)],
)
def test_a_pipeline_is_known_by_its_variable(environ: dict[str, str], expected: bool) -> None:
    assert in_pipeline(environ) is expected


def test_a_traceback_ends_in_the_test(request: pytest.FixtureRequest) -> None:
    assert request.config is not None
    with pytest.raises((SettingsError, ValueError)) as caught:
        parse_size("much")
    names = [entry.frame.f_globals["__name__"] for entry in caught.traceback]
    assert [name for name in names if name.startswith("pytest_stagegbo.")]
    modules = {name: dict(vars(module)) for name, module in _own_modules().items()}
    try:
        shorten(caught)
        assert [entry.frame.f_globals["__name__"] for entry in caught.traceback] == [__name__]
    finally:
        for name, module in _own_modules().items():
            if "__tracebackhide__" not in modules[name]:
                vars(module).pop("__tracebackhide__", None)


def _own_modules() -> dict[str, object]:
    import sys

    return {name: module for name, module in sys.modules.items() if name.startswith("pytest_stagegbo.")}
