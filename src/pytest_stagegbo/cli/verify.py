"""`verify`: the certificate of the stage's isolation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["count_line", "register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser("verify", help="prove the stage's isolation: connections tried, limits hit, data seen")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.add_argument("--check", action="append", metavar="ID", help="this check only (may be repeated)")
    verify.set_defaults(run=_verify)


def count_line(states: Sequence[str]) -> str:
    """How many checks hold, of those that were made."""
    skipped = states.count("skipped")
    line = f"{states.count('green')} of {len(states) - skipped} hold"
    return f"{line}, {skipped} skipped" if skipped else line


def _verify(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.errors import IsolationBroken
    from pytest_stagegbo.verify import chosen, verify

    checks = chosen(arguments.check)  # before anything is connected to
    context = open_context(arguments)
    certificate = verify(context.engine(), checks)
    if arguments.json:
        print_json({"holds": certificate.holds, **dataclasses.asdict(certificate)})
        return 0 if certificate.holds else IsolationBroken.exit_code
    from pytest_stagegbo.cli.console import print_table

    rows = [(finding.state, finding.id, finding.title, "\n".join(finding.evidence)) for finding in certificate.findings]
    print_table(("", "check", "what holds", "seen"), rows, title=f"Isolation of {certificate.project}")
    for finding in certificate.red:
        print(f"{finding.id}: {finding.means}\n  what to do: {finding.remedy}")
    print(count_line([finding.state for finding in certificate.findings]))
    return 0 if certificate.holds else IsolationBroken.exit_code
