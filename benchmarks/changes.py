"""What a failed test pays to have its report say what it changed.

    sudo python benchmarks/changes.py [--rounds N] [--json FILE] [--markdown docs/benchmarks.md] [--keep]

Before each round the containers are reset, and a test's worth of keys, objects, files and rows is written. Timed is the
reading of what changed. A test that passes reads nothing. Where nothing is written, the test is taken to last half a
second: what a reset does behind it has ended then. Runs on a lab of its own (or `$STAGEGBO_LAB_NAME`), which it
brings up and deletes again.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a script, and its modules are found by type checkers too

from benchmarks._bench_stage import Bench
from benchmarks._finish import measure_rounds
from benchmarks._measure import ProcessorTime, idle_line, percentile
from benchmarks.reset import IDLE, LONGEST_WAIT, Report

from pytest_stagegbo.changes import read_changes

if TYPE_CHECKING:
    from benchmarks._bench_lab import BenchLab
    from rich.console import Console

FOUR = ("cache", "drive", "system", "tables")
ALL, NOTHING = "all four", "all four, nothing changed"
AIM = 0.05
LASTS = 0.5
"""Seconds that a test lasts which writes nothing."""


class ChangesReport(Report):
    """What was measured of reading changes."""

    columns = ("changes of", "rounds", "p50", "p95", "fastest", "slowest", "found")

    def headlines(self) -> list[str]:
        everything = percentile(self.times[ALL], 50)
        return [
            f"all four containers of a failed test: {everything * 1000:.0f} ms (median; aim {AIM * 1000:.0f} ms)",
            "a test that passes pays nothing: nothing is read",
            idle_line(self.idle),
        ]


def _read(bench: Bench, names: tuple[str, ...], rounds: int, found: dict[str, int], *, dirty: bool) -> list[float]:
    containers = [bench.settings.containers[name] for name in names]
    times = []
    for number in range(rounds):
        bench.engine.reset(names)
        if dirty:
            bench.pollute(names, number)
        else:
            time.sleep(LASTS)  # as a test would
        began = time.monotonic()
        changes = read_changes(bench.engine.resetter(), containers)
        times.append(time.monotonic() - began)
        for each in changes.containers:
            key = f"{each.container} {'unknown' if each.unknown else 'changed' if any(each) else 'clean'}"
            found[key] = found.get(key, 0) + 1
    return times


def _measure(lab: BenchLab, console: Console, rounds: int) -> ChangesReport:
    lab.stagegbo("provision")
    times: dict[str, list[float]] = {}
    ways: dict[str, dict[str, int]] = {}
    idle: list[float] = []
    with ThreadPoolExecutor(1, initializer=lab.lab.join_network) as inside:
        bench = inside.submit(Bench, lab).result()

        def measure(name: str, names: tuple[str, ...], *, dirty: bool = True) -> None:
            idle.append(ProcessorTime.wait_idle(IDLE, LONGEST_WAIT))
            call = partial(_read, bench, names, rounds, ways.setdefault(name, {}), dirty=dirty)
            times[name] = inside.submit(call).result()
            console.print(f"{name}: {percentile(times[name], 50) * 1000:.0f} ms ({idle[-1]:.0%} idle before)")

        measure(ALL, FOUR)
        for name in FOUR:
            measure(name, (name,))
        measure(NOTHING, FOUR, dirty=False)
        inside.submit(bench.engine.close).result()
    return ChangesReport(times, ways, idle, lab.lab.status().incus_version)


if __name__ == "__main__":
    sys.exit(measure_rounds(__doc__, "changes", _measure, rounds=50, of="each row"))
