"""All slots of a stage together: it provisions, inspects and removes them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from pytest_stagegbo import clocks
from pytest_stagegbo.apply.room import await_room
from pytest_stagegbo.desired import marks, ownership
from pytest_stagegbo.desired.objects import acl_name
from pytest_stagegbo.desired.own_pool import removable_pool
from pytest_stagegbo.engine import removal
from pytest_stagegbo.engine.leasing import leases
from pytest_stagegbo.engine.opening import forget_leases, opened_engines
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import NoRoom, SettingsError
from pytest_stagegbo.facts.placement import locator
from pytest_stagegbo.facts.space import pool_names
from pytest_stagegbo.incus import Reader
from pytest_stagegbo.incus.seen_networks import SeenNetworks
from pytest_stagegbo.plan import foreign
from pytest_stagegbo.plan.objections import refuse_other_stage
from pytest_stagegbo.plan.provision import Plan
from pytest_stagegbo.progress import Silent, task
from pytest_stagegbo.settings.checks import MOST_SLOTS
from pytest_stagegbo.settings.opened import opened_number
from pytest_stagegbo.settings.size import parse_size
from pytest_stagegbo.slots.bridges import bridges_of_slots, is_of
from pytest_stagegbo.slots.capacity import Capacity, capacity
from pytest_stagegbo.slots.golden import Golden
from pytest_stagegbo.slots.host import measure
from pytest_stagegbo.slots.layout import GOLDEN, golden_settings, is_member_copy, number_of, slot_settings
from pytest_stagegbo.slots.member_copy import NearestCopy
from pytest_stagegbo.slots.numbered import Numbered
from pytest_stagegbo.slots.placing import Placing
from pytest_stagegbo.slots.source_drift import source_drift
from pytest_stagegbo.slots.subnets import refuse_taken_subnets
from pytest_stagegbo.workers import at_once

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pytest_stagegbo.engine.provisioned import Provisioned
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.leases.protocol import Seen
    from pytest_stagegbo.locks import StageLock
    from pytest_stagegbo.plan.foreign import Foreign
    from pytest_stagegbo.plan.steps import Step
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.slots.capacity import Host
    from pytest_stagegbo.slots.held import HeldCopy

__all__ = ["Fleet", "FleetProvisioned"]

AT_ONCE = max(1, (os.cpu_count() or 2) // 2)
"""Slots made at once: one keeps about two cores busy."""


class FleetProvisioned(Struct, frozen=True):
    """The results of provisioning several slots and their golden copy."""

    golden: Provisioned | None
    """None: the golden copy was fit."""
    slots: Mapping[int, Provisioned]
    seconds: float


class Fleet:
    """The slots of one stage, and their golden copy.

    Args:
        settings: Of the stage, which is slot 0.
    """

    def __init__(self, settings: Settings, connection: Connection, *, progress: Progress | None = None) -> None:
        self.settings = settings
        self._connection = connection
        self._progress: Progress = progress or Silent()
        self._reader = Reader(connection, locator(settings))
        self._golden: Golden | None = None
        self.places: Mapping[int, str] = {}
        """By slot, the cluster member that was chosen for it, should it have to be made."""

    @property
    def is_clustered(self) -> bool:
        return self._reader.server().clustered

    def gone(self) -> frozenset[str]:
        """Members of the cluster that are offline or evacuated."""
        return frozenset(each.name for each in self._reader.members() if not each.is_usable)

    @property
    def golden(self) -> Golden:
        """The golden copy. Raises `SettingsError` if its names or addresses are not possible."""
        if self._golden is None:
            self._golden = Golden(self.settings, self._connection, self._progress)
            self._golden.engine.siblings = lambda: [self.engine(each) for each in self.members() if each >= 0]
        return self._golden

    def engine(self, number: int, *, progress: Progress | None = None) -> StageEngine:
        """Return the engine of slot `number`, which copies its clones from the golden copy.

        Raises:
            SettingsError: the slot can't have its names or addresses.
        """
        engine = StageEngine(
            slot_settings(self.settings, number),
            self._connection,
            progress=progress or self._progress,
            origin=self.golden,
            parent=self.settings.project if number else "",
            place=self.places.get(number, ""),
        )
        engine.clone_source = NearestCopy(self.golden, engine.reader)
        engine.siblings = lambda: [self.engine(each) for each in self.members() if each >= 0 and each != number]
        return engine

    def refuse_others(self, numbers: Collection[int]) -> None:
        """Raise an error when the names of slots, or of the golden copy, are another stage's. For before the first
        write: slots are made one after the other.

        Args:
            numbers: Of the slots; the golden copy is looked at with any of them but 0.

        Raises:
            NotOurs, SettingsError: a project, bridge or access list is another stage's.
        """
        wanted = [slot_settings(self.settings, number) for number in numbers if number]
        if not wanted:
            return
        projects, parent = self._reader.projects(), self.settings.project
        for each in (*wanted, golden_settings(self.settings)):
            ownership.refuse_relation(projects.get(each.project), parent)
            if each.project not in projects:  # where it is there, its own plan looks at these
                bridge, acl = self._reader.network(each.network.name), self._reader.acl(acl_name(each))
                networks = {} if bridge is None else {bridge.name: ownership.with_marks(bridge, acl)}
                refuse_other_stage(networks, acl, projects, each, parent)

    # -- how many, and of what state

    def capacity(self, workers: int) -> Capacity:
        """Return how many slots there may be. Raises `NoRoom` if the settings name more than fit."""
        if self.settings.slots.count == 1:
            return Capacity(1, ())
        if not self.is_clustered:
            return capacity(self.settings, [self._measure(workers)], workers)
        found = Placing(self.settings, self._connection, self._reader).capacity(workers)
        self.places = found.members
        return found

    def usable(self, count: int) -> tuple[int, ...]:
        """The first `count` slots, but for those that are away with their member of the cluster."""
        if not self.is_clustered:
            return tuple(range(count))
        if not self.places:
            self.places = Placing(self.settings, self._connection, self._reader).places(count)
        return tuple(self.places) or (0,)

    def _measure(self, workers: int) -> Host:
        """Measure the host. If room is short, wait until btrfs has freed what it is cleaning up."""
        settings, wanted = self.settings, self.settings.slots.count
        found = measure(self._reader, settings, self.count_there())
        more = (workers if wanted == "auto" else wanted) - found.there
        need = max(0, more) * parse_size(settings.slots.disk)
        if found.disk - found.floor >= need:
            return found
        host = self._reader.host()
        for name in pool_names(self._reader, settings):
            if wanted != "auto" or host.uncleaned(self._reader.pool(name)):
                with task(self._progress, f"room:{name}", f"wait for room on pool {name}"):
                    await_room(self._reader, host, settings, name, need, removed=False)
        return measure(self._reader, settings, found.there)

    def count_there(self) -> int:
        """Return the highest number of a slot that exists, plus one."""
        projects, parent = self._reader.projects(), self.settings.project
        slots = [name for name, project in projects.items() if is_of(project.config, parent)]
        highest = max((number_of(self.settings, name) or 0 for name in slots), default=0)
        return highest + 1 if highest > 0 or parent in projects else 0

    def to_refresh(self, names: Collection[str]) -> tuple[str, ...]:
        """The containers that a refresh of `names` copies from production again; without names those that may have
        changed there since they were copied.

        Raises:
            SettingsError: there is no such container.
        """
        containers = self.settings.containers
        unknown = [name for name in names if name not in containers]
        if unknown:
            raise SettingsError.unknown("no container", unknown, containers)
        return tuple(dict.fromkeys(names)) or tuple(name for name, why in self.source_drift().items() if why)

    def source_drift(self) -> dict[str, str]:
        """Return, by container, what may have changed in production since it was copied. Empty: nothing."""
        sources = self._reader.instances(self.settings.source_project)
        project = self.golden.project if self.has_golden() else self.settings.project
        clones = self._reader.instances(project)
        containers = self.settings.containers.items()
        return {name: source_drift(sources.get(each.source_name), clones.get(name)) for name, each in containers}

    def has_golden(self) -> bool:
        """Whether there is a golden copy, usable or not."""
        project = self._reader.projects().get(f"{self.settings.project}-{GOLDEN}")
        return project is not None and is_of(project.config, self.settings.project)

    def golden_runs(self) -> bool:
        """Whether any clone of the golden copy is not stopped."""
        return any(clone.status != "Stopped" for clone in self.clones(self.golden.project).values())

    # -- provision

    def plans(self, count: int, *, recreate: bool = False, to_replace: Collection[str] = ()) -> dict[str, Plan]:
        """By project, what `provision` would do now. The slots' steps are known once the golden copy is there."""
        if not self._needs_golden(count):
            return {self.settings.project: self._member(self.settings).plan(to_replace=to_replace)}
        numbers = self.usable(count)
        self.refuse_others(numbers)
        self.refuse_taken(numbers)
        self._refuse_elsewhere(numbers, recreate, to_replace)
        self._refuse_to_lose(numbers, self.settings.containers if recreate else to_replace)
        if to_replace or not (self.golden.is_away() or self.golden.is_fit()):
            return {self.golden.project: self.golden.engine.plan(to_replace=to_replace)}
        engines = [self.engine(number) for number in numbers]
        left = {copy.project: Plan(tuple(copy.left())) for copy in self._copies()}
        plans = {engine.settings.project: engine.plan(recreate=recreate) for engine in engines}
        return {**{project: plan for project, plan in left.items() if plan.steps}, **plans}

    def _copies(self) -> list[HeldCopy]:
        """The golden copy, and those on further members of the cluster that have slots; not where it is away."""
        if self.golden.is_away():
            return []
        if not self.golden.is_fit():  # It is about to boot, and connections to it go the way of the engine made last.
            return [self.golden]
        return list({copy.project: copy for copy in map(self.golden.at, ["", *self.places.values()])}.values())

    def _needs_golden(self, count: int) -> bool:
        """Whether the slots are copied from a golden copy: on a pool of the stage's own the first is, too."""
        return bool(count > 1 or self.settings.storage.own or self.has_golden())

    def _refuse_elsewhere(self, numbers: Iterable[int], recreate: bool, to_replace: Collection[str]) -> None:
        """As `Provisioning.refuse_elsewhere`, for each slot, before production is copied."""
        for number in numbers:
            self.engine(number).provisioning.refuse_elsewhere(recreate, to_replace)

    def _refuse_to_lose(self, numbers: Collection[int], names: Collection[str]) -> None:
        """Raise `NotOurs` when clones of these names, which are replaced one slot after the other, have snapshots that
        somebody took: before the first of them is replaced, and the golden copy."""
        found: list[Foreign] = []
        members = self.members() if names else {}
        for number in members.keys() & set(numbers):
            clones = self.clones(members[number].project)
            own = [name for name in names if name in clones and marks.is_clone(clones[name], members[number])]
            found += foreign.in_clones(self._reader, members[number], own)
        foreign.refuse(found, f"{', '.join(names)} can't be replaced", "then run this again")

    def provision(self, count: int, *, recreate: bool = False, to_replace: Collection[str] = ()) -> FleetProvisioned:
        """Make slots 0 to `count` - 1 what the settings say. Production is copied at most once, for the golden copy.

        Args:
            recreate: Copy everything from production again; on a pool of the stage's own, from the golden copy there.
            to_replace: Names of containers to copy from production again, in the golden copy and every slot.

        Raises:
            StageGboError: the first slot's error; the others are finished or go on from where they are next time.
        """
        if not 0 < count <= MOST_SLOTS:
            raise SettingsError(f"{count} is no number of slots from 1 to {MOST_SLOTS}")
        began = clocks.monotonic()
        if not self._needs_golden(count):
            result = self._member(self.settings).provision(recreate=recreate, to_replace=to_replace)
            return FleetProvisioned(None, {0: result}, clocks.monotonic() - began)
        numbers = self.usable(count)
        self.refuse_others(numbers)
        engines = {number: self.engine(number, progress=Numbered(self._progress, number)) for number in numbers}
        seen = SeenNetworks()
        self.refuse_taken(numbers, seen)
        for engine in engines.values():
            engine.reader.seen_networks = seen
        self._refuse_elsewhere(engines, recreate, to_replace)
        self._refuse_to_lose(numbers, self.settings.containers if recreate else to_replace)
        own = bool(self.settings.storage.own)
        copied = recreate and not own
        made = self._make_golden(engines.values(), copied, to_replace) if copied or to_replace else None
        there = self._reader.projects()
        limiter = threading.BoundedSemaphore(max(AT_ONCE, len(set(self.places.values()))))

        def provision(number: int) -> Provisioned:
            # Slot 0 may have been copied from production before there was a golden copy to compare it with.
            replace_all = recreate and (own or not number)
            replacing = tuple(self.settings.containers) if replace_all else () if number else tuple(to_replace)
            missing = engines[number].settings.project not in there
            return engines[number].provision(to_replace=replacing, missing=missing, limiter=limiter)

        for copy in self._copies():
            copy.engine.reader.seen_networks = seen
            copy.put_back()
        # One that is there and as it should be is only looked at, beside those that are made.
        with self.golden.kept():
            results = dict(zip(engines, at_once(provision, engines, "stagegbo slot"), strict=True))
        return FleetProvisioned(made or self.golden.made, results, clocks.monotonic() - began)

    def refuse_taken(self, numbers: Iterable[int], seen: SeenNetworks | None = None) -> None:
        """See `refuse_taken_subnets`."""
        refuse_taken_subnets(self._reader, self.settings, self.golden.settings, numbers, seen or SeenNetworks())

    def _make_golden(
        self, engines: Iterable[StageEngine], recreate: bool, to_replace: Collection[str]
    ) -> Provisioned | None:
        """Copy production into the golden copy. If there is no room, remove clones of slots first: they share blocks
        with the old golden copy, which come free only without them."""
        try:
            return self.golden.make(recreate=recreate, to_replace=to_replace)
        except NoRoom:
            for engine in engines:
                removal.remove_clones(engine, self.settings.containers if recreate else to_replace)
            return self.golden.make(recreate=recreate, to_replace=to_replace)

    # -- what is there

    def members(self) -> dict[int, Settings]:
        """Return the settings of slot 0, of every other slot that exists, and of the golden copy if it exists (-1). In
        a cluster, its copies on further members follow (-2, ...)."""
        bridges = bridges_of_slots(self._reader, self.settings.project)
        found = {0: self.settings}
        numbers = {name: number_of(self.settings, name) for name in bridges}
        copies = sorted(name for name in bridges if is_member_copy(self.settings, name))
        numbers.update((name, -place) for place, name in enumerate(copies, 2))
        for name, bridge in bridges.items():
            number = numbers[name]
            if number:
                found[number] = structs.replace(
                    self.settings, project=name, network=structs.replace(self.settings.network, name=bridge)
                )
        return dict(sorted(found.items()))

    def clones(self, project: str) -> Mapping[str, Instance]:
        """Return the instances of a member's project, by name. There are none if the project does not exist."""
        return self._reader.instances(project)

    def lock(self, member: Settings) -> StageLock:
        """Return the locks of a member."""
        return self._member(member).lock()

    def plan_destroy(self) -> dict[str, Sequence[Step]]:
        """Return, by project, the steps of `destroy`. What has nothing to remove is left out."""
        plans = {engine.settings.project: removal.plan(engine) for engine in self._doomed()}
        return {project: steps for project, steps in plans.items() if steps}

    def destroy(self) -> None:
        """Remove opened capsules, slots and golden copy, as far as they carry this tool's marks; nothing is fine."""
        self.plan_destroy()  # says what it refuses before anything is gone
        for engine in self._doomed():
            engine.destroy()
            if opened_number(self.settings.project, engine.settings.project) is not None:
                forget_leases(engine)
        self.forget_leases()

    def _doomed(self) -> list[StageEngine]:
        """What `destroy` removes, in this order."""
        members = self.members()
        order = sorted(members, key=lambda number: (number < 0, number == 0, number))
        found = opened_engines(self.settings, self._connection, self._reader)
        return [*found, *(self._member(members[number]) for number in order)]

    def own_pool(self) -> str:
        """Return the stage's own pool if `destroy` may remove it. Raises what `removable_pool` raises."""
        projects = [settings.project for settings in self.members().values()]
        return removable_pool(self._reader, self.settings, projects)

    def remove_pool(self) -> None:
        """Remove the stage's own pool, once everything on it is gone."""
        removal.remove_pool(self._member(self.settings))
        self.forget_leases()

    def forget_leases(self) -> None:
        """Remove the project in which hosts write down who has the stage, unless a host has it."""
        if self.settings.timeouts.lease:
            self._member(self.settings).lease_store().remove_project()

    def leases(self) -> dict[str, Seen]:
        """Return, by project, the leases of slots and of the golden copy."""
        return leases(self._reader, self.settings) if self.settings.timeouts.lease else {}

    def _member(self, settings: Settings) -> StageEngine:
        parent = "" if settings.project == self.settings.project else self.settings.project
        return StageEngine(settings, self._connection, progress=self._progress, parent=parent)
