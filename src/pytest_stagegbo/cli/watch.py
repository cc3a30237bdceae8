"""`status --watch`: looks at the stage again and again. A terminal is redrawn, a pipe gets a line for each change."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.cli.sight import Sight, look, parts, shape_of
from pytest_stagegbo.cli.streams import end_like_ctrl_c
from pytest_stagegbo.errors import StageGboError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from pytest_stagegbo.cli.context import Context

__all__ = ["changes", "facts_of", "watch"]

PAUSE = 2.0
"""Seconds between two looks. The daemon answers a dozen requests for each, and every service a probe."""


def watch(context: Context, arguments: argparse.Namespace) -> int:
    """Show the stage until Ctrl-C, which is this command's way to end. Errors of the first look are raised."""
    end_like_ctrl_c()
    try:
        first = look(context, whole=arguments.wide)
        if arguments.json:
            _print_reports(context, first)
        elif sys.stdout.isatty():
            _draw(context, arguments, first)
        else:
            _print_changes(context, first)
    except KeyboardInterrupt:
        return 0
    return 0


def _looks(context: Context, first: Sight, *, whole: bool = False) -> Iterator[Sight | StageGboError]:
    """What is seen, look after look, without end. A daemon that does not answer may do so again."""
    yield first
    while True:
        clocks.sleep(PAUSE)
        try:
            yield look(context, whole=whole)
        except StageGboError as error:
            yield error


def _draw(context: Context, arguments: argparse.Namespace, first: Sight) -> None:
    from rich.console import Console
    from rich.live import Live

    from pytest_stagegbo.cli.console import Loud, drawn

    shown = drawn(parts(first, context, arguments))
    # Lines are replaced in one write, and only when a look has ended: nothing flickers.
    with Live(shown, console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as live:
        for found in _looks(context, first, whole=arguments.wide):
            said = [Loud(_words(found))] if isinstance(found, StageGboError) else parts(found, context, arguments)
            live.update(drawn([*said, f"{time.strftime('%H:%M:%S')}, every {PAUSE:.0f} s until Ctrl-C"]), refresh=True)


def _print_reports(context: Context, first: Sight) -> None:
    before = None
    for found in _looks(context, first):
        if isinstance(found, StageGboError):
            print(_words(found), file=sys.stderr, flush=True)
            continue
        report = shape_of(found)
        if report != before:
            print_report(report, line=True)
        before = report


def _print_changes(context: Context, first: Sight) -> None:
    from pytest_stagegbo.cli.console import one_line

    before: dict[str, str] = {}
    for found in _looks(context, first):
        now = {"daemon": _words(found)} if isinstance(found, StageGboError) else facts_of(found)
        for subject, state in changes(before, now):
            print(clocks.utc_text("%Y-%m-%dT%H:%M:%SZ"), one_line(subject), one_line(state), sep="\t", flush=True)
        before = now


def _words(error: StageGboError) -> str:
    return f"{error.message}: {error.seen}" if error.seen else error.message


def facts_of(sight: Sight) -> dict[str, str]:
    """By subject, what is worth a line when it changes: each container, who uses a stage, what is wrong. Pure."""
    status = sight.status
    found = {each.name: each.state for each in status.containers}
    found |= {slot.project: f"used by {slot.used_by}" if slot.used_by else "free" for slot in sight.slots}
    found |= {f"{each.listen}:{each.listen_port}": f"exposed ({each.state})" for each in status.exposed}
    wrong = [*filter(None, [status.trouble]), *status.warnings]
    return {**found, **({"warning": "; ".join(wrong)} if wrong else {})}


def changes(before: dict[str, str], now: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What is new, different, or gone. Pure."""
    yield from ((subject, state) for subject, state in now.items() if before.get(subject) != state)
    yield from ((subject, "gone") for subject in before if subject not in now)
