"""Prints a plan, and the result of carrying it out, for the command `provision`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pytest_stagegbo.cli import shapes
    from pytest_stagegbo.engine.provisioned import Provisioned
    from pytest_stagegbo.plan.provision import Plan

    P = TypeVar("P", bound=shapes.Plan)

__all__ = ["plan_shape", "print_plan", "print_timings", "result_shape"]


def plan_shape(plan: Plan, shape: type[P]) -> P:
    """A plan, in one of the shapes of a plan."""
    from pytest_stagegbo.cli.shapes import Step

    steps = [Step(key=s.key, text=s.text, changes=s.changes, after=sorted(s.after)) for s in plan.steps]
    return shape(steps=steps, notes=list(plan.notes), details=list(plan.details))


def print_plan(plan: Plan) -> None:
    for note in plan.notes:
        print(f"note: {note}")
    if not plan.changes:
        print("nothing to change")
    for number, step in enumerate(plan.changes, 1):
        print(f"{number:3}. {step.text}")


def result_shape(result: Provisioned) -> shapes.Provisioned:
    """What provisioning one stage has done."""
    from pytest_stagegbo.cli import shapes

    containers = {
        name: shapes.Readiness(
            state=found.state,
            answers={str(port): str(answer) for port, answer in found.answers},
            warnings=list(found.warnings),
        )
        for name, found in result.readiness.items()
    }
    timings = [shapes.Timing(key=t.key, began=round(t.began, 4), ended=round(t.ended, 4)) for t in result.timings]
    return shapes.Provisioned(
        changed=result.changed,
        steps=[step.key for step in result.plan.changes],
        notes=list(result.plan.notes),
        containers=containers,
        timings=timings,
        seconds=round(result.seconds, 3),
        requests=result.requests,
    )


def print_timings(result: Provisioned, start_up: float = 0.0) -> None:
    """Print where the time of a provisioning went. `start_up`: seconds that the process took before it."""
    from pytest_stagegbo.cli import timings
    from pytest_stagegbo.cli.console import print_table

    found = timings.rows(
        result.timings, tuple(result.readiness), result.seconds, start_up=start_up, requests=result.requests
    )
    print_table(timings.COLUMNS, found)
