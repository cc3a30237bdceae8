"""The command `wait`: it returns once the stage answers, is free, or is gone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.errors import LockTimeout, NotReady, ServerUnreachable, SettingsError, StageGboError, StageMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.cli.context import Context

__all__ = ["register", "until"]

READY, FREE, GONE = "ready", "free", "gone"
PAUSE = 0.5
"""Seconds between two looks."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    wait = commands.add_parser(
        "wait",
        help="wait until the stage answers, nobody uses it, or it is gone; for scripts",
        description="Wait until every service of the stage answers, or those of the named containers; with --for free "
        "until nobody uses the stage, with --for gone until it does not exist. It only looks: `stagegbo provision` "
        "makes a stage. Ends with status 0 when it is so, with 6 (ready, gone) or 8 (free) when it is not in time.",
    )
    wait.add_argument("names", metavar="NAME", nargs="*", help="with --for ready: only these containers")
    wait.add_argument(
        "--for", dest="what", choices=(READY, FREE, GONE), default=READY, help="what to wait for (default ready)"
    )
    wait.add_argument(
        "--timeout", type=_length, default=120.0, metavar="TIME", help="how long, such as 30s or 5m (default 2m)"
    )
    wait.set_defaults(run=_wait)


def _length(text: str) -> float:
    from pytest_stagegbo.settings.duration import parse_duration

    try:
        return 0.0 if text == "0" else parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is {error}, nor 0") from None


def _wait(arguments: argparse.Namespace) -> int:
    if arguments.names and arguments.what != READY:
        raise SettingsError(
            f"wait: --for {arguments.what} is about the whole stage", remedy="name no container, or use --for ready"
        )
    context = open_context(arguments)
    settings = context.loaded.settings
    if unknown := [name for name in arguments.names if name not in settings.containers]:
        raise SettingsError.unknown("no container", unknown, settings.containers)
    began = clocks.monotonic()
    until(context, arguments.what, arguments.names, arguments.timeout)
    what = ", ".join(arguments.names) or settings.project
    verb = "are" if len(arguments.names) > 1 else "is"
    print(f"{what} {verb} {arguments.what} after {clocks.monotonic() - began:.1f} s")
    return 0


def until(context: Context, what: str, names: Sequence[str], timeout: float) -> None:
    """Return once the stage is ready, free or gone.

    Raises:
        NotReady, LockTimeout: it is not in time.
        ServerUnreachable: the daemon did not answer until then.
    """
    deadline = clocks.monotonic() + timeout
    look = {READY: lambda: _not_ready(context, names), FREE: lambda: _not_free(context), GONE: lambda: _there(context)}
    while True:
        problem: StageGboError | None
        try:
            problem = look[what]()
        except (ServerUnreachable, StageMissing) as error:  # a host that starts, a slot that is being made
            if isinstance(error, StageMissing) and what != READY:
                return
            problem = error
        if problem is None:
            return
        if clocks.monotonic() >= deadline:
            if isinstance(problem, (NotReady, LockTimeout)):
                problem.message = f"{problem.message} within {timeout:g} s"
            raise problem
        clocks.sleep(min(PAUSE, max(0.0, deadline - clocks.monotonic())))


def _not_ready(context: Context, names: Sequence[str]) -> StageGboError | None:
    from pytest_stagegbo.cli.sight import fault_lines

    status = context.engine().status(disk=False)
    waited_for = [each for each in status.containers if not names or each.name in names]
    if waited_for and all(each.is_well for each in waited_for):
        return None
    remedy = "`stagegbo status` says what is wrong; `stagegbo provision` makes what is missing"
    what = ", ".join(each.name for each in waited_for if not each.is_well)
    return NotReady(f"{status.project} is not ready ({what})", seen="\n".join(fault_lines(status)), remedy=remedy)


def _not_free(context: Context) -> StageGboError | None:
    from pytest_stagegbo.slots.statuses import slot_statuses

    project = context.loaded.settings.project
    users = [slot.used_by for slot in slot_statuses(context.fleet()) if slot.project == project and slot.used_by]
    if not users:
        return None
    return LockTimeout(
        f"{project} is not free", seen="used by " + "; ".join(users), remedy="wait for it or end it: `stagegbo status`"
    )


def _there(context: Context) -> StageGboError | None:
    project = context.loaded.settings.project
    if project not in context.engine().reader.projects():
        return None
    return NotReady(f"{project} is not gone", seen="its project exists", remedy="`stagegbo destroy` removes it")
