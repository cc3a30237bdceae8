"""The command `completion`, and the words that shells complete a command line with.

A shell's script comes from argcomplete. It runs `stagegbo` with `_ARGCOMPLETE` in the environment whenever a word is to
be completed, so words are always those of the version that runs, and of the settings of the folder: containers of the
stage, baselines that exist.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import MissingRequirement

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from pytest_stagegbo.cli.context import Context

__all__ = ["complete", "register"]

SHELLS = ("bash", "zsh", "fish")
PATIENCE = 3
"""Seconds that a shell waits for the daemon. Nobody wants to wait longer."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    completion = commands.add_parser(
        "completion",
        help="print a script that has a shell complete commands, options, containers and baselines",
        description="Print a script for bash, zsh or fish. Put it where the shell looks for completions, or have the "
        'shell read it when it starts: eval "$(stagegbo completion bash)". It needs argcomplete: '
        "pip install 'pytest-stagegbo[completion]'.",
    )
    completion.add_argument("shell", choices=SHELLS, help="the shell that reads it")
    completion.set_defaults(run=_completion)


def _completion(arguments: argparse.Namespace) -> int:
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise MissingRequirement(
            "completion: the package argcomplete is not installed", remedy="pip install 'pytest-stagegbo[completion]'"
        ) from None
    print(shellcode(["stagegbo"], shell=arguments.shell))
    return 0


def complete() -> None:
    """Answer a shell, and end this process."""
    try:
        from argcomplete.finders import CompletionFinder
    except ImportError:
        sys.exit(MissingRequirement.exit_code)
    from pytest_stagegbo.cli.parser import command_of, new_parser

    line, point = os.environ.get("COMP_LINE", ""), int(os.environ.get("COMP_POINT", "0") or 0)
    words = line[:point].split(" ")[1:-1]  # the last one is yet to be completed
    parser = new_parser(command_of(words))
    _add_completers(parser)
    CompletionFinder(always_complete_options=False)(parser)


def _limit() -> None:
    """From now on this process has so many seconds. No words are better than a shell that stands still."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(PATIENCE)


def _add_completers(parser: argparse.ArgumentParser) -> None:
    from pytest_stagegbo.cli.command import parsers_in

    for command, _, found in (("", "", parser), *parsers_in(parser)):
        for action in found._actions:
            completer = _COMPLETERS.get((command, action.dest)) or _COMPLETERS.get(("", action.dest))
            if completer is not None:
                action.completer = completer  # type: ignore[attr-defined] # where argcomplete looks for it


def _words(find: Callable[[Context], Iterable[str]]) -> Callable[..., list[str]]:
    """A completer: words that `find` knows for the settings of the line so far. Whatever fails, there are none."""

    def completer(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        from pytest_stagegbo.cli.context import open_context

        before, comma, _word = prefix.rpartition(",")  # of a list, the last name is completed
        with suppress(Exception):
            found = find(open_context(parsed_args))
            return [f"{before}{comma}{each}" for each in found if each not in before.split(",")]
        return []

    return completer


def _containers(context: Context) -> Iterable[str]:
    return context.loaded.settings.containers


def _resettable(context: Context) -> Iterable[str]:
    return ["all", *(name for name, each in context.loaded.settings.containers.items() if each.resettable)]


def _kept(context: Context) -> Iterable[str]:
    from pytest_stagegbo.plan.baselines import keepers

    return [each.name for each in keepers(context.loaded.settings)]


def _connectable(context: Context) -> Iterable[str]:
    known = {"postgresql", "valkey", "s3"}
    found = context.loaded.settings.containers.items()
    return [name for name, each in found if known & {probe.protocol for probe in each.probes[:1]}]


def _baselines(context: Context) -> Iterable[str]:
    _limit()
    engine = context.engine()
    try:
        return sorted(engine.baselines.found().folders)
    finally:
        engine.close()


def _slots(context: Context) -> Iterable[str]:
    _limit()
    return [str(number) for number in context.fleet().members() if number >= 0]


def _checks(prefix: str, **_: Any) -> list[str]:
    from pytest_stagegbo.verify.table import CHECKS

    return [check.id for check in CHECKS if check.id.startswith(prefix)]


def _deployed(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Of `deploy`: the artefacts of the container that the line names."""
    if "=" in prefix:
        from argcomplete.completers import FilesCompleter

        artefact, _equals, file = prefix.partition("=")
        return [f"{artefact}={each}" for each in FilesCompleter()(file)]
    found = _words(lambda context: context.loaded.settings.containers[parsed_args.name].deploy)
    with suppress(KeyError):
        return [f"{name}=" for name in found(prefix, parsed_args)]
    return []


_COMPLETERS: dict[tuple[str, str], Callable[..., list[str]]] = {
    ("", "slot"): _words(_slots),
    ("reset", "names"): _words(_resettable),
    ("provision", "refresh"): _words(_containers),
    ("wait", "names"): _words(_containers),
    ("env", "names"): _words(_containers),
    ("logs", "names"): _words(_containers),
    ("exec", "name"): _words(_containers),
    ("shell", "name"): _words(_containers),
    ("deploy", "name"): _words(_containers),
    ("deploy", "files"): _deployed,
    ("forward", "names"): _words(_containers),
    ("expose", "target"): _words(_containers),
    ("connect", "name"): _words(_connectable),
    ("baseline", "name"): _words(_baselines),
    ("baseline", "containers"): _words(_kept),
    ("run", "baseline"): _words(_baselines),
    ("run", "reset"): _words(_resettable),
    ("verify", "check"): _checks,
}
"""By command (of all where it is empty) and argument."""
