"""Resets of a stage that is dirty, against the documented reset by hand and against a snapshot.

    sudo python benchmarks/reset.py [--rounds N] [--rival-rounds N] [--big] [--json FILE]
                                    [--markdown docs/benchmarks.md] [--keep]

Before each reset, keys, objects, files or rows are written again. A reset of tables stands beside the way of
pytest-postgresql and others: `CREATE DATABASE ... TEMPLATE`, then `DROP DATABASE`, on the same server, with the same
data. With `--big` there are rows for very many files and objects, and for databases of 200 MB and 2 GB, too. Runs on a
lab of its own (or `$STAGEGBO_LAB_NAME`), which it brings up and deletes again.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a script, and its modules are found by type checkers too

from benchmarks._bench_lab import BenchLab, bench_lab
from benchmarks._bench_stage import THREE, Bench
from benchmarks._finish import add_outputs, finish
from benchmarks._measure import ProcessorTime, idle_line, percentile
from benchmarks._table import TableReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from pytest_stagegbo.engine.stage import StageEngine

AIM_BY_HAND, HOPE_BY_HAND = 100, 300
AIM_RESTORE = 10
AIM_UNTOUCHED = 0.002
AIMS_TABLES = {"tables": 0.015, "tables, 200 MB": 0.03, "tables, 2000 MB": 0.03}
IDLE = 0.9
LONGEST_WAIT = 60.0
BIG = {"system": (5_000, 50_000), "drive": (2_000, 20_000)}
"""Files and objects, ten times as many each: what is linear takes at most ten times as long."""
BIG_ROUNDS = 5
DATABASES = (200, 2000)
"""Megabytes of databases, beside that of some 8 MB that the lab's production has."""


def _rounds(
    bench: Bench, names: Sequence[str], rounds: int, ways: dict[str, int], engine: StageEngine | None = None
) -> list[float]:
    bench.reset(names, engine)
    found = []
    for number in range(rounds):
        bench.pollute(names, number)
        seconds, outcomes = bench.reset(names, engine)
        found.append(seconds)
        for outcome in outcomes:
            key = f"{outcome.name} {outcome.way}"
            ways[key] = ways.get(key, 0) + 1
    return found


def _big_rounds(bench: Bench, name: str, count: int, ways: dict[str, int]) -> list[float]:
    bench.reset([name])
    found = []
    for _ in range(BIG_ROUNDS):
        bench.pollute_much(name, count)
        seconds, (outcome,) = bench.reset([name])
        found.append(seconds)
        ways[f"{name} {outcome.way}"] = ways.get(f"{name} {outcome.way}", 0) + 1
    return found


def _first_reset(bench: Bench) -> list[float]:
    return [bench.reset(["tables"])[0]]


def _untouched(bench: Bench, rounds: int) -> list[float]:
    """BotServer writes to cache every second: rounds in which it just did are not of something untouched."""
    found: list[float] = []
    while len(found) < rounds:
        seconds, outcomes = bench.reset(THREE)
        if all(outcome.way == "untouched" for outcome in outcomes):
            found.append(seconds)
    return found


ROOMY = {"STAGEGBO_DISK_LIMIT": "15GB"}
"""A database's template has it twice, and the copy once more in the write-ahead log."""


def grow_production(lab: BenchLab, megabytes: int) -> None:
    """Make production's database as large, in rows of a kilobyte that are not compressed."""
    query = (
        "CREATE TABLE IF NOT EXISTS bulk (a text); TRUNCATE bulk; "
        f"INSERT INTO bulk SELECT repeat(md5(i::text), 30) FROM generate_series(1, {megabytes * 1000}) i; CHECKPOINT"
    )
    psql = ("runuser", "-u", "postgres", "--", "psql", "-Xq", "botserver", "-c", query)
    lab.run("incus", "exec", "tables", "--", *psql)


class Report(TableReport):
    """What was measured, in seconds, and what follows from it."""

    def __init__(
        self, times: dict[str, list[float]], ways: dict[str, dict[str, int]], idle: list[float], version: str
    ) -> None:
        self.times = times
        self.ways = ways
        self.idle = idle
        super().__init__(version)

    def ratio(self, way: str, rival: str) -> float:
        return percentile(self.times[rival], 50) / percentile(self.times[way], 50)

    def headlines(self) -> list[str]:
        untouched = percentile(self.times["all three, untouched"], 50)
        return [
            f"cache, drive and system dirty, proof included: {self.ratio('all three', 'by hand'):.0f} times as fast as "
            f"by hand (medians; aim {AIM_BY_HAND}, hope {HOPE_BY_HAND})",
            f"all three untouched: {_ms(untouched)} (median; aim {_ms(AIM_UNTOUCHED)})",
            f"tables by name: {self.ratio('tables', 'tables, snapshot restore'):.0f} times as fast as a snapshot "
            f"restore (medians; aim {AIM_RESTORE})",
            *self._beside_templates(),
            idle_line(self.idle),
        ]

    def _beside_templates(self) -> list[str]:
        found = []
        for name, aim in AIMS_TABLES.items():
            if f"{name}, template" in self.times:
                ours, theirs = (percentile(self.times[each], 50) for each in (name, f"{name}, template"))
                found.append(f"{name}: {_ms(ours)} (median; aim {_ms(aim)}), a database's template {_ms(theirs)}")
        return found

    def rows(self) -> list[list[str]]:
        rows = []
        for name, times in self.times.items():
            ways = ", ".join(f"{way} {count}" for way, count in sorted(self.ways.get(name, {}).items()))
            figures = [_ms(percentile(times, percent)) for percent in (50, 95)]
            rows.append([name, str(len(times)), *figures, _ms(min(times)), _ms(max(times)), ways])
        return rows

    columns = ("reset of", "rounds", "p50", "p95", "fastest", "slowest", "done by")
    left = frozenset({0, 6})

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "incus": self.version,
            "times": self.times,
            "ways": self.ways,
            "idle": self.idle,
        }


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if abs(seconds) >= 0.02 else f"{seconds * 1000:.1f} ms"


def _measure(lab: BenchLab, console: Console, rounds: int, rival_rounds: int, *, big: bool) -> Report:
    lab.stagegbo("provision")
    times: dict[str, list[float]] = {}
    ways: dict[str, dict[str, int]] = {}
    idle: list[float] = []
    with ThreadPoolExecutor(1, initializer=lab.lab.join_network) as inside:
        bench = inside.submit(Bench, lab).result()

        def measure(name: str, call: Callable[[], list[float]]) -> None:
            idle.append(ProcessorTime.wait_idle(IDLE, LONGEST_WAIT))
            times[name] = inside.submit(call).result()
            console.print(f"{name}: {_ms(percentile(times[name], 50))} ({idle[-1]:.0%} of the cores idle before)")

        def dirty(*names: str) -> Callable[[], list[float]]:
            key = names[0] if len(names) == 1 else "all three"
            return lambda: _rounds(bench, names, rounds, ways.setdefault(key, {}))

        def by_hand() -> list[float]:
            found = []
            for number in range(rival_rounds):
                bench.pollute(THREE, number)
                found.append(bench.by_hand(THREE))
            return found

        def restores() -> list[float]:
            engine = bench.another(tables="restore")
            found = _rounds(bench, ["tables"], rival_rounds, ways.setdefault("tables, snapshot restore", {}), engine)
            engine.close()
            return found

        measure("by hand", by_hand)
        measure("all three", dirty(*THREE))
        for name in THREE:
            measure(name, dirty(name))
        measure("all three, untouched", lambda: _untouched(bench, rounds))
        measure("tables, snapshot restore", restores)
        measure("tables", dirty("tables"))
        measure("tables, template", partial(bench.template, max(rival_rounds, 10)))
        for name, counts in BIG.items() if big else ():
            for count in counts:
                key = f"{name}, {count:,} {'files' if name == 'system' else 'objects'}"
                measure(key, partial(_big_rounds, bench, name, count, ways.setdefault(key, {})))
        inside.submit(bench.engine.close).result()
        for megabytes in DATABASES if big else ():
            grow_production(lab, megabytes)
            lab.stagegbo("provision", "--recreate", env=ROOMY)
            bench = inside.submit(partial(Bench, lab, env=ROOMY)).result()
            names = [f"tables, {megabytes} MB{what}" for what in (", first reset", "", ", template")]
            measure(names[0], partial(_first_reset, bench))
            measure(names[1], partial(_rounds, bench, ["tables"], min(rounds, 20), ways.setdefault(names[1], {})))
            measure(names[2], partial(bench.template, rival_rounds))
            inside.submit(bench.engine.close).result()
    return Report(times, ways, idle, lab.lab.status().incus_version)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="of each of our ways (default 200)")
    parser.add_argument("--rival-rounds", type=int, default=5, help="by hand, and of restores (default 5)")
    parser.add_argument("--big", action="store_true", help="also with very many files and objects")
    add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.rival_rounds < 1:
        parser.error("--rounds and --rival-rounds must be at least 1")

    def measure(console: Console) -> Report:
        with bench_lab(keep=arguments.keep) as lab:
            return _measure(lab, console, arguments.rounds, arguments.rival_rounds, big=arguments.big)

    return finish(measure, arguments, "reset")


if __name__ == "__main__":
    sys.exit(main())
