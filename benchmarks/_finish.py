"""How every benchmark ends: its report printed, written to a file, put into a document."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks._bench_lab import BenchLab, bench_lab
from benchmarks._measure import replace_section
from rich.console import Console

from pytest_stagegbo.errors import StageGboError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Report", "add_outputs", "finish", "measure_rounds"]


class Report(Protocol):
    """What was measured, and what follows from it."""

    def print(self, console: Console) -> None: ...
    def to_json(self) -> dict[str, Any]: ...
    def markdown(self) -> str: ...


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options that `finish` and `bench_lab` read."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was measured")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="replace the measured section of this document")
    parser.add_argument("--keep", action="store_true", help="leave the lab up afterwards")


def finish(measure: Callable[[Console], Report], arguments: argparse.Namespace, section: str) -> int:
    """Measure, and tell; the exit status.

    Args:
        section: The name of the section in the document of `--markdown`.
    """
    console = Console()
    try:
        report = measure(console)
    except StageGboError as error:
        console.print(f"{error}", style="red", markup=False)
        return error.exit_code
    report.print(console)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if arguments.markdown:
        replace_section(arguments.markdown, section, report.markdown())
    return 0


def measure_rounds(
    doc: str | None, section: str, measure: Callable[[BenchLab, Console, int], Report], *, rounds: int, of: str
) -> int:
    """A benchmark on a lab whose only question is how many rounds: parse, measure, tell; the exit status.

    Args:
        doc: Of the program.
        section: As for `finish`.
        rounds: How many, unless the command line says so.
        of: What a round is of.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"of {of} (default {rounds})")
    add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")

    def on_lab(console: Console) -> Report:
        with bench_lab(keep=arguments.keep) as lab:
            return measure(lab, console, arguments.rounds)

    return finish(on_lab, arguments, section)
