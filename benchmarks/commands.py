#!/usr/bin/env python3
"""What commands cost that have nothing to do, or little: whole processes, in turns with the start of Python.

Needs root; brings up a lab of its own with a stage in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._finish import measure_rounds
from benchmarks._measure import ProcessorTime, idle_line, percentile
from benchmarks._table import TableReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks._bench_lab import BenchLab
    from rich.console import Console

PLAIN = "python -c pass"
COMMANDS = {
    "provision, nothing to do": ["provision"],
    "status": ["status"],
    "reset cache": ["reset", "cache"],
    "exec cache -- true": ["exec", "cache", "--", "true"],
}
AIMS = {"provision, nothing to do": 0.3}
"""Seconds of a whole process."""
IDLE, LONGEST_WAIT = 0.95, 20.0


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    cpu: float
    """Seconds of processor time, the kernel's for it included."""


class Report(TableReport):
    """Runs by what was run."""

    columns = ("process", "p50", "p95", "processor time p50", "over python, p50", "aim")
    title = "Whole processes, in turns"

    def __init__(self, runs: Mapping[str, Sequence[Run]], idle: Sequence[float], version: str) -> None:
        super().__init__(version)
        self.runs = runs
        self.idle = idle

    def headlines(self) -> list[str]:
        return [idle_line(self.idle)]

    def rows(self) -> list[list[str]]:
        plain = percentile([run.seconds for run in self.runs[PLAIN]], 50)
        found: list[list[str]] = []
        for name, runs in self.runs.items():
            seconds = [run.seconds for run in runs]
            middle = percentile(seconds, 50)
            cpu = percentile([run.cpu for run in runs], 50)
            aim = f"< {_ms(AIMS[name])}" if name in AIMS else ""
            found.append([name, _ms(middle), _ms(percentile(seconds, 95)), _ms(cpu), _ms(middle - plain), aim])
        return found

    def to_json(self) -> dict[str, Any]:
        runs = {name: [asdict(run) for run in of_it] for name, of_it in self.runs.items()}
        return {"machine": self.machine.to_json(), "incus": self.version, "idle_before": list(self.idle), "runs": runs}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _run(argv: Sequence[str], env: Mapping[str, str]) -> Run:
    before, began = os.times(), time.monotonic()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - began, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu)


def _measure(lab: BenchLab, console: Console, rounds: int) -> Report:
    lab.stagegbo("provision")
    with tempfile.TemporaryDirectory(prefix="stagegbo-bench-") as folder:
        # As on anybody's machine, whatever the environment of this one says; and the tree stays as it is.
        env = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        base = [sys.executable, "-m", "pytest_stagegbo", "--lab", "-q"]
        ways = {PLAIN: [sys.executable, "-c", "pass"], **{name: [*base, *argv] for name, argv in COMMANDS.items()}}
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        for argv in ways.values():
            _run(argv, env)  # writes bytecode, and warms the caches
        idle = []
        for number in range(rounds):
            idle.append(ProcessorTime.wait_idle(IDLE, LONGEST_WAIT))
            order = list(ways) if number % 2 == 0 else list(ways)[::-1]
            for name in order:
                runs[name].append(_run(ways[name], env))
            shown = ", ".join(f"{name} {runs[name][-1].seconds:.2f} s" for name in ways)
            console.print(f"round {number + 1}: {shown}", markup=False)
    return Report(runs, idle, lab.lab.status().incus_version)


if __name__ == "__main__":
    sys.exit(measure_rounds(__doc__, "commands", _measure, rounds=20, of="each command"))
