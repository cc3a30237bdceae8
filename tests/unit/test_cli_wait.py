"""`wait` and `status --watch`, without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo import clocks
from pytest_stagegbo.cli import main, wait, watch
from pytest_stagegbo.cli.sight import Sight
from pytest_stagegbo.cli.watch import changes, facts_of
from pytest_stagegbo.engine.status import ContainerStatus, StageStatus
from pytest_stagegbo.errors import NotReady, ServerUnreachable, StageGboError
from pytest_stagegbo.slots.statuses import SlotStatus

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.cli.context import Context


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    """None is needed where nobody looks for real. Pauses pass at once."""
    passed = [0.0]
    monkeypatch.setattr(clocks, "monotonic", lambda: passed[0])
    monkeypatch.setattr(clocks, "sleep", lambda seconds: passed.__setitem__(0, passed[0] + seconds))
    return None  # type: ignore[return-value]


def looking(monkeypatch: pytest.MonkeyPatch, *found: StageGboError | None) -> None:
    """The looks at the stage, one after the other; the last one for ever."""
    left = [*found]

    def look(*_: object) -> StageGboError | None:
        problem = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(problem, ServerUnreachable):
            raise problem
        return problem

    monkeypatch.setattr(wait, "_not_ready", look)


def test_it_waits_until_the_stage_is_ready(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    looking(monkeypatch, ServerUnreachable("no daemon"), NotReady("starting"), None)
    wait.until(context, "ready", (), 60)
    assert clocks.monotonic() == 2 * wait.PAUSE


def test_what_is_not_so_in_time_says_what_was_seen(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    looking(monkeypatch, NotReady("STAGE-GBO is not ready", seen="cache is stopped"))
    with pytest.raises(NotReady) as error:
        wait.until(context, "ready", (), 60)
    assert (error.value.message, error.value.seen) == ("STAGE-GBO is not ready within 60 s", "cache is stopped")
    assert clocks.monotonic() == 60


def test_without_a_daemon_it_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--endpoint", str(tmp_path / "none"), "wait", "--timeout", "0"]) == 3
    assert "SG100" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [("--for", "soon"), ("--timeout", "-1"), ("--timeout", "soon"), ("--for", "free", "cache"), ("cahce",)],
    ids=" ".join,
)
def test_what_can_not_be_waited_for(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["wait", *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2


# -- watch


def sight(state: str, used_by: str = "", **more: str) -> Sight:
    container = ContainerStatus("cache", "10.0.3.13", state, (), "default/cache", "", None, "10GB")
    slot = SlotStatus(0, "STAGE-GBO", "stagebr0", "running", "", False, used_by)
    return Sight(StageStatus("STAGE-GBO", True, "stagebr0", "", (container,), **more), (slot,), {})  # type: ignore[arg-type]


def test_only_what_has_changed_is_a_line() -> None:
    first, second = facts_of(sight("ready")), facts_of(sight("stopped", "process 7 (reset)", trouble="no way"))
    assert [*changes({}, first)] == [("cache", "ready"), ("STAGE-GBO", "free")]
    assert [*changes(first, first)] == []
    assert [*changes(first, second)] == [
        ("cache", "stopped"),
        ("STAGE-GBO", "used by process 7 (reset)"),
        ("warning", "no way"),
    ]
    assert [*changes(second, first)] == [("cache", "ready"), ("STAGE-GBO", "free"), ("warning", "gone")]


def test_whatever_somebody_says_is_one_line_of_a_watch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = StageGboError("Incus is away", seen="first\nsecond\tthird \x1b[31m")
    monkeypatch.setattr(watch, "_looks", lambda *_: iter([sight("ready"), refused]))
    watch._print_changes(None, sight("ready"))  # type: ignore[arg-type]
    lines = [line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["cache", "ready"],
        ["STAGE-GBO", "free"],
        ["daemon", "Incus is away: first; second third \\x1b[31m"],
        ["cache", "gone"],
        ["STAGE-GBO", "gone"],
    ]
