#!/usr/bin/env python3
"""What keeping a capsule adds to a failed test, with the containers of a reset test and with all six.

    sudo python benchmarks/capsule.py [--rounds N] [--json FILE] [--markdown docs/benchmarks.md] [--keep]

Before each round, keys, objects, files and rows are written again. Runs on a lab of its own (or `$STAGEGBO_LAB_NAME`),
which it brings up and deletes again.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a script, and its modules are found by type checkers too

from benchmarks._bench_stage import Bench
from benchmarks._finish import measure_rounds
from benchmarks._measure import ProcessorTime, idle_line, percentile
from benchmarks._table import TableReport

from pytest_stagegbo.engine.capsules import Capsules, Occasion

if TYPE_CHECKING:
    from benchmarks._bench_lab import BenchLab
    from rich.console import Console

SETS = {
    "cache, drive, system": ("cache", "drive", "system"),
    "these and tables": ("cache", "drive", "system", "tables"),
    "all six": ("system", "tables", "vault", "cache", "drive", "llm"),
}
"""Containers that a failed test used, by what they are called here."""
AIMS = {"cache, drive, system": 0.15, "these and tables": 0.15, "all six": 1.0}
IDLE, LONGEST_WAIT = 0.95, 20.0


class Report(TableReport):
    """Seconds of keeping a capsule, from the first request to the mark, by the containers that it has."""

    columns = ("containers that the test used", "rounds", "p50", "p95", "slowest", "aim")

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.times: dict[str, list[float]] = {}
        self.drops: list[float] = []
        self.idle: list[float] = []

    def headlines(self) -> list[str]:
        reset, everything = (percentile(self.times[name], 50) for name in ("these and tables", "all six"))
        return [
            f"a failed test takes {_ms(reset)} longer with the containers of a reset test (median; aim {_ms(0.15)}), "
            f"{_ms(everything)} with all six (aim {_ms(1.0)})",
            f"deleting a capsule: {_ms(percentile(self.drops, 50))} (median)",
            idle_line(self.idle),
        ]

    def rows(self) -> list[list[str]]:
        return [
            [
                name,
                str(len(times)),
                *(_ms(percentile(times, each)) for each in (50, 95)),
                _ms(max(times)),
                _ms(AIMS[name]),
            ]
            for name, times in self.times.items()
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "incus": self.version,
            "idle_before": self.idle,
            "times": self.times,
            "drops": self.drops,
        }


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _keep(bench: Bench, names: tuple[str, ...], rounds: int, report: Report) -> list[float]:
    capsules, found = Capsules(bench.engine), []
    dirty = [name for name in names if name in SETS["these and tables"]]
    for number in range(rounds):
        bench.reset(dirty)
        bench.pollute(dirty, 3000 + number)
        began = time.monotonic()
        with capsules.keeping(names, Occasion("benchmark")) as draft:
            draft.texts["report"] = "x" * 10_000
        found.append(time.monotonic() - began)
        began = time.monotonic()
        capsules.drop([draft.key])
        report.drops.append(time.monotonic() - began)
    return found


def _measure(lab: BenchLab, console: Console, rounds: int) -> Report:
    lab.stagegbo("provision")
    report = Report(lab.lab.status().incus_version)
    with ThreadPoolExecutor(1, initializer=lab.lab.join_network) as inside:
        bench = inside.submit(Bench, lab).result()
        for name, containers in SETS.items():
            report.idle.append(ProcessorTime.wait_idle(IDLE, LONGEST_WAIT))
            report.times[name] = inside.submit(_keep, bench, containers, rounds, report).result()
            console.print(f"{name}: {_ms(percentile(report.times[name], 50))}")
        inside.submit(bench.engine.close).result()
    return report


if __name__ == "__main__":
    sys.exit(measure_rounds(__doc__, "capsule", _measure, rounds=30, of="each set of containers"))
