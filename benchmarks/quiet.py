#!/usr/bin/env python3
"""Quiet tests: how many find the cache empty right after its reset, and what freezing and thawing costs.

Needs root; brings up a lab of its own with a stage in it, whose BotServer writes to the cache every second.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._bench_lab import bench_lab
from benchmarks._finish import add_outputs, finish
from benchmarks._measure import Machine, percentile
from benchmarks._table import markdown_table, shown_table

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.locks import AWAKE, STAGE
from pytest_stagegbo.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks._bench_lab import BenchLab
    from rich.console import Console

TESTS = """
import os
import pytest

pytestmark = [pytest.mark.stage_reset("cache")]
if "QUIET" in os.environ:
    pytestmark.append(pytest.mark.stage_quiet)


@pytest.mark.parametrize("number", range({count}))
def test_the_cache_is_empty(stage_valkey, number):
    assert stage_valkey.dbsize() == 0
"""
WAYS = {"not quiet": (False, "-pno:xdist"), "quiet": (True, "-pno:xdist"), "quiet, -n 4": (True, "-n4")}
AIMS = {"freeze": 0.015, "thaw": 0.015, "freeze what is frozen": 0.001}


@dataclass(frozen=True, slots=True)
class Session:
    tests: int
    failed: int
    seconds: float


class Report:
    def __init__(self, sessions: Mapping[str, Session], changes: Mapping[str, Sequence[float]], version: str) -> None:
        self.sessions = sessions
        self.changes = changes
        self.version = version
        self.machine = Machine.this()

    def tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        sessions: list[tuple[str, ...]] = [
            (name, str(each.tests), str(each.failed), f"{each.seconds:.0f} s") for name, each in self.sessions.items()
        ]
        changes: list[tuple[str, ...]] = [
            (name, _ms(percentile(times, 50)), _ms(percentile(times, 95)), f"< {AIMS[name] * 1000:.0f} ms")
            for name, times in self.changes.items()
        ]
        return [(("session", "tests", "failed", "took"), sessions), (("change", "p50", "p95", "aim"), changes)]

    def print(self, console: Console) -> None:
        for columns, rows in self.tables():
            console.print(shown_table(columns, rows))

    def to_json(self) -> dict[str, Any]:
        sessions = {name: asdict(each) for name, each in self.sessions.items()}
        changes = {name: list(times) for name, times in self.changes.items()}
        return {"machine": self.machine.to_json(), "incus": self.version, "sessions": sessions, "changes": changes}

    def markdown(self) -> str:
        parts = [f"Measured on {self.machine}; Incus {self.version}."]
        for columns, rows in self.tables():
            parts.append(markdown_table(columns, rows))
        return "\n\n".join(parts)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _session(folder: Path, count: int, quiet: bool, workers: str) -> Session:
    (folder / "test_quiet.py").write_text(TESTS.format(count=count))
    environ = {**os.environ, **({"QUIET": "1"} if quiet else {})}
    argv = [sys.executable, "-m", "pytest", "--stage-lab", "-q", "--tb=no", "-p", "no:cacheprovider", workers]
    began = time.monotonic()
    done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    if done.returncode not in {0, 1} or found.get("passed", 0) + found.get("failed", 0) != count:
        raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
    return Session(count, found.get("failed", 0), seconds)


def _changes(lab: BenchLab, folder: Path, rounds: int) -> dict[str, list[float]]:
    """What a quiet test's process does to the container, with the locks that it does it with left out."""
    file = folder / "stagegbo.toml"
    file.write_text(f'incus.endpoint = "{lab.lab.socket}"\n')
    settings = load(file, folder, {}).settings
    file.unlink()
    engine = StageEngine(settings, Connection(settings.incus))
    engine.clone_writer()
    times: dict[str, list[float]] = {name: [] for name in AIMS}

    def timed(name: str, change: Callable[[], None]) -> None:
        began = time.monotonic()
        change()
        times[name].append(time.monotonic() - began)

    lock = engine.lock()
    for _ in range(rounds + 1):
        lock.acquire("benchmark", shared=(STAGE,), exclusive=(), quiet=(AWAKE, "system"))
        timed("freeze", lambda: engine.freezer.freeze(["system"], "benchmark"))
        timed("freeze what is frozen", lambda: engine.freezer.freeze(["system"], "benchmark"))
        timed("thaw", lambda: engine.freezer.thaw(["system"]))
        lock.release()
    return {name: each[1:] for name, each in times.items()}  # the first one looks whose clone it is


def _measure(lab: BenchLab, console: Console, arguments: argparse.Namespace) -> Report:
    lab.stagegbo("provision")
    sessions: dict[str, Session] = {}
    with tempfile.TemporaryDirectory(prefix="stagegbo-bench-") as place:
        folder = Path(place)
        changes = _changes(lab, folder, arguments.rounds)
        for name, (quiet, workers) in WAYS.items():
            sessions[name] = each = _session(folder, arguments.tests, quiet, workers)
            console.print(f"{name}: {each.failed} of {each.tests} failed, {each.seconds:.0f} s", markup=False)
    return Report(sessions, changes, lab.lab.status().incus_version)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tests", type=int, default=2000, help="in each session (default 2000)")
    parser.add_argument("--rounds", type=int, default=50, help="of freezing and thawing (default 50)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.tests) < 1:
        parser.error("--rounds and --tests must be at least 1")

    def measure(console: Console) -> Report:
        with bench_lab(keep=arguments.keep) as lab:
            return _measure(lab, console, arguments)

    return finish(measure, arguments, "quiet")


if __name__ == "__main__":
    sys.exit(main())
