"""Doing a plan's steps, as many at once as their order allows."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import OperationFailed
from pytest_stagegbo.progress import expect, task
from pytest_stagegbo.workers import GRACE, INTERRUPTED, Workers, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_stagegbo.plan.steps import Step
    from pytest_stagegbo.progress import Progress

__all__ = ["Timing", "apply"]

LOOK = 0.5
"""Seconds between two looks at whether the caller was interrupted: Python tells its main thread only."""
AT_ONCE = 5
"""Steps that change something. More don't end sooner, and what a clone's services do while it boots begins later. Steps
that only wait for a service are not counted."""


class Timing(Struct, frozen=True):
    """When a step ran, in seconds since the first one began."""

    key: str
    text: str
    began: float
    ended: float


@contextlib.contextmanager
def _interruptible(pool: Workers) -> Iterator[tuple[Workers, Context]]:
    """Threads for steps, and what they run in. When the block is left by Ctrl-C or an interruption further out, steps
    under way write nothing more, and are not waited for longer than `GRACE`. It is as if they had been killed, which
    the next run mends."""
    event, context = threading.Event(), copy_context()
    context.run(INTERRUPTED.set, event)
    try:
        yield pool, context
    except BaseException:
        event.set()
        pool.settle(GRACE)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
    expect(progress, len(steps))

    def run(step: Step) -> Timing:
        began = clocks.monotonic() - origin
        with task(progress, step.key, step.text):
            do(step)
        return Timing(step.key, step.text, began, clocks.monotonic() - origin)

    # As many as are needed at once.
    with _interruptible(Workers(len(steps) or 1, "stagegbo")) as (pool, context):
        while True:
            if not failures:
                free = AT_ONCE - sum(step.changes for step in running.values())
                for step in [step for step in waiting if step.after & keys <= done]:
                    if not step.changes or free > 0:
                        free -= step.changes
                        waiting.remove(step)
                        running[pool.submit(context.copy().run, run, step)] = step
            if not running:
                break
            finished, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
            if interrupted():
                raise OperationFailed("provisioning was interrupted", remedy="the next run goes on from here")
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
