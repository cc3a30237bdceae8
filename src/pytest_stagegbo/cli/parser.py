"""Parses the command line. Each command is registered by a module beside this one."""

from __future__ import annotations

import argparse
import shlex
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.command import Parser, chain_of, command_line_of, describe, parsers_in, refuse_unknown_options
from pytest_stagegbo.cli.examples import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MODULES", "command_of", "new_parser", "parse"]

MODULES = {
    "init": "init",
    "provision": "provision",
    "reset": "provision",
    "destroy": "provision",
    "deploy": "deploy",
    "baseline": "baseline",
    "capsule": "capsule",
    "status": "status",
    "endpoints": "status",
    "doctor": "status",
    "explain": "explain",
    "wait": "wait",
    "release": "release",
    "env": "env",
    "verify": "verify",
    "expose": "expose",
    "run": "run",
    "connect": "connect",
    "forward": "forward",
    "exec": "execute",
    "shell": "execute",
    "logs": "logs",
    "report": "report",
    "lab": "lab",
    "completion": "completion",
}
"""By command, the module beside this one that registers it. Only the module of the command that runs is imported."""

VALUED = {
    "--config": ("FILE", "settings file; default: the nearest stagegbo.toml or pyproject.toml"),
    "--endpoint": ("ENDPOINT", "path of Incus's socket, or its https address"),
    "--project": ("NAME", "Incus project of the stage"),
    "--source-project": ("NAME", "Incus project of production"),
    "--network": ("NAME", "bridge of the stage"),
    "--slot": ("N", "number of the slot to use instead of the first (not for provision and destroy)"),
}
"""Options of every command that take a value."""
SWITCHES = {
    ("--lab",): "use the lab and join its network; needs root",
    ("-q", "--quiet"): "show no progress and no hints; warnings and errors stay",
    ("-v", "--verbose"): "log each step, reset and wait on standard error, as it ends",
    ("--debug",): "as --verbose, with every request to Incus, and tracebacks",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `run` of the result is the command to call with it.

    Raises:
        SystemExit: with 2 for a bad command line, with 0 for --help and --version.
    """
    name = command_of(argv)
    parser = new_parser(name)
    chain = chain_of(parser, argv[list(argv).index(name) :] if name in MODULES else ())
    command, words = chain[-1], list(argv)
    line, tail = command_line_of(command), None
    if line is not None and "--" in words:  # options count up to there, wherever they stand
        at = words.index("--")
        words, tail, line.nargs = words[:at], words[at + 1 :], "*"
    if name in MODULES and (line is None or tail is not None):
        refuse_unknown_options(chain, words)
    parsed = parser.parse_args(words)
    if tail is not None:
        if parsed.argv:
            command.error(f"unrecognized arguments: {shlex.join(parsed.argv)}")
        parsed.argv = tail
    elif line is not None and parsed.argv and parsed.argv[0].startswith("-"):
        command.error(f"{parsed.argv[0]} stands where the command has to begin: write options first, then `--`")
    if parsed.quiet and parsed.verbose:
        command.error("--quiet and --verbose exclude each other")
    for name, value in vars(parsed).items():  # argparse before Python 3.13 makes an empty list of `--option=--`
        if name not in {"argv", "files", "names", "refresh"} and (
            value == [] or (isinstance(value, list) and [] in value)
        ):
            parser.error(f"argument --{name.replace('_', '-')}: expected one argument")
    return parsed


def new_parser(name: str) -> argparse.ArgumentParser:
    """A parser that knows the command `name`, or all of them where there is no such command."""
    parser: argparse.ArgumentParser = Parser(
        prog="stagegbo",
        description="Clone a General Bots production on Incus copy-on-write into an isolated stage.",
        epilog="The --help of a command has examples. Settings, exit codes and the rest: "
        "https://pypi.org/project/pytest-stagegbo/",
    )
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="show the version and exit")
    _common(parser, default=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    module = MODULES.get(name)
    for each in dict.fromkeys(MODULES.values()) if module is None else [module]:
        import_module(f"pytest_stagegbo.cli.{each}").register(commands)
    for known, sentence, command in parsers_in(parser):
        _common(command, default=argparse.SUPPRESS)
        describe(command, sentence, EXAMPLES.get(known, ()))
        for inner, text, found in parsers_in(command):
            describe(found, text, EXAMPLES.get(f"{known} {inner}", ()))
    return parser


class _Version(argparse.Action):
    """Looks the version up when it is asked for, which takes milliseconds."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"pytest-stagegbo {version('pytest-stagegbo')}")
        parser.exit()


def command_of(argv: Sequence[str]) -> str:
    """The first word that is no option and no option's value. Empty where the line is about more than one command."""
    words = iter(argv)
    for word in words:
        if word in VALUED:
            next(words, "")
        elif any(word in names for names in SWITCHES):
            continue
        elif not word.startswith("-"):
            return word
        elif word.partition("=")[0] not in VALUED:
            break
    return ""


def _common(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Options that may stand before or after the command."""
    group = parser.add_argument_group("options of every command")
    for name, (metavar, text) in VALUED.items():
        group.add_argument(name, metavar=metavar, default=default, help=text)
    switch = False if default is None else default
    for names, text in SWITCHES.items():
        group.add_argument(*names, action="store_true", default=switch, help=text)
