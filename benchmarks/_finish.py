"""How every benchmark ends: its report printed, written to a file, put into a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks._measure import replace_section
from rich.console import Console

from pytest_stagegbo.errors import StageGboError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["Report", "add_outputs", "finish"]


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
