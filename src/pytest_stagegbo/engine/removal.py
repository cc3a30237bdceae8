"""The removal of one stage, and of the pool that was created for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo.apply.removal import refuse_unable, remove_clone
from pytest_stagegbo.apply.scheduler import Timing, apply
from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.own_pool import removable_pool
from pytest_stagegbo.desired.ownership import refuse_relation
from pytest_stagegbo.facts.former import Former
from pytest_stagegbo.plan.destroy import plan_destroy
from pytest_stagegbo.plan.steps import RemoveAcl, RemoveNetwork, RemoveProject, Step

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_stagegbo.engine.stage import StageEngine

__all__ = ["destroy", "plan", "remove_clones", "remove_pool", "remove_rest"]


def plan(engine: StageEngine) -> tuple[Step, ...]:
    """What `destroy` would remove. Raises `SettingsError` for a slot that was not asked for as one."""
    refuse_relation(engine.reader.projects().get(engine.settings.project), engine.parent)
    return plan_destroy(engine.reader, engine.settings, engine.parent)


def destroy(engine: StageEngine) -> tuple[Timing, ...]:
    """See `StageEngine.destroy`."""
    timings = _remove(engine)
    _forget_leases(engine)
    return timings


def remove_rest(engine: StageEngine) -> None:
    """Remove what a run that was killed has left of a stage whose project is gone: its bridge and access list. A stage
    that is made meanwhile stays."""
    _remove(engine, rest=True)
    _forget_leases(engine)


def _forget_leases(engine: StageEngine) -> None:
    if engine.lease is not None:
        engine.lease.wipe()


def _remove(engine: StageEngine, *, rest: bool = False) -> tuple[Timing, ...]:
    with engine.lock().hold("destroy", engine.waiting):
        if rest and engine.settings.project in engine.reader.projects():
            return ()
        steps = plan(engine)
        if not steps:
            return ()
        former = Former(
            tuple(step.subject for step in steps if isinstance(step, RemoveNetwork)),
            tuple(step.subject for step in steps if isinstance(step, RemoveAcl)),
        )
        facts = engine.facts(need_source=False)
        runner = engine.new_runner(replace(facts, former=former), None)
        if any(isinstance(step, RemoveProject) for step in steps):
            refuse_unable(runner.writer, facts.projects.get(engine.settings.project))
        return apply(steps, runner.do, engine.progress)


def remove_pool(engine: StageEngine) -> None:
    """Remove the stage's own pool, which nothing is on any more. Raises as `removable_pool` does."""
    with engine.lock().hold("destroy", engine.waiting):
        if removable_pool(engine.reader, engine.settings, ()):
            engine.writer(engine.facts(need_source=False)).delete_pool()
    _forget_leases(engine)


def remove_clones(engine: StageEngine, names: Collection[str]) -> None:
    """Remove clones that will be replaced by new ones."""
    with engine.lock().hold("provision", engine.waiting):
        facts = engine.facts()
        writer = engine.writer(facts)
        for name, clone in facts.clones.items():
            if name in names and marks.is_clone(clone, engine.settings):
                remove_clone(engine.reader, writer, engine.settings, name)
