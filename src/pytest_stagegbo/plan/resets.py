"""Resets that a run before did not finish, put among the steps of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo.plan.steps import AwaitClone, FinishResets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.plan.provision import Plan
    from pytest_stagegbo.plan.steps import Step
    from pytest_stagegbo.settings import Settings

__all__ = ["with_resets"]


def with_resets(plan: Plan, settings: Settings, names: Sequence[str]) -> list[Step]:
    """The steps of a plan, with resets of containers that it leaves as they are: once the bridge is there that a reset
    needs, and before anybody waits for their services. Pure."""
    founded = frozenset(step.key for step in plan.changes if step.subject not in settings.containers)
    resets = FinishResets(subject=settings.project, names=tuple(names), after=founded)
    waiting = {
        step.key: structs.replace(step, after=step.after | {resets.key})
        for step in plan.steps
        if isinstance(step, AwaitClone) and step.subject in names
    }
    return [resets, *(waiting.get(step.key, step) for step in plan.steps)]
