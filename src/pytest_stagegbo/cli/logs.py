"""The command `logs`: it prints the journal of a clone's units, and its log files."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.incus_client import hand_over, incus_client, need_running, no_client
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings.duration import parse_duration
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine

__all__ = ["line_prefixes", "register"]

LOG_BYTES = 4 << 20
"""Bytes that are read of each log."""
COLOURS = (36, 33, 32, 35, 34, 31)
"""Numbers of the terminal's colours: cyan, yellow, green, magenta, blue, red."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    logs = commands.add_parser("logs", help="show the journal of a clone's units, and its log files")
    logs.add_argument("names", metavar="NAME", nargs="+")
    logs.add_argument("-f", "--follow", action="store_true", help="keep showing lines as they are written")
    logs.add_argument("-n", "--lines", type=_lines, default=100, metavar="N", help="lines of each log (default 100)")
    logs.add_argument("--since", type=_since, metavar="WHEN", help="only lines since then: 10m, 2h, 2026-01-31T12:00")
    logs.add_argument("--grep", type=_pattern, metavar="REGEX", help="only lines that match")
    logs.set_defaults(run=_logs)


def _lines(text: str) -> int:
    """Parse a number of lines. What it raises, argparse turns into a usage error."""
    if not re.fullmatch("[0-9]{1,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 999999")
    return int(text)


def _since(text: str) -> float:
    """Epoch seconds."""
    with contextlib.suppress(ValueError):
        return time.time() - parse_duration(text)
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a length of time (10m, 2h) nor a time") from None


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _logs(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.guest.logs import Wanted, fetch_script, parse, show, token

    names = tuple(dict.fromkeys(arguments.names))
    if arguments.follow and (len(names) > 1 or arguments.since is not None or arguments.grep):
        raise SettingsError(
            "logs -f follows all lines of one clone",
            remedy="run `stagegbo logs -f NAME` in a terminal for each clone; `| grep` chooses lines",
        )
    context = open_context(arguments)
    engine = context.engine()
    for name in names:
        need_running(engine, name, arguments)
    if arguments.follow:
        return _follow(context, engine, names[0], arguments.lines)
    wanted = Wanted(
        arguments.lines, arguments.since, arguments.grep, units=not (arguments.since or arguments.grep), size=LOG_BYTES
    )
    prefixes = line_prefixes(names, coloured=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    for name in names:
        head = token()
        script = fetch_script(context.loaded.settings.containers[name], head, wanted)
        result = engine.execute(name, ["sh", "-c", script])
        text = printable(show(parse(result.stdout, head, wanted)))
        if text:
            print("\n".join(f"{prefixes[name]}{line}" for line in text.split("\n")))
        sys.stderr.write(printable(result.stderr))
    return 0


def _follow(context: Context, engine: StageEngine, name: str, lines: int) -> int:
    from pytest_stagegbo.guest.logs import follow_command

    client = incus_client(context, engine)
    if client is None:
        raise no_client("logs -f")
    return hand_over(client, context, name, follow_command(context.loaded.settings.containers[name], lines))


def line_prefixes(names: Sequence[str], *, coloured: bool) -> dict[str, str]:
    """Return the prefix of each container's lines: its name, in a colour of its own. A single container has none."""
    if len(names) == 1:
        return {names[0]: ""}
    width = max(map(len, names))
    plain = {name: f"{name:{width}} | " for name in names}
    if not coloured:
        return plain
    return {name: f"\x1b[{COLOURS[at % len(COLOURS)]}m{plain[name]}\x1b[0m" for at, name in enumerate(names)}
