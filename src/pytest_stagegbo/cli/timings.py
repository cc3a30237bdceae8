"""Shows where the time of one provisioning went: `provision --timings`. `--json` has the same as `timings`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pytest_stagegbo.apply.scheduler import Timing

__all__ = ["COLUMNS", "rows"]

VERBS = ("remove", "copy", "prepare", "start", "await")
COLUMNS = ("what", *VERBS, "other steps", "began", "ended")


def rows(
    timings: Sequence[Timing], containers: Collection[str], seconds: float, *, start_up: float = 0.0, requests: int = 0
) -> list[tuple[str, ...]]:
    """Return a row for each container, one for each other step, and one for what came before and after. Pure.

    Args:
        seconds: Of the whole provisioning.
        start_up: Seconds that the process took before it.
        requests: To the daemon.
    """
    found: list[tuple[str, ...]] = []
    if start_up:
        found.append(_single("start of this process", _text(start_up)))
    for timing in timings:
        verb, _, subject = timing.key.partition(":")
        if subject not in containers:
            found.append((f"{verb} {subject}", *[""] * len(VERBS), *map(_text, _of([timing])), *_ends([timing])))
    for name in containers:
        own = [timing for timing in timings if timing.key.partition(":")[2] == name]
        by_verb = [[timing for timing in own if timing.key == f"{verb}:{name}"] for verb in VERBS]
        other = [timing for timing in own if timing.key.partition(":")[0] not in VERBS]
        if own:
            texts = [_text(value) for steps in (*by_verb, other) for value in _of(steps)]
            found.append((name, *texts, *_ends(own)))
    outside = seconds - max((timing.ended for timing in timings), default=0.0)
    found.append(_single("before and after the steps", _text(outside)))
    if requests:
        found.append(_single("requests to Incus", str(requests)))
    return found


def _single(what: str, text: str) -> tuple[str, ...]:
    return (what, *[""] * len(VERBS), text, "", "")


def _of(steps: Sequence[Timing]) -> list[float]:
    return [sum(step.ended - step.began for step in steps)]


def _ends(steps: Sequence[Timing]) -> tuple[str, str]:
    return f"{min(step.began for step in steps):.2f} s", f"{max(step.ended for step in steps):.2f} s"


def _text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.005 else ""
