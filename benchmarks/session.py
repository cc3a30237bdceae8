"""What the plugin adds to pytest when the stage is already there: to a run, to a test, with each reset, with a report.

    sudo python benchmarks/session.py [--rounds N] [--tests N] [--resets N] [--json FILE]
                                      [--markdown docs/benchmarks.md] [--keep]

The same test files are run by pytest without the plugin, where `stage_gbo` is a fixture that gives nothing, with
`--stage-lab`, and with `--stage-report` as well. Runs on a lab of its own (or `$STAGEGBO_LAB_NAME`), which it brings up
and deletes again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a script, and its modules are found by type checkers too

from benchmarks._bench_lab import BenchLab, bench_lab
from benchmarks._finish import add_outputs, finish
from benchmarks._measure import Machine, ProcessorTime, alternate, idle_line, percentile
from benchmarks._table import markdown_table, shown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

AIM_SESSION = 0.3
AIM_TEST = 0.0012
IDLE = 0.9
"""Share of the cores that has to be idle before a round."""
LONGEST_WAIT = 60.0
"""Seconds to wait for that."""
RESETS = {"cache": ("cache",), "drive": ("drive",), "system": ("system",), "all three": ("cache", "drive", "system")}

TESTS = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_that_asks_for_no_reset(stage_gbo, number):
    pass
"""
WITHOUT_STAGE = """
import pytest

@pytest.fixture(scope="session")
def stage_gbo():
    return None
"""
RESETTING = """
import json, pathlib, time
import pytest

WAYS = {ways!r}

@pytest.mark.stage_reset("cache", "drive", "system")
def test_resets(stage_gbo):
    seconds = {{way: [] for way in WAYS}}
    for _ in range({count}):
        for way, names in WAYS.items():
            began = time.monotonic()
            stage_gbo.reset(*names)
            seconds[way].append(time.monotonic() - began)
    pathlib.Path("seconds.json").write_text(json.dumps(seconds))
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of pytest."""

    seconds: float
    """Wall time of the whole process."""
    cpu: float
    """Seconds of processor time, its own and the kernel's for it."""


@dataclass(frozen=True, slots=True)
class Round:
    """One way, with one test and with many."""

    one: Run
    many: Run
    idle_before: float
    """Share of the cores that was idle in the second before: below 1, others were at work."""


class Ways:
    """The same tests without and with the stage.

    Args:
        folder: To write test files to.
        tests: How many tests the larger file has more than the smaller one.
        python: The interpreter to run pytest with.
    """

    def __init__(self, folder: Path, tests: int, python: str = sys.executable) -> None:
        self._folder = folder
        self._python = python
        # As on anybody's machine, whatever the environment of this one says; and the tree stays as it is.
        self._env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)
        for way, conftest in (("plain", WITHOUT_STAGE), ("stage", "")):
            place = folder / way
            place.mkdir()
            (place / "pytest.ini").write_text("[pytest]\n")  # nothing of a folder above
            (place / "conftest.py").write_text(conftest)
            (place / "test_one.py").write_text(TESTS.format(count=1))
            (place / "test_many.py").write_text(TESTS.format(count=1 + tests))

    def plain(self) -> Round:
        return self._round("plain", "-p", "no:stagegbo")

    def stage(self) -> Round:
        return self._round("stage", "--stage-lab")

    def recorded(self) -> Round:
        return self._round("stage", "--stage-lab", "--stage-report=report.html")

    def resets(self, count: int, test: str = RESETTING) -> dict[str, list[float]]:
        """Seconds of each reset, by what was reset."""
        place = self._folder / "stage"
        (place / "test_resets.py").write_text(test.format(ways=RESETS, count=count))
        self._run(place, "test_resets.py", "--stage-lab")
        found: dict[str, list[float]] = json.loads((place / "seconds.json").read_text())
        return found

    def _round(self, way: str, *options: str) -> Round:
        idle = ProcessorTime.wait_idle(IDLE, LONGEST_WAIT)
        place = self._folder / way
        return Round(self._run(place, "test_one.py", *options), self._run(place, "test_many.py", *options), idle)

    def _run(self, place: Path, *arguments: str) -> Run:
        argv = [self._python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        before, began = os.times(), time.monotonic()
        done = subprocess.run(argv, cwd=place, env=self._env, capture_output=True, text=True, check=False)
        seconds, after = time.monotonic() - began, os.times()
        if done.returncode:
            raise RuntimeError(f"pytest ended with status {done.returncode}\n{done.stdout}{done.stderr}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return Run(seconds, cpu)


class Report:
    """What all rounds say together.

    Args:
        rounds: Without the stage, with it, and with a report of the session as well.
        tests: How many tests the larger runs had more than the smaller ones.
        resets: Seconds, by what was reset.
    """

    def __init__(
        self, rounds: Sequence[tuple[Round, Round, Round]], tests: int, resets: dict[str, list[float]], version: str
    ) -> None:
        self.rounds = rounds
        self.tests = tests
        self.resets = resets
        self.machine = Machine.this()
        self.version = version

    def session(self) -> list[float]:
        """Seconds that a session of one test takes longer with the stage, round by round."""
        return [own.one.seconds - plain.one.seconds for plain, own, _ in self.rounds]

    def test(self) -> list[float]:
        """Seconds that one further test takes longer with the stage, round by round."""
        return [self._further(own, plain, "seconds") for plain, own, _ in self.rounds]

    def _further(self, way: Round, beside: Round, what: str) -> float:
        """What one further test takes longer in one way than in another: `seconds`, or seconds of `cpu`."""
        more, less = (getattr(each.many, what) - getattr(each.one, what) for each in (way, beside))
        return float(more - less) / self.tests

    def sections(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, columns and rows of each table."""
        plain, own, _ = zip(*self.rounds, strict=True)
        many = f"{1 + self.tests} tests"
        runs = [
            _run_row("1 test", [r.one for r in plain], [r.one for r in own]),
            _run_row(many, [r.many for r in plain], [r.many for r in own]),
        ]
        cpu_session = [own.one.cpu - plain.one.cpu for plain, own, _ in self.rounds]
        cpu_test = [self._further(own, plain, "cpu") for plain, own, _ in self.rounds]
        costs = [
            _cost_row("a session", self.session(), cpu_session, AIM_SESSION),
            _cost_row("a test without a reset", self.test(), cpu_test, AIM_TEST),
            _cost_row(
                "a session with --stage-report, besides",
                [recorded.one.seconds - own.one.seconds for _, own, recorded in self.rounds],
                [recorded.one.cpu - own.one.cpu for _, own, recorded in self.rounds],
            ),
            _cost_row(
                "a test of it, besides",
                [self._further(recorded, own, "seconds") for _, own, recorded in self.rounds],
                [self._further(recorded, own, "cpu") for _, own, recorded in self.rounds],
            ),
        ]
        resets = [
            [name, str(len(times)), _ms(percentile(times, 50)), _ms(percentile(times, 95))]
            for name, times in self.resets.items()
        ]
        tables = [
            (
                f"The same tests without and with a stage that is there, {len(self.rounds)} rounds",
                ["run", "plain p50", "plain p95", "stage p50", "stage p95", "ratio of p50"],
                runs,
            ),
            ("What the stage adds", ["to", "p50", "p95", "processor time p50", "aim"], costs),
        ]
        if resets:
            tables.append(("A reset: stop, clear, start, answers", ["of", "times", "p50", "p95"], resets))
        return tables

    def headlines(self) -> list[str]:
        return [
            f"a warm session costs {_ms(percentile(self.session(), 50))} over plain pytest (median; aim "
            f"{_ms(AIM_SESSION)}), a test without a reset {_ms(percentile(self.test(), 50))} (aim {_ms(AIM_TEST)})",
            idle_line([each.idle_before for ways in self.rounds for each in ways]),
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "incus": self.version,
            "tests": self.tests,
            "session": self.session(),
            "test": self.test(),
            "plain": [asdict(plain) for plain, _, _ in self.rounds],
            "stage": [asdict(own) for _, own, _ in self.rounds],
            "recorded": [asdict(recorded) for _, _, recorded in self.rounds],
            "resets": self.resets,
        }

    def print(self, console: Console) -> None:
        console.print(f"{self.machine}; Incus {self.version}")
        for title, columns, rows in self.sections():
            console.print(shown_table(columns, rows, title=title))
        for line in self.headlines():
            console.print(line, soft_wrap=True)

    def markdown(self) -> str:
        parts = [
            f"Measured on {self.machine}; Incus {self.version}.",
            "\n".join(f"- {line[0].upper()}{line[1:]}." for line in self.headlines()),
        ]
        for title, columns, rows in self.sections():
            parts.append(f"**{title}**\n\n{markdown_table(columns, rows)}")
        return "\n\n".join(parts)


def _run_row(name: str, plain: Sequence[Run], own: Sequence[Run]) -> list[str]:
    figures = [percentile([run.seconds for run in runs], percent) for runs in (plain, own) for percent in (50, 95)]
    return [name, *(f"{figure:.2f} s" for figure in figures), f"{figures[2] / figures[0]:.2f}"]


def _cost_row(name: str, wall: Sequence[float], cpu: Sequence[float], aim: float | None = None) -> list[str]:
    figures = [_ms(percentile(wall, 50)), _ms(percentile(wall, 95)), _ms(percentile(cpu, 50))]
    return [name, *figures, "" if aim is None else f"< {_ms(aim)}"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if abs(seconds) >= 0.01 else f"{seconds * 1000:.2f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="of each way (default 10)")
    parser.add_argument("--tests", type=int, default=200, help="tests in the larger runs, and one more (default 200)")
    parser.add_argument("--resets", type=int, default=5, help="of each kind (default 5; 0: none)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.tests < 1 or arguments.resets < 0:
        parser.error("--rounds and --tests must be at least 1, --resets at least 0")

    def measure(console: Console) -> Report:
        with bench_lab(keep=arguments.keep) as lab:
            return _measure(lab, console, arguments.rounds, arguments.tests, arguments.resets)

    return finish(measure, arguments, "session")


def _measure(lab: BenchLab, console: Console, rounds: int, tests: int, resets: int) -> Report:
    lab.stagegbo("provision")
    with tempfile.TemporaryDirectory(prefix="stagegbo-bench-") as folder:
        ways = Ways(Path(folder), tests)
        ways.plain(), ways.stage()  # writes bytecode, and warms the caches
        done = []
        for plain, own in alternate(rounds, ways.plain, ways.stage):
            done.append((plain, own, ways.recorded()))
            console.print(
                f"round {len(done)}: 1 test {plain.one.seconds:.2f} and {own.one.seconds:.2f} s, "
                f"{1 + tests} tests {plain.many.seconds:.2f} and {own.many.seconds:.2f} s "
                f"(cores idle before: {plain.idle_before:.0%}, {own.idle_before:.0%})"
            )
        times = ways.resets(resets) if resets else {}
    return Report(done, tests, times, lab.lab.status().incus_version)


if __name__ == "__main__":
    sys.exit(main())
