"""Where the time of one `provision` goes, from the step timings that it prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks._measure import percentile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Kind", "PathStep", "critical_path", "kinds"]


@dataclass(frozen=True, slots=True)
class Kind:
    """Steps of one kind, over all rounds."""

    name: str
    count: int
    """In one round."""
    p50: float
    longest: float


@dataclass(frozen=True, slots=True)
class PathStep:
    """One step of the chain that nothing could have been finished before."""

    key: str
    waited: float
    """Seconds between the end of what it waited for and its begin."""
    seconds: float


def kinds(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[Kind]:
    """Kinds of steps (`copy`, `start`) in the order in which they first begin."""
    durations: dict[str, list[float]] = {}
    for timings in rounds:
        for timing in sorted(timings, key=lambda timing: float(timing["began"])):
            kind = str(timing["key"]).partition(":")[0]
            durations.setdefault(kind, []).append(timing["ended"] - timing["began"])
    return [
        Kind(name, round(len(values) / len(rounds)), percentile(values, 50), max(values))
        for name, values in durations.items()
    ]


def critical_path(timings: Sequence[Mapping[str, Any]], after: Mapping[str, Sequence[str]]) -> list[PathStep]:
    """From the step that ended last back along what each waited for longest, in the order of time.

    Args:
        after: Keys of the steps that each step waits for.
    """
    steps = {str(timing["key"]): timing for timing in timings}
    path: list[PathStep] = []
    key: str | None = max(steps, key=lambda name: float(steps[name]["ended"]), default=None)
    while key is not None:
        step = steps[key]
        before = [name for name in after.get(key, ()) if name in steps]
        previous = max(before, key=lambda name: float(steps[name]["ended"]), default=None)
        free = float(steps[previous]["ended"]) if previous else 0.0
        path.append(PathStep(key, max(step["began"] - free, 0.0), step["ended"] - step["began"]))
        key = previous
    return path[::-1]
