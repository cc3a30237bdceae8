"""A stage that is dirty, brought to another baseline, against a database's template and against snapshots.

    sudo python benchmarks/baseline.py [--rounds N] [--rival-rounds N] [--json FILE]
                                       [--markdown docs/benchmarks.md] [--keep]

Before each round, keys, objects, files and rows are written again. The template is pytest-postgresql's and others' way,
for the database alone: `CREATE DATABASE ... TEMPLATE`, then `DROP DATABASE`, on the same server, with the same data.
The snapshots are Incus's own, of the same four containers, restored at once and started. Runs on a lab of its own (or
`$STAGEGBO_LAB_NAME`), which it brings up and deletes again.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a script, and its modules are found by type checkers too

from benchmarks._bench_lab import BenchLab, bench_lab
from benchmarks._bench_stage import Bench
from benchmarks._finish import add_outputs, finish
from benchmarks._measure import ProcessorTime, idle_line, percentile
from benchmarks.reset import IDLE, LONGEST_WAIT, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

FOUR = ("cache", "drive", "system", "tables")
AIM = 0.5
OTHER, SAME, RIVAL = "all four, to another baseline", "all four, to the same baseline", "all four, snapshots"


class BaselineReport(Report):
    """What was measured of baselines."""

    def headlines(self) -> list[str]:
        other = percentile(self.times[OTHER], 50)
        tables = [percentile(self.times[name], 50) for name in ("tables, to another baseline", "tables, template")]
        return [
            f"all four to another baseline, proof included: {_ms(other)} (median; aim {_ms(AIM)}), "
            f"{self.ratio(OTHER, RIVAL):.0f} times as fast as restored snapshots",
            f"tables alone to another baseline: {_ms(tables[0])} (median), a database's template {_ms(tables[1])}",
            idle_line(self.idle),
        ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _go(
    bench: Bench, names: tuple[str, ...], baselines: tuple[str, ...], rounds: int, ways: dict[str, int]
) -> list[float]:
    """Seconds of going to these baselines in turns."""
    found = []
    for number in range(rounds):
        bench.pollute(names, 1000 + number)
        began = time.monotonic()
        outcomes = bench.engine.reset(names, baseline=baselines[number % len(baselines)])
        found.append(time.monotonic() - began)
        for outcome in outcomes:
            ways[f"{outcome.name} {outcome.way}"] = ways.get(f"{outcome.name} {outcome.way}", 0) + 1
    return found


def _save(bench: Bench, rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        began = time.monotonic()
        bench.engine.baselines.save("again", replace=True)
        found.append(time.monotonic() - began)
    return found


def _snapshots(bench: Bench, lab: BenchLab, rounds: int) -> list[float]:
    """Seconds until all four are restored, started and answer."""

    def incus(*words: str) -> None:
        lab.run("incus", *words, "--project=STAGE-GBO")

    lab.run("incus", "project", "set", "STAGE-GBO", "restricted.containers.lowlevel=allow")
    for name in FOUR:
        incus("snapshot", "create", name, "bench")
    found = []
    for number in range(rounds):
        bench.pollute(FOUR, 2000 + number)
        began = time.monotonic()
        with ThreadPoolExecutor(len(FOUR)) as threads:
            list(threads.map(lambda name: incus("snapshot", "restore", name, "bench"), FOUR))
        containers = [bench.settings.containers[name] for name in FOUR]
        lab.wait_answering([(each.name, str(each.address), probe) for each in containers for probe in each.probes])
        found.append(time.monotonic() - began)
    for name in FOUR:
        incus("snapshot", "delete", name, "bench")
    lab.run("incus", "project", "set", "STAGE-GBO", "restricted.containers.lowlevel=block")
    return found


def _measure(lab: BenchLab, console: Console, rounds: int, rival_rounds: int) -> Report:
    lab.stagegbo("provision")
    times: dict[str, list[float]] = {}
    ways: dict[str, dict[str, int]] = {}
    idle: list[float] = []
    with ThreadPoolExecutor(1, initializer=lab.lab.join_network) as inside:
        bench = inside.submit(Bench, lab).result()

        def prepare() -> None:
            bench.engine.reset(FOUR)
            for number, name in enumerate(("one", "two")):
                bench.pollute(FOUR, number)
                bench.engine.baselines.save(name)

        def measure(name: str, call: Callable[[], list[float]]) -> None:
            idle.append(ProcessorTime.wait_idle(IDLE, LONGEST_WAIT))
            times[name] = inside.submit(call).result()
            console.print(f"{name}: {_ms(percentile(times[name], 50))} ({idle[-1]:.0%} of the cores idle before)")

        def go(name: str, names: tuple[str, ...], *baselines: str) -> None:
            measure(name, partial(_go, bench, names, baselines, rounds, ways.setdefault(name, {})))

        inside.submit(prepare).result()
        go(OTHER, FOUR, "one", "two")
        go(SAME, FOUR, "one")
        go("tables, to another baseline", ("tables",), "one", "two")
        go("tables, to the same baseline", ("tables",), "one")
        measure("save all four", partial(_save, bench, max(rival_rounds, 10)))
        inside.submit(bench.engine.reset, FOUR).result()
        measure("tables, template", partial(bench.template, max(rival_rounds, 10)))
        measure(RIVAL, partial(_snapshots, bench, lab, rival_rounds))
        inside.submit(bench.engine.close).result()
    return BaselineReport(times, ways, idle, lab.lab.status().incus_version)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="of each of our ways (default 50)")
    parser.add_argument("--rival-rounds", type=int, default=5, help="of restored snapshots (default 5)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.rival_rounds < 1:
        parser.error("--rounds and --rival-rounds must be at least 1")

    def measure(console: Console) -> Report:
        with bench_lab(keep=arguments.keep) as lab:
            return _measure(lab, console, arguments.rounds, arguments.rival_rounds)

    return finish(measure, arguments, "baseline")


if __name__ == "__main__":
    sys.exit(main())
