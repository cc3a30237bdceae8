"""The command `verify`: it proves the isolation of the stage and all its slots, or of one slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.cli.remedies import aimed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.verify import Certificate, Check

__all__ = ["count_line", "register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser(
        "verify", help="prove the stage's isolation: try connections and limits, look at the data"
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.add_argument("--check", action="append", metavar="ID", help="run only this check; may be given again")
    verify.set_defaults(run=_verify)


def count_line(states: Sequence[str]) -> str:
    """Return how many checks hold, of those that were made."""
    skipped = states.count("skipped")
    line = f"{states.count('green')} of {len(states) - skipped} hold"
    return f"{line}, {skipped} skipped" if skipped else line


def _verify(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.errors import IsolationBroken
    from pytest_stagegbo.verify import chosen, verify

    checks = chosen(arguments.check)  # before anything is connected to
    context = open_context(arguments)
    found = {
        name: verify(engine, of_it)
        for name, engine, of_it in _stages(context, getattr(arguments, "slot", None) is None, checks)
    }
    holds = all(certificate.holds for certificate in found.values())
    first, *others = found
    if arguments.json:
        from pytest_stagegbo.cli import shapes

        shown = {name: shapes.shaped(shapes.Certificate, found[name]) for name in found}
        more = {name: shown[name] for name in others}
        print_report(shapes.Verify(**{**structs.asdict(shown[first]), "holds": holds}, slots=more))
    else:
        for certificate in found.values():
            _print_certificate(certificate, arguments)
    return 0 if holds else IsolationBroken.exit_code


def _stages(
    context: Context, every: bool, checks: Sequence[Check] | None
) -> Iterator[tuple[str, StageEngine, Sequence[Check] | None]]:
    """Return what has to be proven, by slot: the named slot, or all slots and their golden copy.

    A golden copy is stopped, so only what can be seen from outside is tried of it. Where checks were chosen and none of
    them can be tried of it, it is left out.
    """
    from pytest_stagegbo.verify import AT_REST, chosen

    yield str(context.slot), context.engine(), checks
    if not every:
        return
    fleet = context.fleet()
    for number in fleet.members():
        if number > 0:
            fleet.refuse_others([number])
            yield str(number), fleet.engine(number), checks
    if fleet.has_golden():
        if not fleet.golden_runs():
            checks = [check for check in checks or chosen(AT_REST) or () if check.id in AT_REST]
        if checks is None or checks:
            yield "golden", fleet.golden.engine, checks


def _print_certificate(certificate: Certificate, arguments: argparse.Namespace) -> None:
    from pytest_stagegbo.cli.console import print_table

    rows = [(finding.state, finding.id, finding.title, "\n".join(finding.evidence)) for finding in certificate.findings]
    print_table(("", "check", "what holds", "seen"), rows, title=f"Isolation of {certificate.project}")
    for finding in certificate.red:
        print(f"{finding.id}: {finding.means}\n  what to do: {aimed(finding.remedy, arguments)}")
    print(f"{certificate.project}: {count_line([finding.state for finding in certificate.findings])}")
