"""What a session says of itself."""

from __future__ import annotations

import json

import pytest

from pytest_stagegbo.session.summary import Summary, header, percentile
from pytest_stagegbo.settings import IncusSettings, Settings

MIB = 2**20


def test_a_session_that_used_nothing_says_nothing() -> None:
    assert Summary().lines(Settings(), "pool tank") == []


def test_resets_are_told_by_what_was_cleared_together() -> None:
    summary = Summary()
    for seconds in (0.4, 0.1, 0.2, 0.3):
        summary.reset(("drive", "cache"), seconds)
    summary.reset(("cache",), 1.25)
    assert summary.lines(Settings(), "pool tank: 5 GiB free") == [
        "pool tank: 5 GiB free",
        "reset cache, drive: 4 times, median 200 ms, longest 400 ms",
        "reset cache: once, 1.2 s",
        "resets in all: 5 times, median 300 ms, longest 1.2 s",
    ]


def test_order_of_names_makes_no_difference() -> None:
    summary = Summary()
    summary.reset(("drive", "cache"), 1)
    summary.reset(["cache", "drive"], 1)
    assert len(summary.lines()) == 1


def test_waits_are_those_that_took_time() -> None:
    summary = Summary()
    for seconds in (0.0001, 0.0002, 2.0, 0.5):
        summary.lock_wait(seconds)
    assert summary.lines() == ["waited for locks: 2 of 4 tests, 2.5 s in all, longest 2.0 s"]


def test_a_run_that_was_verified_says_so() -> None:
    summary = Summary(verified=True)
    assert summary.lines() == []  # no test used the stage
    summary.reset(["cache"], 1)
    assert summary.lines() == ["reset cache: once, 1.0 s", "isolation verified: every check holds"]


def test_a_percentile_needs_twenty_values() -> None:
    summary = Summary()
    for number in range(20):
        summary.reset(("cache",), (number + 1) / 100)
    assert summary.lines() == ["reset cache: 20 times, p50 100 ms, p95 190 ms"]


def test_what_did_not_happen_takes_no_line() -> None:
    summary = Summary()
    summary.lock_wait(0.0001)
    summary.growth({"llm": 5})
    assert summary.lines() == []


def test_growth_in_the_order_of_the_settings_without_what_did_not_grow() -> None:
    summary = Summary()
    summary.growth({"cache": 3 * MIB, "tables": 2 * MIB, "llm": -5 * MIB, "drive": 4096})
    assert summary.lines(Settings()) == ["grew: tables 2 MiB, cache 3 MiB"]


def test_processes_add_up_through_json() -> None:
    """Resets and waits of each count; all measure the same containers, so the largest growth does."""
    one, other = Summary(), Summary()
    one.reset(("cache",), 1.0)
    one.lock_wait(0.5)
    one.growth({"cache": 5 * MIB, "drive": -MIB})
    other.reset(("cache",), 3.0)
    other.reset(("cache", "drive"), 2.0)
    other.lock_wait(1.5)
    other.growth({"cache": 4 * MIB, "drive": 2 * MIB})
    one.merge(Summary.from_json(json.loads(json.dumps(other.to_json()))))
    assert one == Summary(
        resets={("cache",): [1.0, 3.0], ("cache", "drive"): [2.0]},
        waits=[0.5, 1.5],
        grown={"cache": 5 * MIB, "drive": 2 * MIB},
    )
    assert Summary.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        pytest.param([7.0], 50, 7.0, id="one"),
        pytest.param([1.0, 2.0], 50, 1.0, id="half-of-two"),
        pytest.param([3.0, 1.0, 2.0], 50, 2.0, id="unsorted"),
        pytest.param([float(n) for n in range(1, 21)], 95, 19.0, id="of-twenty"),
        pytest.param([float(n) for n in range(1, 101)], 95, 95.0, id="of-a-hundred"),
        pytest.param([1.0, 9.0], 100, 9.0, id="largest"),
    ],
)
def test_percentiles_are_observed_values(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_the_header_connects_to_nothing() -> None:
    settings = Settings(incus=IncusSettings(endpoint="/nowhere/unix.socket"))
    assert header(settings) == ("stage-gbo: project STAGE-GBO, a clone of default, on Incus at /nowhere/unix.socket")
    assert header(Settings()).endswith("on Incus at the local daemon")
    assert header(Settings(), "https://host:8443").endswith("https://host:8443")
