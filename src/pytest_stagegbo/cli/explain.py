"""The command `explain`: what causes an error, and what mends it. It needs no Incus and no settings."""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    import argparse

__all__ = ["register"]

WIDEST = 100
"""Columns of text that are still easy to read."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    explain = commands.add_parser("explain", help="say what causes an error, and what to do; without a code: list all")
    explain.add_argument("code", metavar="CODE", nargs="?", help="for example SG300")
    explain.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import print_table
    from pytest_stagegbo.explanations import explanations

    known = explanations()
    if arguments.code is None:
        rows = [(each.code, each.name, str(each.exit_code), each.meaning) for each in known.values()]
        print_table(("code", "error", "exit code", "meaning"), rows)
        return 0
    found = known.get(arguments.code.upper())
    if found is None:
        raise SettingsError(f"no error has the code {arguments.code}", remedy="`stagegbo explain` lists all of them")
    width = min(WIDEST, shutil.get_terminal_size().columns)
    for line in found.text().splitlines():
        print(_wrapped(line, width))
    return 0


def _wrapped(line: str, width: int) -> str:
    """A line of text as lines of a terminal. A command stays on one line, so that it can be copied."""
    whole = re.sub("`[^`]+`", lambda command: command[0].replace(" ", "\0"), line)
    indent = "  " if line.startswith(("- ", "  ")) else ""
    text = textwrap.fill(whole, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return text.replace("\0", " ")
