"""The commands and their options."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import TYPE_CHECKING

from pytest_stagegbo.cli import execute, expose, lab, provision, status, verify

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parse"]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `run` of the result is the command to call with it.

    Raises:
        SystemExit: with 2 for a bad command line, with 0 for --help and --version.
    """
    parser = argparse.ArgumentParser(
        prog="stagegbo",
        description="Clone a General Bots production on Incus copy-on-write into an isolated stage.",
        epilog="Settings, exit codes and the rest: https://pypi.org/project/pytest-stagegbo/",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pytest-stagegbo {version('pytest-stagegbo')}")
    _common(parser, default=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    provision.register(commands)
    status.register(commands)
    verify.register(commands)
    expose.register(commands)
    execute.register(commands)
    lab.register(commands)
    for command in commands.choices.values():
        _common(command, default=argparse.SUPPRESS)
    parsed = parser.parse_args(argv)
    for name, value in vars(parsed).items():  # argparse before Python 3.13 makes an empty list of `--option=--`
        if name not in {"argv", "refresh"} and (value == [] or (isinstance(value, list) and [] in value)):
            parser.error(f"argument --{name.replace('_', '-')}: expected one argument")
    return parsed


def _common(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Options that may stand before or after the command."""
    group = parser.add_argument_group("options of every command")

    def option(name: str, metavar: str, text: str) -> None:
        group.add_argument(name, metavar=metavar, default=default, help=text)

    option("--config", "FILE", "settings file; default: the nearest stagegbo.toml or pyproject.toml")
    option("--endpoint", "ENDPOINT", "Incus: path of a socket, or https address")
    option("--project", "NAME", "Incus project of the stage")
    option("--source-project", "NAME", "Incus project of production")
    option("--network", "NAME", "bridge of the stage")
    option("--slot", "N", "a further stage than the first, by its number (not for provision and destroy)")
    switch = False if default is None else default
    group.add_argument("--lab", action="store_true", default=switch, help="aim at the lab and join its network")
    group.add_argument("-q", "--quiet", action="store_true", default=switch, help="show no progress, only notes")
    group.add_argument("--debug", action="store_true", default=switch, help="log every request; show tracebacks")
