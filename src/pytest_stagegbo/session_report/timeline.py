"""Puts the records of several processes together: who ran what when, and who waited for whom."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from typing import TYPE_CHECKING

from msgspec import Struct, field

from pytest_stagegbo.session_report import events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_stagegbo.session_report.reading import Records

__all__ = ["Blocked", "Case", "Run", "Timeline", "Worker", "joined"]

MAIN, CONTROLLER = "main", "controller"
"""Names of processes that have the terminal. The second one runs no tests."""


class Run(Struct):
    """One session of pytest, on one host."""

    id: str
    host: str
    began: float
    ended: float
    workers: int
    ending: events.Ending | None = None
    """None: it was killed."""
    facts: dict[str, str] = field(default_factory=dict)


class Worker(Struct, frozen=True):
    """A process that ran tests."""

    run: int
    name: str


class Case(Struct, frozen=True):
    """A test that one of the workers ran."""

    worker: int
    test: events.Test


class Blocked(Struct, frozen=True):
    """A wait, and what it was for."""

    worker: int
    wait: events.Wait
    by: tuple[int, ...]
    """Cases that had what it waited for, the one that had it longest first. None of them is known: see `holders`."""

    @property
    def seconds(self) -> float:
        return self.wait.ended - self.wait.began


class Timeline(Struct):
    """All records on one clock: seconds since the epoch."""

    runs: list[Run] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    waits: list[Blocked] = field(default_factory=list)
    resets: list[tuple[int, events.Reset]] = field(default_factory=list)
    """Each with the worker that did it."""
    steps: list[tuple[int, events.Step]] = field(default_factory=list)
    freezes: list[tuple[int, events.Freeze]] = field(default_factory=list)
    notices: list[tuple[int, events.Notice]] = field(default_factory=list)
    """Each with its worker; -1: of no worker that ran a test."""
    rooms: dict[str, list[events.Room]] = field(default_factory=dict)
    """By place, as all processes saw it."""
    usages: dict[str, list[events.Usage]] = field(default_factory=dict)
    """By project."""
    unread: int = 0

    @property
    def began(self) -> float:
        return min((run.began for run in self.runs), default=0.0)

    @property
    def ended(self) -> float:
        return max((run.ended for run in self.runs), default=0.0)


def joined(found: Iterable[Records]) -> Timeline:
    """The timeline of all records, in the order of their sessions."""
    timeline = Timeline()
    runs: dict[tuple[str, str], int] = {}
    for records in found:
        header = records.header
        key = (header.run, header.host)
        if key not in runs:
            runs[key] = len(timeline.runs)
            timeline.runs.append(Run(header.run, header.host, header.at, header.at, header.workers))
        number = runs[key]
        run = timeline.runs[number]
        run.workers = max(run.workers, header.workers)
        run.began = min(run.began, header.at)
        timeline.unread += records.unread
        _add(timeline, number, header.worker, records.events)
    timeline.cases.sort(key=lambda case: case.test.began)
    timeline.waits = _blocked(timeline)
    for rooms in timeline.rooms.values():
        rooms.sort(key=lambda room: room.at)
    for usages in timeline.usages.values():
        usages.sort(key=lambda usage: usage.at)
    return timeline


def _add(timeline: Timeline, number: int, name: str, found: Sequence[events.Event]) -> None:
    run, worker = timeline.runs[number], -1
    if name != CONTROLLER:
        worker = len(timeline.workers)
        timeline.workers.append(Worker(number, name))
    for event in found:
        run.ended = max([run.ended, *(getattr(event, each, 0.0) for each in ("at", "ended"))])
        match event:
            case events.Test():
                timeline.cases.append(Case(worker, event))
            case events.Wait():
                timeline.waits.append(Blocked(worker, event, ()))
            case events.Reset():
                timeline.resets.append((worker, event))
            case events.Step():
                timeline.steps.append((worker, event))
            case events.Freeze():
                timeline.freezes.append((worker, event))
            case events.Notice():
                timeline.notices.append((worker, event))
            case events.Room():
                timeline.rooms.setdefault(_place(run, event), []).append(event)
            case events.Usage():
                timeline.usages.setdefault(event.project, []).append(event)
            case events.Ending():
                run.facts |= event.facts
                run.ending = event if name in {MAIN, CONTROLLER} else run.ending
            case _:
                pass


def _place(run: Run, room: events.Room) -> str:
    return f"{room.where} of {run.host}"


# -- who waited for whom


def _blocked(timeline: Timeline) -> list[Blocked]:
    """The waits, each with the tests that had what it waited for, the longest wait first."""
    by_worker: dict[int, list[int]] = defaultdict(list)
    for number, case in enumerate(timeline.cases):
        by_worker[case.worker].append(number)
    begins = {worker: [timeline.cases[each].test.began for each in cases] for worker, cases in by_worker.items()}
    waiting = {(case.worker, case.test.test): case.test for case in timeline.cases}
    found = []
    for each in timeline.waits:
        test = waiting.get((each.worker, each.wait.test))
        by = _holders(timeline, each, test, by_worker, begins) if test is not None and each.wait.names else ()
        found.append(Blocked(each.worker, each.wait, by))
    return sorted(found, key=lambda each: -each.seconds)


def _holders(
    timeline: Timeline,
    blocked: Blocked,
    test: events.Test,
    by_worker: Mapping[int, Sequence[int]],
    begins: Mapping[int, Sequence[float]],
) -> tuple[int, ...]:
    wait, overlaps = blocked.wait, []
    for worker, cases in by_worker.items():
        if worker == blocked.worker:
            continue
        place = bisect_right(begins[worker], wait.ended)
        while place:
            place -= 1
            other = timeline.cases[cases[place]].test
            if other.ended <= wait.began:
                break
            if other.project == wait.project and excludes(other, test):
                overlap = min(other.ended, wait.ended) - max(other.began, wait.began)
                overlaps.append((-overlap, cases[place]))
    return tuple(number for _, number in sorted(overlaps))


def excludes(holder: events.Test, other: events.Test) -> bool:
    """Whether a test that has its containers keeps another one from getting those that it needs."""
    uses, wanted = set(holder.uses), set(other.uses)
    return bool(
        wanted.intersection(holder.resets)
        or uses.intersection(other.resets)
        or wanted.intersection(holder.quiet)
        or uses.intersection(other.quiet)
    )
