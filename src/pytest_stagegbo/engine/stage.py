"""One stage: the single way in for the command line and the plugin."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo import clocks
from pytest_stagegbo.apply.removal import refuse_unable
from pytest_stagegbo.apply.room import await_rooms
from pytest_stagegbo.apply.scheduler import Timing, apply
from pytest_stagegbo.apply.step_runner import StepRunner
from pytest_stagegbo.credentials.replacements import read_replacements
from pytest_stagegbo.desired import objects
from pytest_stagegbo.desired.own_pool import removable_pool
from pytest_stagegbo.engine import reset
from pytest_stagegbo.engine.clone_actions import CloneActions
from pytest_stagegbo.engine.deploy import Deployments, Ways
from pytest_stagegbo.engine.exposures import Exposures
from pytest_stagegbo.engine.freezer import Freezer
from pytest_stagegbo.engine.provisioned import Provisioned
from pytest_stagegbo.engine.status import StageStatus, stage_status
from pytest_stagegbo.errors import NoRoom, OperationFailed, SettingsError, StageMissing
from pytest_stagegbo.facts import inventory
from pytest_stagegbo.facts.facts import Facts, gather
from pytest_stagegbo.facts.former import Former
from pytest_stagegbo.facts.host_path import refuse_dropped
from pytest_stagegbo.forward.way import StageWay
from pytest_stagegbo.incus import Reader, Writer, WriterScope
from pytest_stagegbo.incus.localhost import LocalHost
from pytest_stagegbo.locks import AWAKE, STAGE, StageLock
from pytest_stagegbo.plan import foreign
from pytest_stagegbo.plan.destroy import plan_destroy
from pytest_stagegbo.plan.former import foreign_on
from pytest_stagegbo.plan.objections import refuse_relation
from pytest_stagegbo.plan.pool_objections import refuse_elsewhere
from pytest_stagegbo.plan.provision import Plan, make_plan
from pytest_stagegbo.plan.resets import with_resets
from pytest_stagegbo.plan.steps import (
    CopyClone,
    FinishResets,
    MendBuild,
    RefreshClone,
    RemoveAcl,
    RemoveClone,
    RemoveNetwork,
    RemoveProject,
    SetProject,
    Step,
    Verify,
)
from pytest_stagegbo.progress import Silent
from pytest_stagegbo.services import dial
from pytest_stagegbo.services.unseal import read_keys

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    from pytest_stagegbo.credentials.replacements import Replacements
    from pytest_stagegbo.engine.clone_source import CloneSource
    from pytest_stagegbo.incus import CommandResult, Instance
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.message_socket import MessageSocket
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.resets.resetter import Outcome, Resetter
    from pytest_stagegbo.services.unseal import UnsealKeys
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["Provisioned", "StageEngine"]

log = logging.getLogger("stagegbo.provision")

NEW = (CopyClone, RefreshClone)
"""Steps of a clone that boots for the first time after them."""


class StageEngine:
    """Provisions, resets and destroys one stage.

    Args:
        connection: To the daemon that production and the stage live on.
        environ: Where an environment variable with unseal keys is looked up.
        origin: What to copy from instead of production.
        parent: The stage that this one is a slot or the golden copy of.
    """

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        *,
        progress: Progress | None = None,
        environ: Mapping[str, str] = os.environ,
        origin: CloneSource | None = None,
        parent: str = "",
    ) -> None:
        self.settings = settings
        self.progress: Progress = progress or Silent()
        self.reader = Reader(connection)
        self._connection = connection
        self._environ = environ
        self._clone_runner: StepRunner | None = None
        self._replacements: Replacements | None = None
        self._resetter: Resetter | None = None
        self.clone_source = origin
        self.parent = parent
        self.exposures = Exposures(self)
        self.freezer = Freezer(self)
        self.clones = CloneActions(self)
        self.deployments = Deployments(
            self, Ways(self.clones.start, self.reset_clones, self.clones.restore, self.clones.await_ready)
        )
        self.unconfirmed: set[str] = set()
        """See `StepRunner`."""
        self.way = StageWay(settings, connection.endpoint, self._run_relay)
        dial.lead(self.way, (str(each.address) for each in settings.containers.values()))

    def facts(self, *, need_source: bool = True, need_stage: bool = False) -> Facts:
        """Read the world. Raises as `gather` and `refuse_relation` do."""
        golden = self.clone_source.project if self.clone_source is not None else ""
        host = LocalHost(self._connection.endpoint)
        facts = gather(
            self.reader,
            host,
            self.settings,
            need_source=need_source,
            need_stage=need_stage,
            golden=golden,
            parent=self.parent,
        )
        refuse_relation(facts.projects.get(self.settings.project), self.parent)
        self.exposures.observe(facts)
        return facts.with_running(self.freezer.frozen())

    def plan(self, *, recreate: bool = False, to_replace: Collection[str] = ()) -> Plan:
        """What `provision` would do now, without a lock and without a write."""
        self.refuse_elsewhere(recreate, to_replace)
        plan = self.plan_for(self.facts(), recreate, to_replace)
        if plan.changes:
            refuse_dropped(self._connection.endpoint, self.settings)
        return plan

    def plan_for(self, facts: Facts, recreate: bool = False, to_replace: Collection[str] = ()) -> Plan:
        """The way from these facts to the stage of the settings. Raises an error if foreign things would be lost."""
        plan = make_plan(facts, self.settings, recreate=recreate, to_replace=to_replace, parent=self.parent)
        foreign.refuse_to_lose(self.reader, self.settings, plan.steps)
        in_the_way = foreign_on(self.reader, self.settings, facts.former)
        foreign.refuse(in_the_way, "the stage's former bridge can't be removed", "then run this again")
        for detail in plan.details if plan.changes else ():
            log.debug("%s", detail)
        return plan

    def provision(
        self,
        *,
        recreate: bool = False,
        to_replace: Collection[str] = (),
        already_locked: bool = False,
        missing: bool = False,
        limiter: AbstractContextManager[object] | None = None,
    ) -> Provisioned:
        """Make the stage what the settings say, whatever is there, and wait until it answers.

        A stage that needs no change is only looked at, while others go on using it.

        Args:
            recreate: Replace every clone.
            to_replace: Names of clones to replace.
            already_locked: The caller has the stage to itself already.
            missing: The caller saw no stage, so whether it is as it should be need not be looked at first.
            limiter: Held while something is changed, for callers that provision many.

        Raises:
            StageGboError: anything in its tree; what was done until then stays and the next run goes on from it.
        """
        self.refuse_elsewhere(recreate, to_replace)
        before = self._connection.requests
        with self.clone_source.held() if self.clone_source is not None else nullcontext():
            result = self._provision(recreate, to_replace, already_locked, missing, limiter or nullcontext())
        return replace(result, requests=self._connection.requests - before)

    def refuse_elsewhere(self, recreate: bool = False, to_replace: Collection[str] = ()) -> None:
        """Raise `NotOurs` when clones that stay are on another pool than the stage's own. A golden copy has nothing
        that anybody would miss."""
        if self.settings.storage.own and self.clone_source is not None:
            replacing = self.settings.containers if recreate else to_replace
            refuse_elsewhere(self.reader.instances(self.settings.project), self.settings, tuple(replacing))

    def _provision(
        self,
        recreate: bool,
        to_replace: Collection[str],
        already_locked: bool,
        missing: bool,
        limiter: AbstractContextManager[object],
    ) -> Provisioned:
        began = clocks.monotonic()
        keys = read_keys(self.settings.vault, self._environ)
        self._replacements = read_replacements(self.settings, self._environ)
        for warning in keys.warnings if keys is not None else ():
            self.progress.note(warning)
        lock = self.lock()
        due = lock.unfinished(self.settings.containers) or self.deployments.has_saved
        if not (missing or recreate or to_replace or already_locked or due):
            looking = lock.hold("looking at the stage", self.waiting, shared=(STAGE, AWAKE), exclusive=())
            # Both are looked at once more when nobody else uses the stage.
            with looking, suppress(NoRoom, StageMissing):
                facts = self.facts(need_stage=True)
                if self.exposures.close_over():
                    facts = self.facts()
                plan = self.plan_for(facts)
                if not plan.changes:
                    return self._carry_out(facts, plan, keys, began)
        with nullcontext() if already_locked else lock.hold("provision", self.waiting), limiter:
            facts = self.facts()
            if self.exposures.close_what_is_over_in(facts):
                facts = self.facts()
            try:
                plan = self.plan_for(facts, recreate, to_replace)
            except NoRoom as short:  # what was deleted before may be on its way back
                await_rooms(self.reader, self.settings, facts.rooms, self.progress, short)
                plan = self.plan_for(facts := self.facts(), recreate, to_replace)
            if plan.changes:
                refuse_dropped(self._connection.endpoint, self.settings)
            for note in plan.notes if plan.changes else ():
                self.progress.note(note)
            left = () if already_locked else self._left_resets(lock, plan)
            leaving = {step.subject for step in plan.changes if isinstance(step, (RemoveClone, RefreshClone))}
            self.deployments.save(facts.clones, leaving)
            result = self._carry_out(facts, plan, keys, began, left)
            self.clones.prepare_resets({each.subject for each in plan.changes if isinstance(each, NEW)})
            self.deployments.bring_back()
            return result

    def _left_resets(self, lock: StageLock, plan: Plan) -> tuple[str, ...]:
        """The containers whose resets failed or were killed, but for those that the plan changes."""
        made = {step.subject for step in plan.changes}
        return tuple(name for name in lock.unfinished(self.settings.containers) if name not in made)

    def _carry_out(
        self, facts: Facts, plan: Plan, keys: UnsealKeys | None, began: float, left: Sequence[str] = ()
    ) -> Provisioned:
        runner = self.new_runner(facts, keys)
        self._clone_runner = runner
        steps: list[Step] = list(plan.steps)
        if left:
            steps = with_resets(plan, self.settings, left)
        before = inventory.take(self.reader, self.settings, facts) if plan.changes else {}

        def do(step: Step) -> None:
            if isinstance(step, MendBuild):
                self.deployments.recover([step.subject], seen=True)
            elif isinstance(step, FinishResets):
                with self.lock().changing(step.names):
                    self.deployments.recover(step.names)
                    self.reset_clones(reset.chosen(self.settings, step.names))
            elif isinstance(step, Verify):
                unproven = frozenset(self.unconfirmed)  # as the facts show them, whatever is proven meanwhile
                after = self.facts()
                self._note_production(after, runner.writer, before)
                self._verify(after.with_prepared(unproven))
            else:
                runner.do(step)

        if plan.changes and not any(isinstance(step, SetProject) for step in plan.changes):
            refuse_unable(runner.writer, facts.projects.get(self.settings.project))
        if plan.changes:  # while the services that were started last are waited for
            steps.append(Verify(subject=self.settings.project, after=frozenset(step.key for step in plan.changes)))
        timings = apply(steps, do, self.progress)
        runner.limits.see()
        for found in runner.readiness.values():
            for warning in found.warnings:
                self.progress.note(warning)
        order = {name: runner.readiness[name] for name in self.settings.containers}
        return Provisioned(plan, order, timings, clocks.monotonic() - began)

    def _note_production(self, facts: Facts, writer: Writer, before: Mapping[str, str]) -> None:
        """For `verify`: what production had, and what of it changed while the stage was made."""
        after = inventory.take(self.reader, self.settings, facts)
        project = facts.projects.get(self.settings.project)
        if project is None:
            return  # `_verify` says so
        config = {**project.config, inventory.MARK: inventory.text(before, after)}
        writer.replace_project(config, project.description)

    def reset(
        self, names: Sequence[str], *, already_locked: bool = False, left_by: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[Outcome, ...]:
        """Make the named containers clean at once, each in the way of its settings; `all` are those wiped.

        Args:
            already_locked: The caller holds the containers' locks already.
            left_by: By container, the test that used it last, for errors.

        Raises:
            Residue: something could not be removed.
            StageGboError: a name is unknown or keeps its data, the stage is not there, a service did not come back.
        """
        containers = reset.chosen(self.settings, names)
        if already_locked:
            return self._reset(containers, left_by)
        cleared = [container.name for container in containers]
        lock, doing = self.lock(), f"reset {' '.join(cleared)}"
        with lock.hold(doing, self.waiting, shared=(STAGE,), exclusive=cleared), lock.changing(cleared):
            return self._reset(containers, left_by)

    def _reset(self, containers: Sequence[ContainerSettings], left_by: Mapping[str, str]) -> tuple[Outcome, ...]:
        self.deployments.recover([container.name for container in containers])
        outcomes = self.reset_clones(containers, left_by)
        self.deployments.bring_back()
        return outcomes

    def reset_clones(
        self, containers: Sequence[ContainerSettings], left_by: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[Outcome, ...]:
        """Make containers clean. The caller holds their locks, and has finished interrupted deployments."""
        if self._resetter is None:
            from pytest_stagegbo.resets.resetter import Resetter  # with all that it may choose from

            self._resetter = Resetter(
                self.settings,
                self.reader,
                self.runner().writer,
                self.progress,
                start=self.clones.start,
                restore=self.clones.restore,
                wait=self.clones.await_ready,
                thaw=self.clones.thaw,
            )
        self.exposures.close_over()
        return self._resetter.reset(containers, left_by)

    def close(self) -> None:
        """Let go of what resets keep open, and of forwarded ports. The engine may be used again."""
        if self._resetter is not None:
            self._resetter.close()
        self.way.close()

    def _run_relay(self, name: str, command: Sequence[str]) -> tuple[MessageSocket, ...]:
        """Run a command in a running clone; its standard streams. For `StageWay`."""
        self.running_clone(name)
        return self.clone_writer().sockets(name, command)

    def runner(self) -> StepRunner:
        """For steps on clones that are there; the facts for it are read once."""
        if self._clone_runner is None:
            facts = self.facts()
            self._replacements = read_replacements(self.settings, self._environ)
            self._clone_runner = self.new_runner(facts, read_keys(self.settings.vault, self._environ))
        return self._clone_runner

    def new_runner(self, facts: Facts, keys: UnsealKeys | None) -> StepRunner:
        """A runner for the steps of a plan that was made from these facts."""
        return StepRunner(
            self.reader,
            self.writer(facts),
            facts,
            self.settings,
            keys,
            self.progress,
            self._replacements,
            parent=self.parent,
            unconfirmed=self.unconfirmed,
        )

    def plan_destroy(self) -> tuple[Step, ...]:
        """What `destroy` would remove. Raises `SettingsError` for a slot that was not asked for as one."""
        refuse_relation(self.reader.projects().get(self.settings.project), self.parent)
        return plan_destroy(self.reader, self.settings, self.parent)

    def destroy(self) -> tuple[Timing, ...]:
        """Remove everything of the stage that carries this tool's mark. Nothing there is fine."""
        with self.lock().hold("destroy", self.waiting):
            steps = self.plan_destroy()
            if not steps:
                return ()
            former = Former(
                tuple(step.subject for step in steps if isinstance(step, RemoveNetwork)),
                tuple(step.subject for step in steps if isinstance(step, RemoveAcl)),
            )
            facts = self.facts(need_source=False)
            runner = self.new_runner(replace(facts, former=former), None)
            if any(isinstance(step, RemoveProject) for step in steps):
                refuse_unable(runner.writer, facts.projects.get(self.settings.project))
            return apply(steps, runner.do, self.progress)

    def own_pool(self, members: Collection[str]) -> str:
        """The name of the pool that was created for this stage, if it is there and only these projects use it;
        empty: it is not there.

        Raises:
            SettingsError: the settings name no pool of the stage's own.
            NotOurs: somebody else created it, or has something on it.
        """
        return removable_pool(self.reader, self.settings, members)

    def remove_pool(self) -> None:
        """Remove the stage's own pool, which nothing is on any more. Raises as `own_pool` does."""
        with self.lock().hold("destroy", self.waiting):
            if self.own_pool(()):
                self.writer(self.facts(need_source=False)).delete_pool()

    def status(self, *, disk: bool = True) -> StageStatus:
        """What the stage is like right now; asks every service once."""
        return stage_status(self.reader, self.settings, self.parent, disk=disk, frozen=self.freezer.frozen())

    def clone(self, name: str) -> Instance:
        """The named clone; raises `SettingsError`, `StageMissing` or `NotOurs`."""
        if name not in self.settings.containers:
            raise SettingsError(f"no container {name}", remedy="choose from " + ", ".join(self.settings.containers))
        return reset.our_clone(self.reader.instance(self.settings.project, name), self.settings, name)

    def execute(self, name: str, command: Sequence[str], timeout: float | None = None) -> CommandResult:
        """Run a command in a running clone; its status and output."""
        self.running_clone(name)
        return self.clone_writer().execute(name, command, timeout=timeout)

    def running_clone(self, name: str) -> Instance:
        """The named clone, which goes on if quiet tests had it frozen: they are waited for. Raises as `clone` and
        `Freezer.wake`, and `StageMissing` when it does not run."""
        self.freezer.wake(name)
        clone = self.clone(name)
        if not clone.is_running:
            raise StageMissing(f"{name} is {clone.status.lower()}", remedy="run `stagegbo provision`")
        return clone

    def clone_writer(self) -> Writer:
        """To write to clones that are there; what it has to know of production is read once."""
        return self.runner().writer

    def lock(self, timeout: float | None = None) -> StageLock:
        """The lock of this stage; see `StageLock.hold`. `timeout`: seconds, instead of the settings'."""
        server = self._connection.server().fingerprint or self._connection.endpoint
        patience = self.settings.timeouts.lock if timeout is None else timeout
        thaw = self.freezer.thaw
        return StageLock(self._connection.endpoint, server, self.settings.project, patience, thaw)

    def mark_dirty(self) -> None:
        """Something may be done to the stage that nobody sees: it does not count as clean any more."""
        with suppress(OSError):
            self.lock().mark_dirty()

    def writer(self, facts: Facts) -> Writer:
        """The only way to write. Raises `ProductionProtected` when the stage's names are production's."""
        scope = WriterScope(
            project=self.settings.project,
            network=self.settings.network.name,
            acl=objects.acl_name(self.settings),
            source_project=facts.golden or self.settings.source_project,
            production_networks=facts.production_networks,
            production=self.settings.source_project,
            former_networks=frozenset(facts.former.networks),
            former_acls=frozenset(facts.former.acls),
            pool=self.settings.storage.own,
            production_pools=facts.production_pools,
        )
        return Writer(self._connection, scope, self.settings.timeouts.operation)

    def _verify(self, facts: Facts) -> None:
        left = self.plan_for(facts).changes
        if left:
            raise OperationFailed(
                "provisioning ended, and the stage is not what it should be",
                seen="left to do: " + "; ".join(step.text for step in left),
                remedy="something else is changing the stage, or this is a bug: run `stagegbo provision` again",
            )

    def waiting(self, holder: str) -> None:
        """Say who holds the stage's lock."""
        self.progress.note(f"waiting for stage {self.settings.project}: {holder}")
