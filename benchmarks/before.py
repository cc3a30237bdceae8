"""This tree against an earlier commit of it: provisioning, a session, a test and resets, in turns on one lab.

    sudo python benchmarks/before.py [COMMIT] [--rounds N] [--json FILE] [--markdown docs/benchmarks.md] [--keep]

The earlier commit is checked out into a temporary folder with a virtual environment of its own. In each round either
version provisions from nothing, runs pytest with one test, with many and with resets, and destroys its stage.
"""

from __future__ import annotations

import argparse
import contextlib
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
from benchmarks._measure import ProcessorTime, alternate, idle_line, percentile
from benchmarks._table import TableReport
from benchmarks.session import IDLE, LONGEST_WAIT, RESETTING, Ways

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

AIM = 1.05
"""What the newer one may take of the older one's time."""

DIRTY = """
import json, pathlib, socket, time
import pytest

def soil_cache(stage):
    with socket.create_connection((stage.cache.host, stage.cache.port)) as connection:
        secret = stage.cache.credentials
        words = (f"AUTH {{secret.user}} {{secret.password}}", "SET left over")
        connection.sendall("".join(f"{{word}}\\r\\n" for word in words).encode())
        answer = b""
        while answer.count(b"+OK") < 2:
            more = connection.recv(100)
            assert more and b"-" not in more, answer + more
            answer += more

SOIL = {{
    "cache": soil_cache,
    "drive": lambda stage: stage.drive.exec("touch", "/opt/gbo/data/minio/left"),
    "system": lambda stage: stage.system.exec("touch", "/opt/gbo/work/left"),
}}

@pytest.mark.stage_reset("cache", "drive", "system")
def test_resets(stage_gbo):
    seconds = {{way: [] for way in {ways!r}}}
    for _ in range({count}):
        for way, names in {ways!r}.items():
            for name in names:
                SOIL[name](stage_gbo)
            began = time.monotonic()
            stage_gbo.reset(*names)
            seconds[way].append(time.monotonic() - began)
    pathlib.Path("seconds.json").write_text(json.dumps(seconds))
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One version, once."""

    seconds: dict[str, float]
    """Of what was measured: `provision`, `session`, `test`, and each kind of reset."""
    cpu: dict[str, float]
    """Seconds of processor time: of the command or pytest, its own and the kernel's for it; not of the daemon."""
    idle_before: float
    """Share of the cores that was idle in the second before."""


class Version:
    """One version of the package.

    Args:
        python: The interpreter of an environment where it is installed.
        folder: For test files.
    """

    def __init__(self, lab: BenchLab, python: str, folder: Path, tests: int, resets: int) -> None:
        folder.mkdir()
        self._lab = lab
        self._python = python
        self._ways = Ways(folder, tests, python=python)
        self._tests = tests
        self._resets = resets

    def round(self) -> Round:
        self.clean()
        self._lab.wait_quiet(LONGEST_WAIT)
        idle = ProcessorTime.wait_idle(IDLE, LONGEST_WAIT)
        before, began = os.times(), time.monotonic()
        self._stagegbo("provision")
        seconds, after = {"provision": time.monotonic() - began}, os.times()
        cpu = {"provision": after.children_user + after.children_system - before.children_user - before.children_system}
        plain, stage = self._ways.plain(), self._ways.stage()
        for field, into in (("seconds", seconds), ("cpu", cpu)):
            one = getattr(stage.one, field) - getattr(plain.one, field)
            many = getattr(stage.many, field) - getattr(plain.many, field)
            into["session"] = one
            into["test"] = (many - one) / self._tests
        for state, test in (("untouched", RESETTING), ("dirty", DIRTY)):
            for name, times in self._ways.resets(self._resets, test).items():
                seconds[f"reset, {state}: {name}"] = percentile(times[1:], 50)  # the first one opens what all use
        return Round(seconds, cpu, idle)

    def clean(self) -> None:
        self._stagegbo("destroy", "--yes")

    def _stagegbo(self, *arguments: str) -> None:
        self._lab.command(self._python, "-m", "pytest_stagegbo", "--lab", *arguments)


class Report(TableReport):
    """What all rounds say together.

    Args:
        rounds: Of the earlier commit and of this tree.
    """

    def __init__(self, commit: str, rounds: Sequence[tuple[Round, Round]], version: str) -> None:
        super().__init__(version)
        self.commit = commit
        self.rounds = rounds
        self.columns = [
            "what", f"{commit} p50", "p95", "this p50", "p95", "ratio of p50", "ratio of processor time"
        ]  # fmt: skip

    def rows(self) -> list[list[str]]:
        rows = []
        for name in self.rounds[0][0].seconds:
            old, new = ([side.seconds[name] for side in sides] for sides in zip(*self.rounds, strict=True))
            row = [name, *(_ms(percentile(values, percent)) for values in (old, new) for percent in (50, 95))]
            row.append(f"{percentile(new, 50) / percentile(old, 50):.2f}")
            old, new = ([side.cpu.get(name, 0.0) for side in sides] for sides in zip(*self.rounds, strict=True))
            row.append(f"{percentile(new, 50) / percentile(old, 50):.2f}" if min(old) > 0 else "")
            rows.append(row)
        return rows

    def headlines(self) -> list[str]:
        return [
            f"this tree beside {self.commit}, {len(self.rounds)} rounds in turns; a ratio of at most {AIM} is the aim",
            idle_line([each.idle_before for pair in self.rounds for each in pair]),
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "incus": self.version,
            "commit": self.commit,
            "rounds": [[asdict(old), asdict(new)] for old, new in self.rounds],
        }


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if abs(seconds) >= 0.01 else f"{seconds * 1000:.2f} ms"


@contextlib.contextmanager
def _checked_out(commit: str, folder: Path) -> Iterator[str]:
    """An interpreter that has the package as it was at a commit."""
    place = folder / "earlier"
    git = ("git", "-C", str(ROOT), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
    try:
        python = str(place / ".venv" / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", str(place / ".venv")], check=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", "--editable", str(place)], check=True)
        yield python
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commit", nargs="?", default="HEAD", help="the earlier one (default HEAD)")
    parser.add_argument("--rounds", type=int, default=10, help="of each version (default 10)")
    parser.add_argument("--tests", type=int, default=200, help="tests in the larger runs, and one more (default 200)")
    parser.add_argument("--resets", type=int, default=10, help="of each kind and round (default 10)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.tests < 1 or arguments.resets < 2:
        parser.error("--rounds and --tests must be at least 1, --resets at least 2")

    def measure(console: Console) -> Report:
        with (
            tempfile.TemporaryDirectory(prefix="stagegbo-bench-") as folder,
            _checked_out(arguments.commit, Path(folder)) as python,
            bench_lab(keep=arguments.keep) as lab,
        ):
            return _measure(lab, console, python, Path(folder), arguments)

    return finish(measure, arguments, "before")


def _measure(lab: BenchLab, console: Console, python: str, folder: Path, arguments: argparse.Namespace) -> Report:
    versions = [
        Version(lab, interpreter, folder / name, arguments.tests, arguments.resets)
        for name, interpreter in (("old", python), ("new", sys.executable))
    ]
    for version in versions:
        version.round()  # writes bytecode, and warms the caches
    done: list[tuple[Round, Round]] = []
    for old, new in alternate(arguments.rounds, versions[0].round, versions[1].round):
        done.append((old, new))
        console.print(
            f"round {len(done)}: "
            + ", ".join(f"{name} {_ms(old.seconds[name])} and {_ms(new.seconds[name])}" for name in old.seconds),
            soft_wrap=True,
        )
    versions[1].clean()
    return Report(arguments.commit, done, lab.lab.status().incus_version)


if __name__ == "__main__":
    sys.exit(main())
