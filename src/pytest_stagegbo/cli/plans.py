"""Prints a plan, and the result of carrying it out, for the command `provision`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_stagegbo.engine.stage import Provisioned
    from pytest_stagegbo.plan.provision import Plan

__all__ = ["plan_json", "print_plan", "print_timings", "result_json"]


def plan_json(plan: Plan) -> dict[str, Any]:
    steps = [{"key": s.key, "text": s.text, "changes": s.changes, "after": sorted(s.after)} for s in plan.steps]
    return {"steps": steps, "notes": list(plan.notes), "details": list(plan.details)}


def print_plan(plan: Plan) -> None:
    for note in plan.notes:
        print(f"note: {note}")
    if not plan.changes:
        print("nothing to change")
    for number, step in enumerate(plan.changes, 1):
        print(f"{number:3}. {step.text}")


def result_json(result: Provisioned) -> dict[str, Any]:
    containers = {
        name: {
            "state": found.state,
            "answers": {str(port): str(answer) for port, answer in found.answers},
            "warnings": list(found.warnings),
        }
        for name, found in result.readiness.items()
    }
    timings = [{"key": t.key, "began": round(t.began, 4), "ended": round(t.ended, 4)} for t in result.timings]
    return {
        "changed": result.changed,
        "steps": [step.key for step in result.plan.changes],
        "notes": list(result.plan.notes),
        "containers": containers,
        "timings": timings,
        "seconds": round(result.seconds, 3),
        "requests": result.requests,
    }


def print_timings(result: Provisioned, start_up: float = 0.0) -> None:
    """Print where the time of a provisioning went. `start_up`: seconds that the process took before it."""
    from pytest_stagegbo.cli import timings
    from pytest_stagegbo.cli.console import print_table

    found = timings.rows(
        result.timings, tuple(result.readiness), result.seconds, start_up=start_up, requests=result.requests
    )
    print_table(timings.COLUMNS, found)
