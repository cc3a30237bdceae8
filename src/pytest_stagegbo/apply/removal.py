"""Clones stopped and deleted, with patience for what the daemon still does on behalf of a run that was killed, and
without anybody waiting for it who shares the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import NotOurs, OperationFailed, ServerRefused
from pytest_stagegbo.facts.quotas import counts_deletions
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.emptying import empty_volume
from pytest_stagegbo.workers import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.incus import Instance, Reader, Writer
    from pytest_stagegbo.incus.records import Project
    from pytest_stagegbo.settings import Settings

__all__ = ["let_end", "let_stop", "patiently", "refuse_unable", "remove_clone"]

SETTLING = 10.0
"""Seconds at most for a container that failed to start to be stopped."""
STAYS = 1.0
"""Seconds after which it will stay so."""


def refuse_unable(writer: Writer, project: Project | None) -> None:
    """See that this client may change the stage's project, before anything in it is changed: it is written as it is.

    A certificate that is restricted to projects may delete what is in them, but neither the project nor its bridge.

    Raises:
        ServerRefused: it may not.
    """
    if project is None:
        return
    try:
        writer.replace_project(project.config, project.description)
    except ServerRefused as error:
        if error.status == 403:
            raise


def remove_clone(reader: Reader, writer: Writer, settings: Settings, name: str) -> None:
    """Stop and delete a clone of this tool's; one that is gone is fine.

    One that runs is marked as unfinished first: should this process be killed here, the next run would otherwise
    take a clone that is being stopped for one to wait for.

    Raises:
        NotOurs: this tool did not make it, or it is a copy.
    """

    def remove() -> None:
        let_end(reader, settings, name)
        clone = reader.instance(settings.project, name)
        if clone is None:
            return
        if not marks.is_clone(clone, settings):
            raise NotOurs(f"{name} in {settings.project} was not made by pytest-stagegbo, so it is left alone")
        if clone.status not in {"Stopped", "Error"}:  # Incus refuses to stop a broken one, and deletes it
            _mark_unfinished(writer, clone)
            writer.set_state(name, "stop", force=True)
        if clone.status != "Error":
            _empty(reader, writer, settings, clone)
        writer.delete_instance(name)

    patiently(remove, settings.timeouts.operation)


def _mark_unfinished(writer: Writer, clone: Instance) -> None:
    if clone.config.get(marks.STATE) != marks.BUILDING:
        writer.set_instance_config(clone.name, {marks.STATE: marks.BUILDING})


def _empty(reader: Reader, writer: Writer, settings: Settings, clone: Instance) -> None:
    """Delete a stopped clone's files first, where its deletion would make production wait."""
    if not clone.pool or clone.pool == settings.storage.own:
        return
    host, pool = reader.host(), reader.pool(clone.pool)
    if not counts_deletions(host.quotas(pool)):
        return
    _mark_unfinished(writer, clone)
    there = reader.instance(settings.project, clone.name)
    if there is not None and there.status == "Stopped":
        empty_volume(host, pool, there.project, there.name, (marks.SNAPSHOT,), interrupted)


def let_end(reader: Reader, settings: Settings, name: str) -> None:
    """Wait for what a run that was killed had asked for, before a clone is looked at: one that is about to start is
    still called stopped, and runs in the middle of what is done next. A clone that is deleted while its snapshot is
    taken leaves the volume of that, which Incus then neither deletes nor knows.

    Raises:
        OperationFailed: it did not end in time.
    """
    deadline = clocks.monotonic() + settings.timeouts.operation
    while reader.is_worked_on(settings.project, name):
        if clocks.monotonic() > deadline:
            raise OperationFailed(
                f"{name} in {settings.project} can't be changed: an earlier operation on it goes on",
                seen=f"after {settings.timeouts.operation:g} s (timeouts.operation)",
                remedy=f"see `incus operation list --project {settings.project}`, then run this again",
            )
        clocks.sleep(0.05)  # a poll with a deadline: several may be waited for, and another one begin


def patiently(attempt: Callable[[], None], timeout: float) -> None:
    """Try again while the daemon still works on what a run that was killed had asked for."""
    deadline = clocks.monotonic() + timeout
    while True:
        try:
            return attempt()
        except (OperationFailed, ServerRefused) as error:
            if not dialect.is_busy(error) or clocks.monotonic() > deadline:
                raise
        clocks.sleep(0.05)  # a poll with a deadline: nobody has the name of that operation any more


def let_stop(reader: Reader, project: str, name: str) -> None:
    """Wait until a container that failed to start stays stopped: Incus calls it running once more meanwhile, and the
    next run would wait for it."""
    since = clocks.monotonic()
    deadline = since + SETTLING
    while clocks.monotonic() < min(since + STAYS, deadline):
        clone = reader.instance(project, name)
        if clone is not None and clone.is_running:
            since = clocks.monotonic()
        clocks.sleep(0.1)  # a poll with a deadline: there is no operation to wait for
