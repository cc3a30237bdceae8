"""The table of where the time of one provisioning went."""

from __future__ import annotations

from pytest_stagegbo.apply.scheduler import Timing
from pytest_stagegbo.cli import timings


def test_each_step_is_in_the_row_of_its_container_or_has_its_own() -> None:
    steps = [
        Timing("network:stagebr0", "", 0.0, 0.25),
        Timing("copy:cache", "", 0.25, 0.5),
        Timing("start:cache", "", 0.5, 1.0),
        Timing("hooks:cache", "", 1.0, 1.125),
        Timing("await:cache", "", 1.125, 2.125),
    ]
    assert timings.rows(steps, ("cache", "llm"), 2.5) == [
        ("network stagebr0", "", "", "", "", "", "0.25 s", "0.00 s", "0.25 s"),
        ("cache", "", "0.25 s", "", "0.50 s", "1.00 s", "0.12 s", "0.25 s", "2.12 s"),
        ("before and after the steps", "", "", "", "", "", "0.38 s", "", ""),
    ]
    assert all(len(row) == len(timings.COLUMNS) for row in timings.rows(steps, ("cache",), 2.5))


def test_nothing_to_change_is_a_table_too() -> None:
    assert timings.rows([], (), 0.5) == [("before and after the steps", "", "", "", "", "", "0.50 s", "", "")]


def test_what_came_before_and_how_many_requests_were_made_is_there_where_it_is_known() -> None:
    found = timings.rows([], (), 0.5, start_up=0.25, requests=104)
    assert [(row[0], row[6]) for row in found] == [
        ("start of this process", "0.25 s"),
        ("before and after the steps", "0.50 s"),
        ("requests to Incus", "104"),
    ]
    assert {len(row) for row in found} == {len(timings.COLUMNS)}
