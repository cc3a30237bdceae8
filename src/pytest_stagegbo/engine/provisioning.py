"""The provisioning of one stage: facts, a plan, its steps, and the proof that nothing is left to do."""

from __future__ import annotations

import logging
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.apply.removal import refuse_unable
from pytest_stagegbo.apply.scheduler import apply
from pytest_stagegbo.desired.versions import outdated
from pytest_stagegbo.engine import reset
from pytest_stagegbo.engine.provisioned import Provisioned
from pytest_stagegbo.engine.saved_builds import SavedBuilds
from pytest_stagegbo.errors import NoRoom, OperationFailed, StageMissing
from pytest_stagegbo.facts import inventory
from pytest_stagegbo.locks import AWAKE, STAGE
from pytest_stagegbo.plan import foreign
from pytest_stagegbo.plan.former import foreign_on
from pytest_stagegbo.plan.pool_objections import refuse_elsewhere
from pytest_stagegbo.plan.provision import Plan, make_plan
from pytest_stagegbo.plan.resets import with_resets
from pytest_stagegbo.plan.steps import (
    CopyClone,
    FinishResets,
    MendBuild,
    RefreshClone,
    RemoveClone,
    SetProject,
    Step,
    Verify,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    from pytest_stagegbo.credentials.replacements import Replacements
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.locks import StageLock
    from pytest_stagegbo.services.unseal import UnsealKeys

__all__ = ["Provisioning"]

log = logging.getLogger("stagegbo.provision")

NEW = (CopyClone, RefreshClone)
"""Steps of a clone that boots for the first time after them."""


class Provisioning:
    """Plans and carries out what makes a stage what the settings say, with its engine's locks, reader and writer."""

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine

    def plan(self, *, recreate: bool = False, to_replace: Collection[str] = ()) -> Plan:
        """What `provision` would do now, without a lock and without a write."""
        engine = self._engine
        self.refuse_elsewhere(recreate, to_replace)
        plan = self.plan_for(engine.facts(), recreate, to_replace)
        if plan.changes:
            self._refuse_dropped()
        return plan

    def _refuse_dropped(self) -> None:
        from pytest_stagegbo.facts.host_path import refuse_dropped  # mostly there is nothing to change

        refuse_dropped(self._engine.reader, self._engine.settings)

    def plan_for(self, facts: Facts, recreate: bool = False, to_replace: Collection[str] = ()) -> Plan:
        """The way from these facts to the stage of the settings. Raises an error if foreign things would be lost."""
        engine = self._engine
        plan = make_plan(facts, engine.settings, recreate=recreate, to_replace=to_replace, parent=engine.parent)
        foreign.refuse_to_lose(engine.reader, engine.settings, plan.steps)
        in_the_way = foreign_on(engine.reader, engine.settings, facts.former)
        foreign.refuse(in_the_way, "the stage's former bridge can't be removed", "then run this again")
        for detail in plan.details if plan.changes else ():
            log.debug("%s", detail)
        return plan

    def refuse_elsewhere(self, recreate: bool = False, to_replace: Collection[str] = ()) -> None:
        """Raise `NotOurs` when clones that stay are on another pool than the stage's own. A golden copy has nothing
        that anybody would miss."""
        engine, settings = self._engine, self._engine.settings
        if settings.storage.own and engine.clone_source is not None:
            replacing = settings.containers if recreate else to_replace
            refuse_elsewhere(engine.reader.instances(settings.project), settings, tuple(replacing))

    def provision(
        self,
        recreate: bool,
        to_replace: Collection[str],
        already_locked: bool,
        missing: bool,
        limiter: AbstractContextManager[object],
    ) -> Provisioned:
        """See `StageEngine.provision`."""
        engine = self._engine
        began = clocks.monotonic()
        keys = engine.unseal_keys()
        replacements = engine.replacements()
        for warning in keys.warnings if keys is not None else ():
            engine.progress.note(warning)
        lock = engine.lock()
        due = lock.unfinished(engine.settings.containers) or SavedBuilds(lock.folder.name).exist
        if not (missing or recreate or to_replace or already_locked or due):
            looking = lock.hold("looking at the stage", engine.waiting, shared=(STAGE, AWAKE), exclusive=())
            # Both are looked at once more when nobody else uses the stage.
            with looking, suppress(NoRoom, StageMissing):
                facts = engine.facts(need_stage=True)
                if engine.exposures.close_over():
                    facts = engine.facts()
                plan = self.plan_for(facts)
                if not plan.changes:
                    return self._carry_out(facts, plan, keys, replacements, began)
        with nullcontext() if already_locked else lock.hold("provision", engine.waiting), limiter:
            facts = engine.facts()
            if engine.exposures.close_what_is_over_in(facts):
                facts = engine.facts()
            try:
                plan = self.plan_for(facts, recreate, to_replace)
            except NoRoom as short:  # what was deleted before may be on its way back
                from pytest_stagegbo.apply.room import await_rooms

                await_rooms(engine.reader, engine.settings, facts.rooms, engine.progress, short)
                plan = self.plan_for(facts := engine.facts(), recreate, to_replace)
            if plan.changes:
                self._refuse_dropped()
            for note in plan.notes if plan.changes else ():
                engine.progress.note(note)
            left = () if already_locked else self._left_resets(lock, plan)
            leaving = {step.subject for step in plan.changes if isinstance(step, (RemoveClone, RefreshClone))}
            if leaving and not recreate:
                unasked = outdated(facts.clones, engine.settings) - set(to_replace)
                engine.baselines.refuse_to_lose(leaving & unasked)
            engine.deployments.save(facts.clones, leaving)
            if leaving:
                engine.baselines.note_lost(leaving)
                from pytest_stagegbo.engine.capsules import Capsules

                Capsules(engine).preserve(facts.clones, leaving)
            result = self._carry_out(facts, plan, keys, replacements, began, left)
            engine.clones.prepare_resets({each.subject for each in plan.changes if isinstance(each, NEW)})
            engine.deployments.bring_back()
            return result

    def _left_resets(self, lock: StageLock, plan: Plan) -> tuple[str, ...]:
        """The containers whose resets failed or were killed, but for those that the plan changes."""
        made = {step.subject for step in plan.changes}
        return tuple(name for name in lock.unfinished(self._engine.settings.containers) if name not in made)

    def _carry_out(
        self,
        facts: Facts,
        plan: Plan,
        keys: UnsealKeys | None,
        replacements: Replacements | None,
        began: float,
        left: Sequence[str] = (),
    ) -> Provisioned:
        engine = self._engine
        runner = engine.new_runner(facts, keys, replacements)
        engine.keep_runner(runner)
        steps: list[Step] = list(plan.steps)
        if left:
            steps = with_resets(plan, engine.settings, left)
        before = inventory.take(engine.reader, engine.settings, facts) if plan.changes else {}

        def do(step: Step) -> None:
            if isinstance(step, MendBuild):
                engine.deployments.recover([step.subject], seen=True)
            elif isinstance(step, FinishResets):
                with engine.lock().changing(step.names):
                    engine.deployments.recover(step.names)
                    engine.reset_clones(reset.chosen(engine.settings, step.names))
            elif isinstance(step, Verify):
                unproven = frozenset(engine.unconfirmed)  # as the facts show them, whatever is proven meanwhile
                after = engine.facts()
                self._note_production(after, runner.writer, before)
                self._verify(after.with_prepared(unproven))
            else:
                runner.do(step)

        if plan.changes and not any(isinstance(step, SetProject) for step in plan.changes):
            refuse_unable(runner.writer, facts.projects.get(engine.settings.project))
        if plan.changes:  # while the services that were started last are waited for
            steps.append(Verify(subject=engine.settings.project, after=frozenset(step.key for step in plan.changes)))
        timings = apply(steps, do, engine.progress)
        runner.limits.see()
        for found in runner.readiness.values():
            for warning in found.warnings:
                engine.progress.note(warning)
        order = {name: runner.readiness[name] for name in engine.settings.containers}
        return Provisioned(plan, order, timings, clocks.monotonic() - began)

    def _note_production(self, facts: Facts, writer: Writer, before: Mapping[str, str]) -> None:
        """For `verify`: what production had, and what of it changed while the stage was made."""
        engine = self._engine
        after = inventory.take(engine.reader, engine.settings, facts)
        project = facts.projects.get(engine.settings.project)
        if project is None:
            return  # `_verify` says so
        config = {**project.config, inventory.MARK: inventory.text(before, after)}
        writer.replace_project(config, project.description)

    def _verify(self, facts: Facts) -> None:
        left = self.plan_for(facts).changes
        if left:
            raise OperationFailed(
                "provisioning ended, and the stage is not what it should be",
                seen="left to do: " + "; ".join(step.text for step in left),
                remedy="something else is changing the stage, or this is a bug: run `stagegbo provision` again",
            )
