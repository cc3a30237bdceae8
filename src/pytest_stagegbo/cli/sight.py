"""What is seen of a stage, for `status`, `status --watch` and `wait`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from pytest_stagegbo import clocks
from pytest_stagegbo.cli.remedies import aimed
from pytest_stagegbo.text import age_text, bytes_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_stagegbo.cli import shapes
    from pytest_stagegbo.cli.console import Grid, Part
    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.status import ContainerStatus, StageStatus
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.slots.statuses import SlotStatus

__all__ = ["Sight", "fault_lines", "look", "parts", "shape_of", "short_rows", "use_lines"]

WIDE = ("container", "state", "address", "answers", "disk of its own", "limit", "copied", "production since")


class Sight(NamedTuple):
    """What a look at the stage has shown."""

    status: StageStatus
    slots: Sequence[SlotStatus]
    source_drift: Mapping[str, str]
    """Empty where nobody has asked for it."""


def look(context: Context, *, whole: bool) -> Sight:
    """Look at the stage. It is read, and never written.

    Args:
        whole: Ask for disk use and changes in production as well, which takes most of the requests.
    """
    from pytest_stagegbo.slots.statuses import slot_statuses
    from pytest_stagegbo.workers import Workers

    engine, fleet = context.engine(), context.fleet()
    engine.reader.server()  # one that does not answer is waited for once
    with Workers(2, "stagegbo look") as threads:  # Incus takes its time over lists of networks and access lists
        slots = threads.submit(slot_statuses, fleet)
        drift = threads.submit(fleet.source_drift) if whole else None
        status = engine.status(disk=whole)
        return Sight(status, slots.result(), drift.result() if drift is not None else {})


def shape_of(sight: Sight) -> shapes.Status:
    """What `--json` prints."""
    from pytest_stagegbo.cli import shapes

    status = sight.status
    return shapes.Status(
        project=status.project,
        exists=status.exists,
        ready=status.ready,
        network=status.network,
        server=status.server,
        member=status.member,
        containers=[shapes.shaped(shapes.Container, each) for each in status.containers],
        slots=[shapes.shaped(shapes.Slot, each) for each in sight.slots],
        exposed=[shapes.shaped(shapes.ExposedPort, each) for each in status.exposed],
        moved=dict(sight.source_drift),
        trouble=status.trouble,
        warnings=list(status.warnings),
        burdens=list(status.burdens),
        unseen=list(status.unseen),
    )


def parts(sight: Sight, context: Context, arguments: argparse.Namespace) -> Iterator[Part]:
    """What people see."""
    from pytest_stagegbo.cli.console import Grid, Loud

    status, slots, settings = sight.status, sight.slots, context.loaded.settings
    if arguments.wide:
        yield f"{status.project} on {status.network}, {status.server}"
        yield Grid(WIDE, [(*_row(each), sight.source_drift.get(each.name, "")) for each in status.containers])
    else:
        yield Grid(("container", "state", "address", "port", "age"), short_rows(status, settings))
    if status.member:
        yield f"{status.project} is on cluster member {status.member}"
    for line in (*build_lines(status), *use_lines(slots), *fault_lines(status)):
        yield aimed(line, arguments)
    if not status.ready and settings.source_project not in context.engine().reader.projects():
        yield Loud(f"there is no project {settings.source_project} to copy production from (source_project)")
    if len(slots) > 1:
        yield _slots(slots)
    if status.trouble:
        yield Loud(status.trouble)
    for warning in status.warnings:
        yield Loud(warning)
    for text in status.unseen:
        yield aimed(text, arguments)
    for text in status.burdens:
        yield aimed(f"{text}; `stagegbo doctor` says what can be done", arguments)
    for each in status.exposed:
        yield Loud(f"EXPOSED ({each.state}): {each}")


def _slots(slots: Sequence[SlotStatus]) -> Grid:
    from pytest_stagegbo.cli.console import Grid

    head: tuple[str, ...] = ("slot", "project", "on", "state", "copied", "used by")
    rows = [_slot_row(slot) for slot in slots]
    if any(slot.member for slot in slots):
        head = (*head[:2], "member", *head[2:])
        rows = [(*row[:2], slot.member or "-", *row[2:]) for row, slot in zip(rows, slots, strict=True)]
    return Grid(head, rows)


def short_rows(status: StageStatus, settings: Settings) -> list[tuple[str, ...]]:
    """Return a row for each container."""
    return [
        (
            each.name,
            each.state,
            each.address,
            ",".join(str(probe.port) for probe in settings.containers[each.name].probes),
            _age(each.created_at),
        )
        for each in status.containers
    ]


def use_lines(slots: Sequence[SlotStatus]) -> list[str]:
    """Return a line for the stage, and for each slot, that somebody holds locks of."""
    return [f"{slot.project} is used by {slot.used_by}" for slot in slots if slot.used_by]


def build_lines(status: StageStatus) -> list[str]:
    """Return a line for each deployed file."""
    return [
        f"{each.name} runs {file.name} {file.short}, deployed {_ago(file.since)} by {file.by}"
        for each in status.containers
        for file in each.deployed
    ]


def _ago(since: str) -> str:
    return f"{age_text(clocks.now() - datetime.fromisoformat(since).timestamp())} ago"


def fault_lines(status: StageStatus) -> list[str]:
    """Return a line for each container that is not ready, with its service's answer, and what to do."""
    if all(each.state == "missing" for each in status.containers):
        return [f"there is no stage {status.project}: `stagegbo provision` makes it"]
    found = [
        f"{each.name} is {each.state}" + (": " + "; ".join(each.answers) if each.answers else "")
        for each in status.containers
        if not each.is_well
    ]
    found += [
        f"{each.name} is frozen by {each.frozen_by}; it goes on after that test, or when somebody else uses it"
        for each in status.containers
        if each.frozen_by
    ]
    left = {each.state for each in status.containers if not each.is_well} & {
        "missing",
        "stopped",
        "frozen",
        "unfinished",
    }
    return [*found, *(["`stagegbo provision` makes what is missing and starts what is stopped"] if left else [])]


def _row(container: ContainerStatus) -> tuple[str, ...]:
    used = "-" if container.disk_used is None else bytes_text(container.disk_used)
    copied = _copied(container.created_at)
    answers = "\n".join(answer if len(answer) < 60 else answer[:57] + "..." for answer in container.answers)
    return (container.name, container.state, container.address, answers, used, container.disk_limit, copied)


def _slot_row(slot: SlotStatus) -> tuple[str, ...]:
    name = "golden copy" if slot.number < 0 else str(slot.number)
    state = slot.state + (", clean" if slot.clean else "")
    return (name, slot.project, slot.network, state, _copied(slot.copied), slot.used_by or "nobody")


def _copied(created_at: str) -> str:
    return f"{_made(created_at):%Y-%m-%d %H:%M:%S}, {_age(created_at)} ago" if created_at else "-"


def _age(created_at: str) -> str:
    return age_text(clocks.now() - _made(created_at).timestamp()) if created_at else "-"


def _made(created_at: str) -> datetime:
    return datetime.fromisoformat(created_at[:19]).replace(tzinfo=timezone.utc)  # the daemon writes UTC
