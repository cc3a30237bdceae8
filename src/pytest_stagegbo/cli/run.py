"""The command `run`: it runs a program of this host that uses the stage as a test does."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.errors import MissingRequirement, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.progress import Progress, Relay
    from pytest_stagegbo.slots.lease import Lease

__all__ = ["register"]

AUTO = "auto"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a command on this host that uses the stage, with the stage's variables",
        usage="%(prog)s [options] -- COMMAND ...",
        description="Run a command on this host with the stage's addresses and credentials in its environment. The "
        "stage is provisioned if something is missing, and locked as for a test. Signals are passed on to the "
        "command, and its exit status becomes that of this command. With --slot auto it gets a slot that nobody uses.",
    )
    run.add_argument(
        "--reset",
        metavar="NAMES",
        action="append",
        help="containers to reset first, such as cache,drive or all; nobody else uses them until the command ends",
    )
    run.add_argument(
        "--baseline",
        metavar="NAME",
        help="a saved baseline that the stage is brought to first; nobody else uses its containers until the command "
        "ends",
    )
    run.add_argument(
        "--deploy",
        metavar="ARTEFACT=FILE",
        action="append",
        help="a build that the stage runs first: botserver=target/release/botserver; may be given again",
    )
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    argv = arguments.argv
    if not argv:
        raise SettingsError("run: no command to run", remedy="`stagegbo run -- COMMAND`")
    if shutil.which(argv[0]) is None:
        raise MissingRequirement(f"run: there is no command {argv[0]} here", remedy="install it, or correct its name")
    resets = [name for text in arguments.reset or () for name in text.split(",") if name]
    auto = arguments.slot == AUTO
    if auto:
        arguments.slot = None
    if arguments.deploy:  # relative to where the command was given
        arguments.deploy = [_absolute(word) for word in arguments.deploy]
    context = open_context(arguments)
    from pytest_stagegbo.plan.builds import wanted_files
    from pytest_stagegbo.progress import Relay
    from pytest_stagegbo.session.command import run_command

    wanted_files(context.stage)  # what can't be understood is said before anything is done

    relay = Relay()
    with _shown(relay, quiet=arguments.quiet):
        engine, lease = _stage(context, relay, auto=auto or (not context.slot and context.stage.slots.count != 1))
    try:
        return run_command(
            engine, argv, resets=resets, baseline=arguments.baseline or "", showing=_shown(relay, quiet=arguments.quiet)
        )
    finally:
        if lease is not None:
            lease.release()


def _absolute(word: str) -> str:
    where, equals, file = word.partition("=")
    return f"{where}={Path(file).expanduser().absolute()}" if equals and file else word


@contextlib.contextmanager
def _shown(relay: Relay, *, quiet: bool) -> Iterator[None]:
    """Show progress while the block runs: a live line must not be on the terminal together with the command."""
    from pytest_stagegbo.cli.console import console_progress
    from pytest_stagegbo.progress import Silent

    with console_progress(quiet=quiet) as relay.target:
        try:
            yield
        finally:
            relay.target = Silent()


def _stage(context: Context, progress: Progress, *, auto: bool) -> tuple[StageEngine, Lease | None]:
    """The stage that the command gets, and its lease where there are slots."""
    if not (auto or context.slot):
        return context.engine(progress), None
    from msgspec.structs import replace

    from pytest_stagegbo.slots.lease import take, take_free

    if not auto:
        return context.engine(progress), take(context.fleet(progress), [context.slot], "run")
    settings = context.stage
    if settings.slots.count == 1:  # nobody has said how many there may be: as many as fit
        settings = replace(settings, slots=replace(settings.slots, count="auto"))
    fleet = replace(context, stage=settings).fleet(progress)
    lease = take_free(fleet, "run")
    return fleet.engine(lease.number if lease is not None else 0), lease
