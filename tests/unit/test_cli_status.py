"""What `status` and `verify` print."""

from __future__ import annotations

import pytest

from pytest_stagegbo import clocks
from pytest_stagegbo.cli.console import Grid, print_parts, print_table
from pytest_stagegbo.cli.sight import fault_lines, short_rows, use_lines
from pytest_stagegbo.cli.verify import count_line
from pytest_stagegbo.engine.status import ContainerStatus, StageStatus
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.slots.statuses import SlotStatus


def container(name: str, state: str, answer: str) -> ContainerStatus:
    return ContainerStatus(name, "10.0.3.13", state, (answer,), f"default/{name}", "2026-01-01T00:00:00Z", 5, "10GB")


def stage(*containers: ContainerStatus) -> StageStatus:
    return StageStatus("STAGE-GBO", True, "stagebr0", "Incus 6.0.4", containers)


def test_status_without_a_terminal_is_one_line_a_container(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "now", lambda: 1767225600.0 + 7200)
    found = stage(
        container("cache", "ready", "6379: ready: -NOAUTH"), container("drive", "failed", "9100: refused: no")
    )
    print_table(("container", "state", "address", "port", "age"), short_rows(found, Settings()))
    assert capsys.readouterr().out == (
        "container\tstate\taddress\tport\tage\n"
        "cache\tready\t10.0.3.13\t6379\t120 min\n"
        "drive\tfailed\t10.0.3.13\t9100\t120 min\n"
    ).replace("120 min", "2 h")
    assert fault_lines(found) == ["drive is failed: 9100: refused: no"]


def test_who_uses_a_single_stage_is_said() -> None:
    slot = SlotStatus(0, "STAGE-GBO", "stagebr0", "running", "", False, "process 7 (provision) since 12:00:00")
    assert use_lines([slot]) == ["STAGE-GBO is used by process 7 (provision) since 12:00:00"]


def test_a_cell_of_two_lines_stays_one_line_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [("x\ty", "one\ntwo")])
    assert capsys.readouterr().out == "a\tb\nx y\tone; two\n"


@pytest.mark.parametrize(
    ("states", "line"),
    [(["green"] * 3, "3 of 3 hold"), (["green", "red", "skipped"], "1 of 2 hold, 1 skipped")],
)
def test_verify_ends_with_how_many_hold(states: list[str], line: str) -> None:
    assert count_line(states) == line


def test_a_stage_that_is_not_there_is_one_line_with_the_next_step() -> None:
    missing = [container(name, "missing", "") for name in ("cache", "drive")]
    assert fault_lines(stage(*missing)) == ["there is no stage STAGE-GBO: `stagegbo provision` makes it"]


def test_what_provisioning_mends_is_said() -> None:
    found = fault_lines(stage(container("cache", "ready", "6379: ready"), container("drive", "stopped", "")))
    assert found[0].startswith("drive is stopped")
    assert found[-1] == "`stagegbo provision` makes what is missing and starts what is stopped"


def test_what_a_service_or_another_process_says_is_text_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_parts(["drive is failed: \x1b]0;title\x07 no", Grid(("container",), [("\x1b[31mdrive",)])])
    assert capsys.readouterr().out == "drive is failed: \\x1b]0;title\\x07 no\ncontainer\n\\x1b[31mdrive\n"
