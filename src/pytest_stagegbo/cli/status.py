"""The commands `status`, `endpoints` and `doctor`, which change nothing."""

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo import clocks
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_json, print_variables
from pytest_stagegbo.cli.remedies import aimed
from pytest_stagegbo.text import age_text, bytes_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pytest_stagegbo.engine.status import ContainerStatus, StageStatus
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.slots.statuses import SlotStatus

__all__ = ["fault_lines", "register", "short_rows", "use_lines"]

WIDE = ("container", "state", "address", "answers", "disk of its own", "limit", "copied", "production since")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser(
        "status", help="show each clone's state, address, port and age, and who uses the stage"
    )
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--wide", action="store_true", help="also show answers, disk use, and what changed in production")
    status.set_defaults(run=_status)
    endpoints = commands.add_parser("endpoints", help="show addresses and ports of the services, without credentials")
    form = endpoints.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--env", action="store_true", help="print lines for a shell: NAME=value")
    endpoints.set_defaults(run=_endpoints)
    doctor = commands.add_parser("doctor", help="check what provisioning needs, and name a remedy for each fault")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)


def _status(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.slots.statuses import slot_statuses

    context = open_context(arguments)
    settings = context.loaded.settings
    whole = arguments.json or arguments.wide  # else nobody sees what takes most of the requests
    status = context.engine().status(disk=whole)
    fleet = context.fleet()
    slots, source_drift = slot_statuses(fleet), fleet.source_drift() if whole else {}
    if arguments.json:
        exposed = [{**structs.asdict(each), "state": each.state} for each in status.exposed]
        more = {"exposed": exposed, "slots": [dataclasses.asdict(slot) for slot in slots], "moved": source_drift}
        containers = [
            {**dataclasses.asdict(each), "deployed": [structs.asdict(file) for file in each.deployed]}
            for each in status.containers
        ]
        more["containers"] = containers
        print_json({**dataclasses.asdict(status), "ready": status.ready, **more})
    else:
        from pytest_stagegbo.cli.console import print_loudly, print_table

        if arguments.wide:
            print(f"{status.project} on {status.network}, {status.server}")
            rows = [(*_row(container), source_drift.get(container.name, "")) for container in status.containers]
            print_table(WIDE, rows)
        else:
            print_table(("container", "state", "address", "port", "age"), short_rows(status, settings))
        if status.member:
            print(f"{status.project} is on cluster member {status.member}")
        for line in (*build_lines(status), *use_lines(slots), *fault_lines(status)):
            print(aimed(line, arguments))
        if not status.ready and settings.source_project not in context.engine().reader.projects():
            print_loudly(f"there is no project {settings.source_project} to copy production from (source_project)")
        if len(slots) > 1:
            _print_slots(slots)
        if status.trouble:
            print_loudly(status.trouble)
        for warning in status.warnings:
            print_loudly(warning)
        for text in status.unseen:
            print(aimed(text, arguments))
        for text in status.burdens:
            print(aimed(f"{text}; `stagegbo doctor` says what can be done", arguments))
        for each in status.exposed:
            print_loudly(f"EXPOSED ({each.state}): {each}")
    return 0 if status.ready else 1


def _print_slots(slots: Sequence[SlotStatus]) -> None:
    from pytest_stagegbo.cli.console import print_table

    head: tuple[str, ...] = ("slot", "project", "on", "state", "copied", "used by")
    rows = [_slot_row(slot) for slot in slots]
    if any(slot.member for slot in slots):
        head = (*head[:2], "member", *head[2:])
        rows = [(*row[:2], slot.member or "-", *row[2:]) for row, slot in zip(rows, slots, strict=True)]
    print_table(head, rows)


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


def _endpoints(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.settings.addresses import endpoints

    context = open_context(arguments)
    settings = context.loaded.settings
    found = endpoints(settings)
    if arguments.json:
        print_json([dataclasses.asdict(endpoint) for endpoint in found])
    elif arguments.env:
        print_variables(found)
    else:
        from pytest_stagegbo.cli.console import print_table

        rows = [(e.container, e.protocol, e.host, str(e.port), e.url) for e in found]
        print_table(("container", "protocol", "host", "port", "url"), rows)
    if settings.project not in context.engine().reader.projects():
        text = f"there is no stage {settings.project}, so nothing answers there: `stagegbo provision` makes it"
        print(aimed(text, arguments), file=sys.stderr)
        return 1
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.doctor import examine

    findings = examine(arguments)
    if arguments.json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        from pytest_stagegbo.cli.console import print_table

        rows = [
            (finding.state, finding.subject, finding.seen, aimed(finding.remedy, arguments)) for finding in findings
        ]
        print_table(("", "what", "seen", "what to do"), rows)
    return 1 if any(finding.state == "failed" for finding in findings) else 0
