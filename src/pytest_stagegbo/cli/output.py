"""Prints output for programs: JSON, and variables of a shell."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

from msgspec import to_builtins

from pytest_stagegbo.text import printable_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.cli.shapes import Report
    from pytest_stagegbo.settings.addresses import Endpoint

__all__ = ["print_hint", "print_report", "print_variables"]


def print_report(report: Report | Mapping[str, str], *, line: bool = False) -> None:
    """One JSON object on standard output: a shape of `cli.shapes`, or variables and their values.

    Args:
        line: As one line, for a command that prints several.
    """
    text = json.dumps(to_builtins(report), indent=None if line else 2, ensure_ascii=False)
    print(printable_json(text), flush=line)


def print_hint(text: str, arguments: argparse.Namespace) -> None:
    """A line on standard error that helps people on. Not with --quiet."""
    if not arguments.quiet:
        print(text, file=sys.stderr, flush=True)


def print_variables(found: Iterable[Endpoint]) -> None:
    """The variables of endpoints on standard output, a line each, as a shell reads them."""
    from pytest_stagegbo.settings.addresses import endpoint_variables

    for _, name, value in endpoint_variables(found):
        print(f"{name}={shlex.quote(value)}")
