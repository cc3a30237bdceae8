"""What production's disk and processor feel of the stage, on ordinary and simple quotas, on its pool and beside it.

    sudo python benchmarks/production.py [--quick] [--quota KIND] [--pool-layout LAYOUT] [--watch disk|cpu]
                                         [--phases NAME,...] [--containers NAME,...] [--resets N] [--restores N]
                                         [--slots N] [--alone SECONDS] [--patience SECONDS] [--json FILE]
                                         [--markdown docs/benchmarks.md] [--keep]

Runs on a lab of its own, whose production it replaces for each kind of quotas, and deletes it in the end. See
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a script, and its modules are found by type checkers too

from benchmarks._bench_lab import POOL, BenchLab
from benchmarks._bench_stage import THREE, Bench
from benchmarks._finish import add_outputs, finish
from benchmarks._living import Production, rate
from benchmarks._measure import Machine, ProcessorTime, percentile
from benchmarks._table import markdown_table, shown_table

from pytest_stagegbo.cli.console import console_progress
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.incus.localhost import LocalHost
from pytest_stagegbo.incus.reader import Reader
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.lab.pools import STAGE_POOL
from pytest_stagegbo.settings import IncusSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SLOW, STUCK = 0.1, 1.0
"""Seconds of an fsync that are counted."""
IDLE = 0.9
AIM_ADDED = 0.05
"""Seconds that p99.9 may grow by, on simple quotas and on a pool of the stage's own."""
WORST = 2.815
"""Seconds of the longest fsync on a shared pool with ordinary quotas before anything was done about it."""
PHASES = ("provision", "resets", "restores", "recreate", "refresh", "slots", "destroy")
WIDTH = 130
"""Columns of text that the tables need."""
SIX = ("tables", "vault", "cache", "drive", "llm", "system")
QUICK = {
    "watch": ["disk"],
    "containers": "vault,cache,llm",
    "resets": 20,
    "restores": 2,
    "slots": 2,
    "alone": 6.0,
    "patience": 5.0,
}
"""What `--quick` sets, unless it is named: all four combinations in six minutes of an idle machine."""
DEFAULT = {
    "watch": ["disk", "cpu"],
    "containers": ",".join(SIX),
    "resets": 200,
    "restores": 10,
    "slots": 8,
    "alone": 60.0,
    "patience": 60.0,
}
A_STAGE, KEPT_FREE = 1 << 30, 2 << 30
"""Bytes of memory for each slot, and what must stay."""


@dataclass(frozen=True, slots=True)
class Combination:
    """How production and stage share what they stand on."""

    quota: str
    layout: str

    def __str__(self) -> str:
        return f"{self.quota} quotas, {'shared pool' if self.layout == 'shared' else 'pool of its own'}"

    @property
    def pool(self) -> str:
        """That the stage is on."""
        return POOL if self.layout == "shared" else STAGE_POOL

    def env(self, containers: Sequence[str]) -> dict[str, str]:
        own = {} if self.layout == "shared" else {"STAGEGBO_STORAGE__POOL": STAGE_POOL}
        without = {f"STAGEGBO_CONTAINERS__{name.upper()}": "false" for name in SIX if name not in containers}
        # The lab's pool is small, and eight slots are to fit: none of them grows here.
        return {"STAGEGBO_SLOTS__DISK": "150MB", **own, **without}


@dataclass(frozen=True, slots=True)
class Phase:
    """One thing that the stage did, and what production felt until btrfs had cleaned up behind it."""

    name: str
    seconds: float
    """That it took."""
    cleaning: float
    """Seconds after it until no deleted subvolume was left."""
    left: int
    """Deleted subvolumes that were left when nobody waited any longer."""
    latencies: tuple[float, ...]
    """Seconds of each fsync that began meanwhile."""
    counted: float
    """Per second, by all counters."""

    def over(self, seconds: float) -> int:
        return sum(each > seconds for each in self.latencies)


@dataclass(frozen=True, slots=True)
class Run:
    """One combination, once."""

    combination: Combination
    watched: str
    """`disk`: production writes and is idle otherwise. `cpu`: it counts on all cores as well."""
    idle_before: float
    """Share of the cores that was idle before it: below 1, others were at work."""
    phases: tuple[Phase, ...]

    @property
    def alone(self) -> Phase:
        return next(phase for phase in self.phases if phase.name == ALONE)

    @property
    def together(self) -> Phase:
        """Everything that the stage did."""
        did = [phase for phase in self.phases if phase.name != ALONE]
        seconds = sum(phase.seconds + phase.cleaning for phase in did)
        return Phase(
            "all of it",
            sum(phase.seconds for phase in did),
            sum(phase.cleaning for phase in did),
            did[-1].left,
            tuple(each for phase in did for each in phase.latencies),
            sum(phase.counted * (phase.seconds + phase.cleaning) for phase in did) / seconds,
        )

    def share(self, phase: Phase) -> float:
        """Of what production counted alone."""
        return phase.counted / self.alone.counted if self.alone.counted else 0.0


ALONE = "without the stage"


class Doing:
    """What the stage does, one thing after the other."""

    def __init__(self, lab: BenchLab, combination: Combination, arguments: argparse.Namespace) -> None:
        self._lab = lab
        self._combination = combination
        self._arguments = arguments
        self._env = combination.env(arguments.containers)
        connection = Connection(IncusSettings(endpoint=str(lab.lab.socket)))
        self._reader = Reader(connection)
        self._host = LocalHost(str(lab.lab.socket))

    def phases(self) -> dict[str, Callable[[], None]]:
        """By name. The same for every combination."""
        every: dict[str, Callable[[], None]] = {
            "provision": lambda: self._run("provision"),
            "resets": lambda: self._resets(self._having(THREE), self._arguments.resets),
            "restores": lambda: self._resets(self._having(("vault", "llm")), self._arguments.restores),
            "recreate": lambda: self._run("provision", "--recreate"),
            "refresh": lambda: self._run("provision", "--refresh", self._arguments.containers[0]),
            "slots": lambda: self._run("provision", "--slots", str(slots(self._arguments.slots))),
            "destroy": lambda: self._run("destroy", "--yes"),
        }
        return {name: every[name] for name in PHASES if name in self._arguments.phases}

    def _having(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name in self._arguments.containers)

    def _run(self, *arguments: str) -> None:
        self._lab.stagegbo(*arguments, env=self._env)

    def _resets(self, names: tuple[str, ...], rounds: int) -> None:
        def work() -> None:
            folder = f"/var/lib/incus/storage-pools/{self._combination.pool}"
            bench = Bench(self._lab, env=self._env, pool=folder)
            for number in range(rounds):
                bench.pollute([name for name in names if name in THREE], number)
                bench.reset(names)
            bench.engine.close()

        with ThreadPoolExecutor(1, initializer=self._lab.lab.join_network) as inside:
            inside.submit(work).result()

    def clean(self) -> int:
        """Wait until no deleted subvolume is left; how many are. Nothing is synced: production would feel that."""
        deadline = time.monotonic() + self._arguments.patience
        while left := sum(
            self._host.uncleaned(self._reader.pool(name)) or 0 for name in {POOL, self._combination.pool}
        ):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)  # a poll with a deadline: btrfs tells nobody
        return left


def slots(wanted: int) -> int:
    """As many as there is memory for, and one at least."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return max(1, min(wanted, (available - KEPT_FREE) // A_STAGE))


def measure_one(lab: BenchLab, combination: Combination, watched: str, arguments: argparse.Namespace) -> Run:
    doing = Doing(lab, combination, arguments)
    idle = ProcessorTime.wait_idle(IDLE, arguments.patience)
    production = Production(lab, (os.cpu_count() or 1) if watched == "cpu" else 0)
    times: list[tuple[str, float, float, float, int]] = []
    with production.living():
        began = time.monotonic()
        time.sleep(arguments.alone)  # what is looked at
        times.append((ALONE, began, time.monotonic(), time.monotonic(), 0))
        for name, do in doing.phases().items():
            began = time.monotonic()
            do()
            ended = time.monotonic()
            left = doing.clean()
            times.append((name, began, ended, time.monotonic(), left))
    latencies, counts = production.latencies(), production.counts()
    phases = [
        Phase(
            name,
            ended - began,
            cleaned - ended,
            left,
            tuple(took for at, took in latencies if began <= at < cleaned),
            sum(rate(each, began, cleaned) for each in counts),
        )
        for name, began, ended, cleaned, left in times
    ]
    return Run(combination, watched, idle, tuple(phases))


class Report:
    """All combinations."""

    def __init__(self, runs: Sequence[Run], version: str) -> None:
        self.runs = runs
        self.machine = Machine.this()
        self.version = version

    columns = ("", "takes", "cleaning", "fsyncs", "p50", "p99", "p99.9", "longest", ">100ms", ">1s", "processor")

    def rows(self, run: Run) -> list[list[str]]:
        rows = []
        for phase in (*run.phases, run.together):
            found = phase.latencies
            if not found:
                continue
            figures = [_ms(percentile(found, percent)) for percent in (50, 99, 99.9)]
            share = f"{run.share(phase):.0%}" if run.watched == "cpu" else "-"
            counts = (str(phase.over(SLOW)), str(phase.over(STUCK)))
            cleaning = f"{phase.cleaning:.1f} s" + (f", {phase.left} left" if phase.left else "")
            first = [phase.name, f"{phase.seconds:.1f} s", cleaning, str(len(found))]
            rows.append([*first, *figures, _ms(max(found)), *counts, share])
        return rows

    def headlines(self) -> list[str]:
        lines = []
        for run in self.runs:
            alone, together = run.alone.latencies, run.together.latencies
            if run.watched == "cpu":
                lines.append(
                    f"{run.combination}: production, which wanted all cores, got {run.share(run.together):.0%} of them "
                    "while the stage worked"
                )
                continue
            added = percentile(together, 99.9) - percentile(alone, 99.9)
            aim = f"aim {_ms(AIM_ADDED)}"
            if run.combination == Combination("ordinary", "shared"):
                aim = f"aim for the longest {_ms(WORST / 3)}"
            lines.append(
                f"{run.combination}: the stage added {_ms(added)} to p99.9 of production's fsync; the longest took "
                f"{_ms(max(together))}, {run.together.over(STUCK)} more than a second ({aim})"
            )
        idle = percentile([run.idle_before for run in self.runs], 50)
        lines.append(f"before the runs {idle:.0%} of the cores were idle (median): where others work, read no figure")
        return lines

    def to_json(self) -> dict[str, Any]:
        runs = []
        for run in self.runs:
            found = asdict(run)
            for phase in found["phases"]:
                phase["latencies"] = [round(each, 5) for each in phase["latencies"]]
            runs.append(found)
        return {"machine": self.machine.to_json(), "incus": self.version, "runs": runs}

    def show(self, run: Run, console: Console) -> None:
        console.print(shown_table(self.columns, self.rows(run), title=f"{run.combination} ({run.watched})"))

    def print(self, console: Console) -> None:
        if console.width < WIDTH:  # piped, or a small terminal: figures that are cut off are none
            console = Console(file=console.file, width=WIDTH)
        console.print(f"{self.machine}; Incus {self.version}", soft_wrap=True)
        for run in self.runs:
            self.show(run, console)
        for line in self.headlines():
            console.print(line, soft_wrap=True)

    def markdown(self) -> str:
        headlines = "\n".join(f"- {line[0].upper()}{line[1:]}." for line in self.headlines())
        parts = [f"Measured on {self.machine}; Incus {self.version}.", headlines]
        for run in self.runs:
            title = f"**{str(run.combination).capitalize()}**"
            parts.append(f"{title}, production counts on all cores" if run.watched == "cpu" else title)
            parts.append(markdown_table(self.columns, self.rows(run)))
        return "\n\n".join(parts)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if abs(seconds) >= 0.02 else f"{seconds * 1000:.1f} ms"


def combinations(arguments: argparse.Namespace) -> list[Combination]:
    layouts = list(dict.fromkeys(arguments.pool_layout or ["shared", "own"]))
    return [Combination(quota, layout) for quota in arguments.quota or ["ordinary", "simple"] for layout in layouts]


def _measure(console: Console, arguments: argparse.Namespace) -> Report:
    os.environ["STAGEGBO_LAB_NAME"] = f"{os.environ.get('STAGEGBO_LAB_NAME') or 'bench'}-production"
    lab = Lab.find()
    runs: list[Run] = []
    version = ""
    try:
        made = ""
        for combination in combinations(arguments):
            if combination.quota != made:
                with console_progress() as progress:
                    lab.up(progress, fresh=True, quota=combination.quota, pool_layout="own")
                made, version = combination.quota, lab.status().incus_version
            for watched in arguments.watch:
                with ThreadPoolExecutor(1, initializer=lab.join_network) as inside:
                    bench = BenchLab(lab, inside)
                    runs.append(measure_one(bench, combination, watched, arguments))
                    bench.stagegbo("destroy", "--yes", env=combination.env(arguments.containers))
                # At once: a run that is cut off later has not been in vain.
                Report((), "").show(runs[-1], Console(file=console.file, width=max(WIDTH, console.width)))
    finally:
        if not arguments.keep:
            lab.down(purge=True)
    return Report(runs, version)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quota", action="append", choices=("ordinary", "simple"), help="only these (default: both)")
    parser.add_argument("--pool-layout", action="append", choices=("shared", "own"), help="only these (default: both)")
    parser.add_argument(
        "--watch",
        action="append",
        choices=("disk", "cpu"),
        help="disk: production writes; cpu: it counts on all cores as well (default: one after the other)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter phases, three containers, disk alone")
    parser.add_argument("--containers", help="those that the stage has (default: all six)")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"default: {','.join(PHASES)}")
    parser.add_argument("--resets", type=int, help="of cache, drive and system, hot (default 200)")
    parser.add_argument("--restores", type=int, help="of vault and llm (default 10)")
    parser.add_argument("--slots", type=int, help="to resize the stage to (default 8, or fewer where memory is short)")
    parser.add_argument("--alone", type=float, help="seconds without the stage (default 60)")
    parser.add_argument("--patience", type=float, help="seconds to wait for btrfs, or idle cores (default 60)")
    add_outputs(parser)
    arguments = parser.parse_args()
    for name, value in (QUICK if arguments.quick else DEFAULT).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    arguments.phases, arguments.containers = arguments.phases.split(","), arguments.containers.split(",")
    if not {"cache", "vault"} <= set(arguments.containers) <= set(SIX):
        parser.error(f"--containers needs cache and vault, and may have {', '.join(SIX)}")
    if unknown := set(arguments.phases) - set(PHASES):
        parser.error(f"no such phases: {', '.join(sorted(unknown))}")
    if min(arguments.resets, arguments.restores, arguments.slots) < 1 or arguments.alone < 1:
        parser.error("--resets, --restores, --slots and --alone must be at least 1")
    return finish(lambda console: _measure(console, arguments), arguments, "production")


if __name__ == "__main__":
    sys.exit(main())
