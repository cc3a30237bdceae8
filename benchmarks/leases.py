#!/usr/bin/env python3
"""What a session's lease costs: its first lock of a stage and its end, with a lease and without, in turns.

Needs root; brings up a lab of its own with a stage in it. Each round is as on a host of its own, with its own locks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._bench_lab import bench_lab
from benchmarks._bench_stage import Bench
from benchmarks._finish import add_outputs, finish
from benchmarks._measure import ProcessorTime, alternate, idle_line, percentile
from benchmarks._table import TableReport
from msgspec.structs import replace

from pytest_stagegbo import locks
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.locks import STAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks._bench_lab import BenchLab
    from rich.console import Console

    from pytest_stagegbo.settings import Settings

AIM = 0.03
"""Seconds that a lease adds to a session."""
CONTAINER = "cache"
IDLE, LONGEST_WAIT = 0.95, 20.0


@dataclass(frozen=True, slots=True)
class Session:
    """What one session does about the stage's locks."""

    first: float
    """Seconds for its first lock."""
    further: float
    """For each of its tests' locks after that."""
    end: float
    """For giving up what it has, when the process ends."""
    requests: int


class Report(TableReport):
    """Sessions with a lease and without."""

    columns = ("what", "without a lease", "with one", "p95", "difference", "aim")
    title = "One session"

    def __init__(
        self, without: Sequence[Session], leased: Sequence[Session], idle: Sequence[float], version: str
    ) -> None:
        super().__init__(version)
        self.without = without
        self.leased = leased
        self.idle = idle

    def headlines(self) -> list[str]:
        return [f"a session's lease takes {max(each.requests for each in self.leased)} requests", idle_line(self.idle)]

    def rows(self) -> list[list[str]]:
        def row(what: str, seconds: Callable[[Session], float], aim: str = "") -> list[str]:
            without, leased = ([seconds(each) for each in sessions] for sessions in (self.without, self.leased))
            before, after = percentile(without, 50), percentile(leased, 50)
            return [what, _ms(before), _ms(after), _ms(percentile(leased, 95)), _ms(after - before), aim]

        return [
            row("first lock", lambda each: each.first),
            row("each further test's locks", lambda each: each.further),
            row("end of the process", lambda each: each.end),
            row("the session", lambda each: each.first + each.end, f"< {_ms(AIM)}"),
        ]

    def to_json(self) -> dict[str, Any]:
        found = {
            "without": [asdict(each) for each in self.without],
            "leased": [asdict(each) for each in self.leased],
        }
        return {"machine": self.machine.to_json(), "incus": self.version, "idle_before": list(self.idle), **found}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _session(settings: Settings, tests: int) -> Session:
    """As a host does that has never used the stage."""
    with tempfile.TemporaryDirectory(prefix="stagegbo-bench-") as name:
        Path(name).chmod(0o1777)
        locks.PARENTS = (Path(name), Path(name))
        connection = Connection(settings.incus)
        connection.server()
        engine = StageEngine(settings, connection)
        lock = engine.lock()
        lock.make_folder()

        def use(test: str) -> float:
            began = time.perf_counter()
            lock.acquire(test, shared=[STAGE, CONTAINER])
            seconds = time.perf_counter() - began
            lock.release()
            return seconds

        before = connection.requests
        first = use("the first test")
        further = sum(use(f"test {number}") for number in range(tests)) / tests
        began = time.perf_counter()
        if engine.lease is not None:
            engine.lease.close()
        return Session(first, further, time.perf_counter() - began, connection.requests - before)


def _measure(lab: BenchLab, console: Console, rounds: int, tests: int) -> Report:
    lab.stagegbo("provision")
    settings = Bench(lab).settings
    leased = replace(settings, timeouts=replace(settings.timeouts, lease=60.0))
    without = replace(settings, timeouts=replace(settings.timeouts, lease=0.0))
    for each in (leased, without):  # imports, and the project of the leases
        _session(each, 1)
    idle = [ProcessorTime.wait_idle(IDLE, LONGEST_WAIT)]
    found = list(alternate(rounds, lambda: _session(without, tests), lambda: _session(leased, tests)))
    idle.append(ProcessorTime.wait_idle(0.0, LONGEST_WAIT))
    console.print(f"{rounds} sessions of each", markup=False)
    return Report([one for one, _ in found], [two for _, two in found], idle, lab.lab.status().incus_version)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="sessions of each (default 100)")
    parser.add_argument("--tests", type=int, default=100, help="of each session (default 100)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.tests) < 1:
        parser.error("--rounds and --tests must be at least 1")

    def measure(console: Console) -> Report:
        with bench_lab(keep=arguments.keep) as lab:
            return _measure(lab, console, arguments.rounds, arguments.tests)

    return finish(measure, arguments, "leases")


if __name__ == "__main__":
    sys.exit(main())
