#!/usr/bin/env python3
"""What the package and each of its extras bring along: bytes on the disk, and processor time of an import.

    python benchmarks/install.py [--rounds N] [--json FILE] [--markdown docs/benchmarks.md]

Needs no root, no lab and no Incus. The wheel is built from this tree and installed into empty environments.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._finish import add_outputs, finish
from benchmarks._measure import percentile
from benchmarks._table import TableReport
from tools import contents
from tools.environments import Environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

MEGABYTE = 1e6
PLUGIN = "pytest_stagegbo.plugin"
MODULES = {"xdist": "xdist", "postgres": "psycopg", "valkey": "valkey", "s3": "boto3", "vault": "hvac", "llm": "openai"}
"""By extra, what a fixture imports when a test asks for it."""


@dataclass(frozen=True, slots=True)
class Install:
    """One environment."""

    name: str
    packages: int
    size: int
    """Bytes of all files, before Python has compiled any."""
    imports: str
    """The module that is imported."""
    cpu: float
    """Seconds of processor time that the import adds, the median."""


class Report(TableReport):
    """What each extra adds to the package without extras, and that to pytest alone."""

    columns = ("installed", "packages", "on the disk", "import", "processor time p50")
    left = frozenset({0, 3})
    title = "What is installed"

    def __init__(self, python: str, installs: Sequence[Install]) -> None:
        super().__init__("")
        self.python = python
        self.installs = installs

    def headlines(self) -> list[str]:
        return [
            "packages and bytes are what is added: to an empty environment by pytest, to pytest by the package, to the "
            "package by an extra",
            f"pytest imports {PLUGIN} wherever the package is installed; a client is imported by the first test that "
            "uses it",
        ]

    def rows(self) -> list[list[str]]:
        pytest, plain = self.installs[:2]
        rows = [_row(pytest, 0, 0), _row(plain, pytest.packages, pytest.size)]
        return rows + [_row(each, plain.packages, plain.size) for each in self.installs[2:]]

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "python": self.python,
            "installs": [asdict(i) for i in self.installs],
        }


def _row(install: Install, packages: int, size: int) -> list[str]:
    size_text = f"{(install.size - size) / MEGABYTE:.1f} MB"
    cpu = f"{install.cpu * 1000:.0f} ms" if install.imports else ""
    return [install.name, str(install.packages - packages), size_text, f"`{install.imports}`" * bool(cpu), cpu]


def _cpu(python: str, code: str, folder: Path) -> float:
    """Seconds of processor time of a process that runs this."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    before = os.times()
    subprocess.run([python, "-I", "-X", f"pycache_prefix={folder}", "-c", code], env=env, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _import_cpu(python: str, module: str, beside: str, rounds: int, folder: Path) -> float:
    """What an import adds to a process, the median of rounds in turns.

    Args:
        beside: What both processes run first.
    """
    without, with_it = beside or "pass", f"{beside}\nimport {module}"
    for code in (without, with_it):
        _cpu(python, code, folder)  # writes bytecode
    added = [_cpu(python, with_it, folder) - _cpu(python, without, folder) for _ in range(rounds)]
    return percentile(added, 50)


def _install(folder: Path, what: str, name: str, module: str, rounds: int) -> Install:
    environment = Environment(folder / "environment", sys.executable)
    environment.install(what)
    packages = environment.folder.glob("lib/python*/site-packages/*.dist-info")
    files = [path for path in environment.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    beside = "import pytest" if module == PLUGIN else ""
    cpu = _import_cpu(environment.python, module, beside, rounds, folder / "bytecode") if module else 0.0
    return Install(name, len(list(packages)), size, module, cpu)


def _measure(console: Console, rounds: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="stagegbo-bench-") as name:
        folder = Path(name)
        argv = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
        subprocess.run(argv, check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        extras: list[str] = contents.metadata(wheel).get_all("Provides-Extra", [])
        ways = [("pytest", "pytest alone", "pytest"), (str(wheel), "pytest-stagegbo", PLUGIN)]
        ways += [(f"{wheel}[{extra}]", f"`[{extra}]`", MODULES.get(extra, "")) for extra in extras]
        installs = []
        for what, title, module in ways:
            installs.append(_install(folder, what, title, module, rounds))
            console.print(f"{title}: {installs[-1].size / MEGABYTE:.1f} MB in all", markup=False)
    return Report(sys.version.split()[0], installs)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each import (default 20)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return finish(lambda console: _measure(console, arguments.rounds), arguments, "install")


if __name__ == "__main__":
    sys.exit(main())
