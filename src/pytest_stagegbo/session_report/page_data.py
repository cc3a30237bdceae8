"""What the page is given to show: numbers and texts as JSON, small enough for thousands of tests. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.session_report.advice import advise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_stagegbo.session_report.timeline import Case, Timeline

__all__ = ["page_data", "shorten"]

SHOWN_WAITS = 50
"""Rows of the table of waits. The picture has all of them."""
MOST_POINTS = 600
"""Points of one curve: more than a screen has columns for it."""
MOST_LANES = 48
"""Lanes of containers; where there would be more, a stage's containers share one."""
LEFT_OUT = "(left out here; it is in what pytest printed)"
NO_CONTAINER = "stage"
"""The lane of what was done to a stage as a whole."""


class _Table:
    """Values that occur again and again, each stored once."""

    def __init__(self) -> None:
        self._places: dict[Any, int] = {}

    def place(self, value: Any) -> int:
        return self._places.setdefault(value, len(self._places))

    @property
    def values(self) -> list[Any]:
        return list(self._places)


def page_data(timeline: Timeline, made: float, version: str) -> dict[str, Any]:
    """All that the page shows. Moments are milliseconds since the first session began.

    Args:
        made: When the page was made: seconds since the epoch.
        version: Of this package.
    """
    origin = timeline.began

    def at(moment: float) -> float:
        return round((moment - origin) * 1000, 1)

    def lasted(seconds: float) -> float:
        return round(max(0.0, seconds) * 1000, 1)

    sets, projects, texts = _Table(), _Table(), _Table()
    numbers = {(case.worker, case.test.test): number for number, case in enumerate(timeline.cases)}
    waited: dict[int, float] = defaultdict(float)
    waits = []
    for blocked in timeline.waits:
        wait, number = blocked.wait, numbers.get((blocked.worker, blocked.wait.test), -1)
        waited[number] += blocked.seconds
        waits.append(
            [
                blocked.worker,
                at(wait.began),
                lasted(blocked.seconds),
                number,
                sets.place(wait.names),
                list(blocked.by),
                texts.place(wait.holders),
                texts.place(wait.test),
            ]
        )
    lanes = _Lanes(timeline)
    return {
        "version": version,
        "made": made,
        "began": origin,
        "length": at(timeline.ended),
        "unread": timeline.unread,
        "runs": [_run(timeline, number, at) for number in range(len(timeline.runs))],
        "workers": [[worker.run, worker.name] for worker in timeline.workers],
        "lanes": lanes.found,
        "tests": [
            _test(case, at, lasted, sets, projects, waited[number]) for number, case in enumerate(timeline.cases)
        ],
        "waits": waits,
        "shownWaits": SHOWN_WAITS,
        "resets": [
            [
                worker,
                lanes.place(each.project, each.container),
                at(each.began),
                lasted(each.ended - each.began),
                texts.place(each.way),
                texts.place(each.reason),
                numbers.get((worker, each.test), -1),
                texts.place(each.container),
            ]
            for worker, each in timeline.resets
        ],
        "steps": [
            [
                lanes.place(each.project, _subject(each.key)),
                at(each.began),
                lasted(each.ended - each.began),
                texts.place(each.text),
                texts.place(each.error),
                worker,
            ]
            for worker, each in timeline.steps
        ],
        "freezes": [
            [
                lanes.place(each.project, name),
                at(each.began),
                lasted(each.ended - each.began),
                numbers.get((worker, each.test), -1),
            ]
            for worker, each in timeline.freezes
            for name in each.names
        ],
        "notices": [
            [_worker_of(timeline, worker, each.worker), at(each.at), each.kind, each.text, each.test]
            for worker, each in timeline.notices
        ],
        "pools": _pools(timeline, at),
        "containers": _containers(timeline, at),
        "failures": [
            {
                "test": number,
                "text": case.test.failure,
                "sections": [list(section) for section in case.test.sections],
                "properties": [list(each) for each in case.test.properties],
            }
            for number, case in enumerate(timeline.cases)
            if case.test.outcome in {"failed", "error"}
        ],
        "advice": [[round(each.seconds, 3), each.what, each.why] for each in advise(timeline)],
        "sets": [list(each) for each in sets.values],
        "projects": projects.values,
        "texts": texts.values,
    }


def _run(timeline: Timeline, number: int, at: Any) -> dict[str, Any]:
    run = timeline.runs[number]
    ending = run.ending
    return {
        "id": run.id[:8],
        "host": run.host,
        "began": at(run.began),
        "ended": at(run.ended),
        "status": ending.status if ending is not None else None,
        "lines": list(ending.lines) if ending is not None else [],
        "trouble": list(ending.trouble) if ending is not None else [],
        "facts": run.facts,
    }


def _test(case: Case, at: Any, lasted: Any, sets: _Table, projects: _Table, waited: float) -> list[Any]:
    test = case.test
    called = test.called or test.ended
    returned = test.returned or called
    return [
        test.test,
        case.worker,
        test.outcome,
        at(test.began),
        lasted(called - test.began),
        lasted(returned - called),
        lasted(test.ended - returned),
        lasted(waited),
        projects.place(test.project),
        sets.place(tuple(sorted(test.uses))),
        sets.place(test.resets),
        sets.place(test.quiet),
    ]


def _worker_of(timeline: Timeline, worker: int, name: str) -> int:
    if worker >= 0 or not name:
        return worker
    return next((number for number, each in enumerate(timeline.workers) if each.name == name), -1)


def _subject(key: str) -> str:
    return key.partition(":")[2]


class _Lanes:
    """The lanes below those of the workers: one for each container that something was done to."""

    def __init__(self, timeline: Timeline) -> None:
        known = {name for case in timeline.cases for name in (*case.test.uses, *case.test.quiet)}
        known |= {each.container for _, each in timeline.resets}
        known |= {name for usages in timeline.usages.values() for each in usages for name in each.used}
        pairs = [(each.project, _subject(each.key)) for _, each in timeline.steps]
        pairs += [(each.project, each.container) for _, each in timeline.resets]
        pairs += [(each.project, name) for _, each in timeline.freezes for name in each.names]
        self._known = known
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for project, name in pairs:
            found[project].setdefault(name if name in known else NO_CONTAINER)
        self._whole = sum(map(len, found.values())) > MOST_LANES
        self.found = [
            [project, name]
            for project in sorted(found)
            for name in (
                [NO_CONTAINER] if self._whole else sorted(found[project], key=lambda each: (each != NO_CONTAINER, each))
            )
        ]
        self._places = {(project, name): place for place, (project, name) in enumerate(self.found)}

    def place(self, project: str, name: str) -> int:
        return self._places[project, name if name in self._known and not self._whole else NO_CONTAINER]


def _pools(timeline: Timeline, at: Any) -> list[dict[str, Any]]:
    hosts = {run.host for run in timeline.runs}
    only = f" of {hosts.pop()}" if len(hosts) == 1 else ""
    return [
        {
            "name": where.removesuffix(only),
            "floor": max(room.floor for room in rooms),
            "points": _thinned([(at(room.at), room.free) for room in rooms], lowest=True),
        }
        for where, rooms in sorted(timeline.rooms.items())
    ]


def _containers(timeline: Timeline, at: Any) -> list[dict[str, Any]]:
    curves: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for project, usages in timeline.usages.items():
        for usage in usages:
            for name, size in usage.used.items():
                curves[project, name].append((at(usage.at), size))
    return [
        {"project": project, "name": name, "points": _thinned(points)}
        for (project, name), points in sorted(curves.items())
    ]


def _thinned(points: Sequence[tuple[float, int]], *, lowest: bool = False) -> list[tuple[float, int]]:
    """At most `MOST_POINTS` of a curve, with its first and last one and each stretch's highest, or lowest, one."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = -(-(len(points) - 2) // (MOST_POINTS - 2))
    inner = points[1:-1]
    choose = min if lowest else max
    stretches = (inner[place : place + size] for place in range(0, len(inner), size))
    return [points[0], *(choose(stretch, key=lambda point: point[1]) for stretch in stretches), points[-1]]


def shorten(failures: Iterable[dict[str, Any]], room: int) -> None:
    """Cut the texts of failed tests so that all of them take no more than `room` characters, an equal share each."""
    found = list(failures)
    for failure in found:
        left = room // len(found)
        failure["text"], left = _cut(failure["text"], left)
        sections: list[list[str]] = []
        for title, text in failure["sections"]:
            if left <= 0:
                sections.append(["further sections", LEFT_OUT])
                break
            shown, left = _cut(text, left)
            sections.append([title, shown])
        failure["sections"] = sections


def _cut(text: str, room: int) -> tuple[str, int]:
    """The end of a text, and the room that is left."""
    if len(text) <= room:
        return text, room - len(text)
    end = text[-room:].partition("\n")[2] if room > 0 else ""
    return f"{LEFT_OUT}\n{end}" if end else LEFT_OUT, 0
