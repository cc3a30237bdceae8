"""What would have shortened a session's waits, in sentences, with the seconds that are at stake. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.text import count_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_stagegbo.session_report.timeline import Blocked, Timeline

__all__ = ["Advice", "advise"]

WORTH = 0.1
"""Seconds below which nobody changes anything."""
SLOW = ("restart", "restore", "failed")
"""Ways of a reset that take long."""
NAMED = 3
"""Tests that a sentence names; the table has all."""


class Advice(Struct, frozen=True):
    """One thing to do."""

    seconds: float
    """That tests waited for it, at most: workers that wait at the same time are counted each."""
    what: str
    why: str


def advise(timeline: Timeline) -> list[Advice]:
    """What to do, most seconds first. Parts of it overlap: two pieces of advice may be about the same wait."""
    found = [*_slots(timeline), *_markers(timeline), *_quiet(timeline), *_fresh(timeline), *_resets(timeline)]
    found += _others(timeline)
    return sorted((each for each in found if each.seconds >= WORTH), key=lambda each: -each.seconds)


def _slots(timeline: Timeline) -> Iterator[Advice]:
    """Workers that share a stage wait for each other."""
    users: dict[tuple[int, str], set[int]] = defaultdict(set)
    for case in timeline.cases:
        if case.test.project:
            users[timeline.workers[case.worker].run, case.test.project].add(case.worker)
    waited: dict[tuple[int, str], float] = defaultdict(float)
    for blocked in timeline.waits:
        if blocked.by:
            waited[timeline.workers[blocked.worker].run, blocked.wait.project] += blocked.seconds
    for (run, project), seconds in waited.items():
        workers = len(users[run, project])
        yield Advice(
            seconds,
            f"--stage-slots={timeline.runs[run].workers}",
            f"{count_text(workers, 'worker')} shared {project}. With as many slots as workers, each has a stage of its "
            "own, and none waits for another's locks.",
        )


def _markers(timeline: Timeline) -> Iterator[Advice]:
    """Tests that keep containers to themselves which their fixtures don't stand for."""
    seconds: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    for blocked, holder in _pairs(timeline):
        test = timeline.cases[holder].test
        wanted = set(blocked.wait.names)
        spare = tuple(name for name in test.resets if name not in test.asked and name in wanted)
        if spare and wanted.intersection(test.resets) == set(spare):
            seconds[test.test, spare] += blocked.seconds
    by_names: dict[tuple[str, ...], list[tuple[float, str]]] = defaultdict(list)
    for (name, spare), waited in seconds.items():
        by_names[spare].append((waited, name))
    for spare, tests in by_names.items():
        shown = ", ".join(spare)
        yield Advice(
            sum(waited for waited, _ in tests),
            f"a narrower marker: stage_reset without {shown}",
            f"{_named(name for _, name in sorted(tests, reverse=True))} kept {shown} from others and used no fixture "
            "of it. Where it only has to be still, @pytest.mark.stage_quiet is enough, which such tests share.",
        )


def _quiet(timeline: Timeline) -> Iterator[Advice]:
    """Quiet tests, and tests that use what these have frozen."""
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    """By container and quiet test."""
    waiting = {(case.worker, case.test.test): case.test for case in timeline.cases}
    for blocked, number in _pairs(timeline):
        holder, other = timeline.cases[number].test, waiting[blocked.worker, blocked.wait.test]
        frozen = set(holder.quiet).intersection(other.uses) | set(other.quiet).intersection(holder.uses)
        for name in sorted(frozen)[:1]:
            seconds[name][holder.test if name in holder.quiet else other.test] += blocked.seconds
    for name, tests in seconds.items():
        quiet = _named(sorted(tests, key=lambda test: -tests[test]))
        yield Advice(
            sum(tests.values()),
            f"stage_quiet apart from tests that use {name}",
            f"{quiet} had {name} frozen, and tests that use it waited, or were waited for. Run quiet tests together "
            '(--dist loadgroup with @pytest.mark.xdist_group("quiet")), or leave stage_quiet out where nothing writes.',
        )


def _fresh(timeline: Timeline) -> Iterator[Advice]:
    """Tests that waited for a clean stage of their own."""
    waited: dict[int, float] = defaultdict(float)
    for blocked in timeline.waits:
        if not blocked.wait.names:
            waited[timeline.workers[blocked.worker].run] += blocked.seconds
    for run, seconds in waited.items():
        yield Advice(
            seconds,
            f"--stage-slots={timeline.runs[run].workers + 1} or more",
            "Tests waited for a fresh stage. With more slots than workers, clean ones are in stock.",
        )


def _resets(timeline: Timeline) -> Iterator[Advice]:
    """Resets that could not be done in the quickest way."""
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    reasons: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    times: Counter[tuple[str, str]] = Counter()
    for _, reset in timeline.resets:
        if reset.way in SLOW and reset.test:
            key = (reset.container, reset.way)
            seconds[key] += reset.ended - reset.began
            times[key] += 1
            reasons[key][reset.reason] += 1
    for (name, way), waited in seconds.items():
        reason = reasons[name, way].most_common(1)[0][0]
        yield Advice(
            waited,
            f"quicker resets of {name}",
            f"{count_text(times[name, way], 'reset')} of {name} ended as {way}"
            + (f", most often because: {reason}." if reason else f": containers.{name}.reset asks for it."),
        )


def _others(timeline: Timeline) -> Iterator[Advice]:
    """Waits for what is not in these records."""
    waited = sum(blocked.seconds for blocked in timeline.waits if blocked.wait.names and not blocked.by)
    holders = Counter(blocked.wait.holders for blocked in timeline.waits if blocked.wait.names and not blocked.by)
    if waited >= WORTH:
        who = next((holder for holder, _ in holders.most_common() if holder), "another process")
        yield Advice(
            waited,
            "a stage of this session's own: --stage-project=NAME",
            f"Others than this session's tests had what tests waited for, such as {who}.",
        )


def _pairs(timeline: Timeline) -> Iterator[tuple[Blocked, int]]:
    """Each wait with the test that kept it longest."""
    return ((blocked, blocked.by[0]) for blocked in timeline.waits if blocked.by)


def _named(tests: Iterable[str]) -> str:
    names = list(dict.fromkeys(tests))
    more = f" and {count_text(len(names) - NAMED, 'other')}" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
