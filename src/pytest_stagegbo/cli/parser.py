"""Parses the command line. Each command is registered by a module beside this one."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MODULES", "parse"]

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
    ("-q", "--quiet"): "show no progress; warnings stay",
    ("--debug",): "show every request to Incus, and tracebacks",
}


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
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    _common(parser, default=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    called = MODULES.get(_command(argv))
    for module in dict.fromkeys(MODULES.values()) if called is None else [called]:
        import_module(f"pytest_stagegbo.cli.{module}").register(commands)
    for command in commands.choices.values():
        _common(command, default=argparse.SUPPRESS)
    parsed = parser.parse_args(argv)
    if getattr(parsed, "argv", [])[:1] == ["--"]:  # argparse leaves it there
        del parsed.argv[0]
    for name, value in vars(parsed).items():  # argparse before Python 3.13 makes an empty list of `--option=--`
        if name not in {"argv", "files", "names", "refresh"} and (
            value == [] or (isinstance(value, list) and [] in value)
        ):
            parser.error(f"argument --{name.replace('_', '-')}: expected one argument")
    return parsed


class _Version(argparse.Action):
    """Looks the version up when it is asked for, which takes milliseconds."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"pytest-stagegbo {version('pytest-stagegbo')}")
        parser.exit()


def _command(argv: Sequence[str]) -> str:
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
