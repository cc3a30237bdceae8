"""Doing a plan's steps, as many at once as their order allows."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.progress import task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_stagegbo.engine.steps import Step
    from pytest_stagegbo.progress import Progress

__all__ = ["Timing", "apply"]

AT_ONCE = 5
"""Steps that change something. More don't end sooner, and what a clone's services do while it boots begins later. Steps
that only wait for a service are not counted."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When a step ran, in seconds since the first one began."""

    key: str
    text: str
    began: float
    ended: float


def apply(steps: Sequence[Step], do: Callable[[Step], None], progress: Progress) -> tuple[Timing, ...]:
    """Do every step once those in its `after` are done, the first of the plan first. After a failure no further step is
    begun.

    Raises:
        Exception: the first step's error, once what was under way has ended; other failures are noted.
    """
    keys = {step.key for step in steps}
    waiting = list(steps)
    done: set[str] = set()
    running: dict[Future[Timing], Step] = {}
    timings: list[Timing] = []
    failures: list[BaseException] = []
    origin = clocks.monotonic()

    def run(step: Step) -> Timing:
        began = clocks.monotonic() - origin
        with task(progress, step.key, step.text):
            do(step)
        return Timing(step.key, step.text, began, clocks.monotonic() - origin)

    with ThreadPoolExecutor(len(steps) or 1, thread_name_prefix="stagegbo") as pool:  # as many as are needed at once
        while True:
            if not failures:
                free = AT_ONCE - sum(step.changes for step in running.values())
                for step in [step for step in waiting if step.after & keys <= done]:
                    if not step.changes or free > 0:
                        free -= step.changes
                        waiting.remove(step)
                        running[pool.submit(run, step)] = step
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step = running.pop(future)
                error = future.exception()
                if error is None:
                    timings.append(future.result())
                    done.add(step.key)
                else:
                    failures.append(error)
    if failures:
        for other in failures[1:]:
            progress.note(f"also failed: {other}")
        raise failures[0]
    if waiting:
        raise RuntimeError("steps wait for each other: " + ", ".join(step.key for step in waiting))
    return tuple(sorted(timings, key=lambda timing: timing.began))
