"""One stage: the single way in for the command line and the plugin."""

from __future__ import annotations

import functools
import os
from contextlib import ExitStack, nullcontext, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo.desired import objects, ownership
from pytest_stagegbo.engine import leasing, reset
from pytest_stagegbo.engine.freezer import Freezer
from pytest_stagegbo.errors import SettingsError, StageMissing
from pytest_stagegbo.facts.placement import locator
from pytest_stagegbo.facts.surroundings import look_around
from pytest_stagegbo.forward.way import StageWay
from pytest_stagegbo.incus import Reader, Writer, WriterScope
from pytest_stagegbo.locks import STAGE, StageLock
from pytest_stagegbo.progress import Silent
from pytest_stagegbo.services import dial

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pytest_stagegbo.apply.scheduler import Timing
    from pytest_stagegbo.apply.step_runner import StepRunner
    from pytest_stagegbo.credentials.replacements import Replacements
    from pytest_stagegbo.engine.baselines import Baselines
    from pytest_stagegbo.engine.clone_actions import CloneActions
    from pytest_stagegbo.engine.clone_source import CloneSource
    from pytest_stagegbo.engine.deploy import Deployments
    from pytest_stagegbo.engine.exposures import Exposures
    from pytest_stagegbo.engine.provisioned import Provisioned
    from pytest_stagegbo.engine.provisioning import Provisioning
    from pytest_stagegbo.engine.status import StageStatus
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.facts.surroundings import Surroundings
    from pytest_stagegbo.incus import CommandResult, Instance, Pool
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.lease_store import LeaseStore
    from pytest_stagegbo.incus.message_socket import MessageSocket
    from pytest_stagegbo.leases.host import HostLease
    from pytest_stagegbo.plan.provision import Plan
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.resets.resetter import Outcome, Resetter
    from pytest_stagegbo.services.unseal import UnsealKeys
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["StageEngine"]

_unconfirmed: dict[tuple[str, str], set[str]] = {}
"""By daemon and project, of this process."""


class StageEngine:
    """Provisions, resets and destroys one stage.

    Args:
        connection: To the daemon that production and the stage live on.
        environ: Where an environment variable with unseal keys is looked up.
        origin: What to copy from instead of production.
        parent: The stage that this one is a slot or the golden copy of.
        place: See `Reader`.
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
        place: str = "",
    ) -> None:
        self.settings = settings
        self.progress: Progress = progress or Silent()
        self.reader = Reader(connection, locator(settings), place)
        self._connection = connection
        self._environ = environ
        self._clone_runner: StepRunner | None = None
        self._clone_writer: Writer | None = None
        self._resetter: Resetter | None = None
        self.clone_source = origin
        self.parent = parent
        self.freezer = Freezer(self)
        self.lease: HostLease | None = None
        """This host's lease of the stage, once anything was locked."""
        self.siblings: Callable[[], Sequence[StageEngine]] = tuple
        """The engines of the other slots that are there."""
        self.unconfirmed = _unconfirmed.setdefault((connection.endpoint, settings.project), set())
        """See `StepRunner`. Engines of one stage share it: whichever was made last carries all connections to it."""
        self.way = StageWay(settings, connection.endpoint, self._run_relay, lambda: self.reader.is_here)
        dial.lead(self.way, (str(each.address) for each in settings.containers.values()))

    def facts(self, *, need_source: bool = True, need_stage: bool = False) -> Facts:
        """Read the world. Raises as `gather` and `refuse_relation` do."""
        from pytest_stagegbo.facts.facts import gather

        needs = {"need_source": need_source, "need_stage": need_stage}
        facts = gather(self.reader, self.settings, golden=self._golden, parent=self.parent, **needs)
        ownership.refuse_relation(facts.projects.get(self.settings.project), self.parent)
        self.exposures.observe(facts)
        return facts.with_running(self.freezer.frozen())

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
        self.provisioning.refuse_elsewhere(recreate, to_replace)
        before = self._connection.requests
        with self.clone_source.held() if self.clone_source is not None else nullcontext():
            result = self.provisioning.provision(
                recreate, to_replace, already_locked, missing, limiter or nullcontext()
            )
        return replace(result, requests=self._connection.requests - before)

    @functools.cached_property
    def provisioning(self) -> Provisioning:
        """Makes the stage what the settings say."""
        from pytest_stagegbo.engine.provisioning import Provisioning

        return Provisioning(self)

    def plan(self, *, recreate: bool = False, to_replace: Collection[str] = ()) -> Plan:
        """What `provision` would do now, without a lock and without a write."""
        return self.provisioning.plan(recreate=recreate, to_replace=to_replace)

    @property
    def _golden(self) -> str:
        return self.clone_source.project if self.clone_source is not None else ""

    @functools.cached_property
    def exposures(self) -> Exposures:
        """Ports of the clones that others may reach for a while."""
        from pytest_stagegbo.engine.exposures import Exposures

        return Exposures(self)

    @functools.cached_property
    def clones(self) -> CloneActions:
        """What resets and deployments have done to a clone."""
        from pytest_stagegbo.engine.clone_actions import CloneActions

        return CloneActions(self)

    @functools.cached_property
    def deployments(self) -> Deployments:
        """Builds in place of production's files."""
        from pytest_stagegbo.engine.deploy import Deployments, Ways

        clones = self.clones
        return Deployments(self, Ways(clones.start, self.reset_clones, clones.restore, clones.await_ready))

    @functools.cached_property
    def baselines(self) -> Baselines:
        """Named states of several containers."""
        from pytest_stagegbo.engine.baselines import Baselines

        return Baselines(self)

    def reset(
        self,
        names: Sequence[str],
        *,
        already_locked: bool = False,
        left_by: Mapping[str, str] = MappingProxyType({}),
        baseline: str = "",
    ) -> tuple[Outcome, ...]:
        """Make the named containers clean at once, each in the way of its settings; `all` are those wiped.

        Args:
            already_locked: The caller holds the containers' locks already.
            left_by: By container, the test that used it last, for errors.
            baseline: The name of the baseline that is the clean state of those containers that it has.

        Raises:
            Residue: something could not be removed.
            StageGboError: a name is unknown or keeps its data, the stage is not there, a service did not come back.
        """
        containers = reset.chosen(self.settings, names)
        cleared = [container.name for container in containers]
        with ExitStack() as held:
            if not already_locked:
                lock, doing = self.lock(), f"reset {' '.join(cleared)}"
                held.enter_context(lock.hold(doing, self.waiting, shared=(STAGE,), exclusive=cleared))
                held.enter_context(lock.changing(cleared))
            self.deployments.recover(cleared)
            outcomes = self.reset_clones(containers, left_by, self.baselines.keys(baseline) if baseline else {})
            self.deployments.bring_back()
            return outcomes

    def reset_clones(
        self,
        containers: Sequence[ContainerSettings],
        left_by: Mapping[str, str] = MappingProxyType({}),
        baselines: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Outcome, ...]:
        """Make containers clean. The caller holds their locks, and has finished interrupted deployments.

        Args:
            baselines: By container, the key of the baseline that is its clean state.
        """
        self.exposures.close_over()
        return self.resetter().reset(containers, left_by, baselines)

    def resetter(self) -> Resetter:
        """What resets this stage's containers. It keeps shells open in them until `close`."""
        if self._resetter is None:
            from pytest_stagegbo.resets.resetter import Resetter  # with all that it may choose from

            self._resetter = Resetter(
                self.settings,
                self.reader,
                self.clone_writer(),
                self.progress,
                start=self.clones.start,
                restore=self.clones.restore,
                wait=self.clones.await_ready,
                thaw=self.clones.thaw,
                check_lease=self.check_lease,
            )
        return self._resetter

    def close(self) -> None:
        """Let go of what resets keep open, and of forwarded ports. The engine may be used again."""
        if self._resetter is not None:
            self._resetter.close()
        self.way.close()

    def _run_relay(self, name: str, command: Sequence[str]) -> tuple[MessageSocket, ...]:
        """Run a command in a running clone; its standard streams. For `StageWay`."""
        if name not in self.unconfirmed:  # one that this engine has copied is not finished before its services answer
            self.running_clone(name)
        return self.clone_writer().sockets(name, command)

    def runner(self) -> StepRunner:
        """For steps on clones that are there; the facts for it are read once."""
        if self._clone_runner is None:
            self._clone_runner = self.new_runner(self.facts(), self.unseal_keys(), self.replacements())
        return self._clone_runner

    def known_pools(self) -> Mapping[str, Pool]:
        """The pools that were looked at for `runner`, by name. What they use is of that time."""
        return {} if self._clone_runner is None else self._clone_runner.pools

    def keep_runner(self, runner: StepRunner) -> None:
        """Have `runner` return this one from now on: its facts are newer."""
        self._clone_runner = runner

    def unseal_keys(self) -> UnsealKeys | None:
        """The keys that open Vault; None: there are none. Raises as `read_keys` does."""
        from pytest_stagegbo.services.keys import read_keys

        return read_keys(self.settings.vault, self._environ)

    def replacements(self) -> Replacements | None:
        """What replaces production's secrets; None: nothing does. Raises as `read_replacements` does."""
        if not self.settings.secrets:
            return None
        from pytest_stagegbo.credentials.replacements import read_replacements

        return read_replacements(self.settings, self._environ)

    def new_runner(self, facts: Facts, keys: UnsealKeys | None, replacements: Replacements | None = None) -> StepRunner:
        """A runner for the steps of a plan that was made from these facts."""
        from pytest_stagegbo.apply.step_runner import StepRunner

        return StepRunner(
            self.reader,
            self.writer(facts),
            facts,
            self.settings,
            keys,
            self.progress,
            replacements,
            parent=self.parent,
            unconfirmed=self.unconfirmed,
        )

    def destroy(self) -> tuple[Timing, ...]:
        """Remove everything of the stage that carries this tool's mark. Nothing there is fine."""
        from pytest_stagegbo.engine import removal

        return removal.destroy(self)

    def status(self, *, disk: bool = True) -> StageStatus:
        """What the stage is like right now; asks every service once."""
        from pytest_stagegbo.engine.status import stage_status

        return stage_status(self.reader, self.settings, self.parent, disk=disk, frozen=self.freezer.frozen())

    def clone(self, name: str) -> Instance:
        """The named clone; raises `SettingsError`, `StageMissing` or `NotOurs`."""
        if name not in self.settings.containers:
            raise SettingsError.unknown("no container", [name], self.settings.containers)
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
        """To write to clones that are there; what it has to know of production is read once. Raises as `look_around`
        and `writer` do."""
        if self._clone_runner is not None:
            return self._clone_runner.writer
        if self._clone_writer is None:
            self._clone_writer = self.writer(look_around(self.reader, self.settings, self._golden, self.parent))
        return self._clone_writer

    def lock(self, timeout: float | None = None) -> StageLock:
        """The lock of this stage; see `StageLock.hold`. `timeout`: seconds, instead of the settings'."""
        server = self._connection.server().fingerprint or self._connection.endpoint
        patience = self.settings.timeouts.lock if timeout is None else timeout
        thaw = self.freezer.thaw
        return StageLock(self._connection.endpoint, server, self.settings.project, patience, thaw, self._host_lease)

    def _host_lease(self, folder: Path) -> HostLease | None:
        if self.lease is None:
            self.lease = leasing.host_lease_of(self, folder)
        return self.lease

    def lease_store(self) -> LeaseStore:
        """Where this stage's leases are, for one who may change them."""
        scope = WriterScope(
            project=leasing.project_of(self.settings, self.parent),
            network="",
            acl="",
            source_project=self.settings.source_project,
            production_networks=frozenset(),
        )
        return leasing.store_of(self._connection, scope, self.settings, self.parent)

    def check_lease(self) -> None:
        """Raise `LeaseLost` if this process uses the stage, and another host may have it by now."""
        if self.lease is not None:
            self.lease.check()

    def mark_dirty(self) -> None:
        """Something may be done to the stage that nobody sees: it does not count as clean any more."""
        with suppress(OSError):
            self.lock().mark_dirty()

    def writer(self, facts: Facts | Surroundings) -> Writer:
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
            member=facts.member,
        )
        return Writer(self._connection, scope, self.settings.timeouts.operation, self.check_lease)

    def waiting(self, holder: str) -> None:
        """Say who holds the stage's lock."""
        self.progress.note(f"waiting for stage {self.settings.project}: {holder}")
