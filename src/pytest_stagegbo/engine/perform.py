"""How each step is done. Every method may be repeated after a crash at any point of an earlier try."""

from __future__ import annotations

import functools
import logging
import posixpath
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.engine import destroy, hooks, marks, secrets, shape, steps
from pytest_stagegbo.engine.allowlist import clone_config, root_disk, unsafe
from pytest_stagegbo.engine.attach import attach
from pytest_stagegbo.engine.await_clone import await_clone
from pytest_stagegbo.engine.exposure import access_list
from pytest_stagegbo.engine.first_boot import make_safe, own_identity, own_stamp
from pytest_stagegbo.engine.own_pool import is_own, pool_config
from pytest_stagegbo.engine.quotas import Limits
from pytest_stagegbo.engine.removal import let_end, let_stop, patiently, remove_clone
from pytest_stagegbo.engine.room import await_room
from pytest_stagegbo.engine.snapshots import take_snapshot
from pytest_stagegbo.errors import (
    LimitTooSmall,
    NoRoom,
    NotReady,
    OperationFailed,
    ServerRefused,
    StageMissing,
    UnsafeClone,
)
from pytest_stagegbo.guest import boot_file, holds_services, release
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.localhost import LocalHost
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.engine.allowlist import CloneConfig
    from pytest_stagegbo.engine.await_clone import Readiness
    from pytest_stagegbo.engine.facts import Facts
    from pytest_stagegbo.incus import Instance, Reader, Writer
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.services.unseal import UnsealKeys
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.stage.replacements import Replacements

__all__ = ["Performer"]

log = logging.getLogger("stagegbo.provision")

NEWS = 10.0
"""Seconds between two notes about how far a full copy is."""
LARGEST_LIMIT = 1 << 50
"""Bytes. A driver that refuses more than this refuses for another reason than the size."""


class Performer:
    """Does steps, from several threads at once.

    Attributes:
        limits: Of the pools that it copies on.
        readiness: What each awaited container answered, by name.
        bootable: Names of clones that were copied whole and are marked as prepared only once their first boot is
            proven. Whoever comes after a kill does not know of a copy whether it is whole, and makes it anew.
    """

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        facts: Facts,
        settings: Settings,
        keys: UnsealKeys | None,
        progress: Progress,
        replacements: Replacements | None = None,
        family: str = "",
        bootable: set[str] | None = None,
    ) -> None:
        self._replacements = replacements
        self._reader = reader
        self.writer = writer
        self._facts = facts
        self._settings = settings
        self._keys = keys
        self._progress = progress
        self._family = family
        self._host = LocalHost(reader.endpoint)
        pools = [room.pool for room in facts.rooms.values()]
        self.limits = Limits(self._host, pools, progress, settings.timeouts.ready)
        self.readiness: dict[str, Readiness] = {}
        self._started: set[str] = set()
        self._counting = threading.Lock()
        self._in_full = threading.Lock()
        """Held while files are read from production: one after the other, so that its disk stays quick."""
        self.bootable: set[str] = set() if bootable is None else bootable

    def do(self, step: steps.Step) -> None:
        """Do one step.

        Raises:
            StageGboError: it could not be done.
        """
        match step:
            case steps.SetProject():
                self.set_project(step)
            case steps.SetAcl():
                self.set_acl(step)
            case steps.SetNetwork():
                self.set_network(step)
            case steps.SetProfile():
                self.set_profile(step)
            case steps.CreatePool():
                self.writer.create_pool("btrfs", pool_config(self._settings, self._family), shape.DESCRIPTION)
            case steps.RemoveClone():
                self.remove_clone(step)
            case steps.AwaitRoom():
                self.await_room(step)
            case steps.CopyClone():
                self.copy_clone(step)
            case steps.RefreshClone():
                self.refresh_clone(step)
            case steps.PrepareClone():
                self.prepare_clone(step)
            case steps.ResizeClone():
                self.resize_clone(step)
            case steps.AdoptClone():
                self.writer.set_instance_config(step.subject, marks.of_instance(self._clone(step.subject)))
            case steps.AttachClone():
                attach(self.writer, self._clone(step.subject), step, self._settings, managed=self._managed)
            case steps.StartClone():
                self.start_clone(step)
            case steps.AwaitClone():
                self.await_clone(step)
            case secrets.CheckSecrets():
                assert self._replacements is not None
                for text in secrets.replace_secrets(
                    self._reader, self.writer, self._settings, step, self._replacements
                ):
                    self._progress.note(text)
            case hooks.RunHooks():
                snapshot = step.container.may_restore and not self._family
                hooks.run_hooks(self._reader, self.writer, self._settings, step, snapshot=snapshot)
            case destroy.RemoveProject():
                destroy.refuse_foreign(self._reader, self._settings)  # somebody may have come between
                self.writer.delete_project()
            case destroy.RemoveForward():
                self.writer.delete_forward(step.subject)
            case destroy.RemoveNetwork():
                self.writer.delete_network()
            case destroy.RemoveAcl():
                self.writer.delete_acl()
            case _:
                raise TypeError(f"no way to do {type(step).__name__}")

    # -- foundations

    def set_project(self, step: steps.SetProject) -> None:
        existing = self._facts.projects.get(self._settings.project)
        if not step.create and existing is not None:
            own_networks = not shape.managed_nics(dict(existing.config))
            wanted = shape.project(self._settings, own_networks=own_networks, family=self._family)
            self.writer.replace_project({**existing.config, **wanted}, existing.description)
            return
        wanted, otherwise = (
            shape.project(self._settings, own_networks=own, family=self._family) for own in (True, False)
        )
        if not self.writer.create_project(wanted, otherwise, shape.DESCRIPTION):
            log.debug(
                "this server refuses features.networks=true without OVN, so project %s gets features.networks=false "
                "and access to network %s only",
                self._settings.project,
                self._settings.network.name,
            )

    def set_acl(self, step: steps.SetAcl) -> None:
        wanted = access_list(self._facts, self._settings, family=self._family)
        if step.create:
            self.writer.create_acl(wanted)
        else:
            self.writer.replace_acl(wanted)

    def set_network(self, step: steps.SetNetwork) -> None:
        wanted = shape.network(self._settings, self._family)
        if step.create:
            if self._settings.network.name in self._facts.networks:  # half made
                self.writer.delete_network()
            self.writer.create_network(wanted, shape.DESCRIPTION)
        else:
            existing = self._facts.networks[self._settings.network.name]
            if not self._facts.bridge_works:  # Incus sets an interface up when one of its keys changes, and only then
                other = {"ipv4.nat": "false" if wanted["ipv4.nat"] == "true" else "true"}
                self.writer.replace_network({**existing.config, **wanted, **other}, existing.description)
            self.writer.replace_network({**existing.config, **wanted}, existing.description)

    def set_profile(self, step: steps.SetProfile) -> None:
        devices = shape.profile_devices(self._settings, step.pool, managed=self._managed)
        self.writer.replace_default_profile({}, devices, shape.DESCRIPTION)

    @functools.cached_property
    def _managed(self) -> bool:
        """Whether NICs name the bridge as a network: known only once the project exists."""
        project = self._reader.projects()[self._settings.project]
        return shape.managed_nics(dict(project.config))

    # -- clones

    def remove_clone(self, step: steps.RemoveClone) -> None:
        remove_clone(self._reader, self.writer, self._settings, step.subject)

    def await_room(self, step: steps.AwaitRoom) -> None:
        missing = await_room(self._reader, self._host, self._settings, step.subject, step.cost, removed=True)
        if missing is not None:
            missing.remedy += "; the old clones are gone, and `stagegbo provision` makes them again"
            raise missing

    def copy_clone(self, step: steps.CopyClone) -> None:
        name = step.subject
        source = self._facts.sources[step.container.source_name]
        wanted = self._clone_config(step, source)
        in_full = step.pool != source.pool
        if in_full:
            self._count_simply(step.pool)
        moved = self._moved(name) if in_full else None
        try:
            with self._in_full if in_full else self.limits.copying(step.pool):
                self._copy(name, source.name, wanted, target=step.location, moved=moved)
        except (OperationFailed, ServerRefused) as error:
            if dialect.is_full(error):
                raise self._full(step, error) from None
            if dialect.over_quota(error) and not in_full:
                raise self._limit_error(step, source) from None
            raise
        if step.bootable:
            self.bootable.add(name)

    def _count_simply(self, name: str) -> None:
        """Before the first copy to a pool that this tool made: Incus turns ordinary quotas on with the first limit."""
        with self._counting:
            pool = self._reader.pool(name)
            quotas = self._host.quotas(pool)
            if is_own(pool, self._family or self._settings.project) and quotas is not None and quotas.mode == "off":
                self._host.count_simply(pool)

    def _moved(self, name: str) -> Callable[[str], None]:
        """Notes every now and then how much of a full copy is there."""
        last = clocks.monotonic()

        def moved(text: str) -> None:
            nonlocal last
            if text and clocks.monotonic() - last >= NEWS:
                last = clocks.monotonic()
                self._progress.note(f"copying {name}: {text.rpartition(': ')[2]}")

        return moved

    def _full(self, step: steps.CopyClone, error: OperationFailed | ServerRefused) -> NoRoom:
        return NoRoom(
            f"pool {step.pool} became full while {step.subject} was copied",
            seen=error.seen,
            remedy="make it larger (`incus storage set "
            f"{step.pool} size=SIZE` for a pool in a file), or remove what is on it and not needed; the next run goes "
            "on from here",
        )

    def refresh_clone(self, step: steps.RefreshClone) -> None:
        """Copy what differs. The clone is marked as unfinished meanwhile, so a run that is killed is done again."""
        name, copy = step.subject, step.copy
        source = self._facts.sources[copy.container.source_name]
        clone = self._clone(name)
        self.writer.set_instance_config(name, {marks.STATE: marks.BUILDING, marks.PROVEN: "", marks.GENERATION: ""})
        if clone.status != "Stopped":
            self.writer.set_state(name, "stop", force=True)
        let_end(self._reader, self._settings, name)
        self._count_simply(copy.pool)
        try:
            with self._in_full:
                self.writer.refresh_instance(name, source.name, moved=self._moved(name))
        except (OperationFailed, ServerRefused) as error:
            if dialect.is_full(error):
                raise self._full(copy, error) from None
            if not dialect.lost_its_volume(error):
                raise
            remove_clone(self._reader, self.writer, self._settings, name)
            self.copy_clone(copy)
            return
        # As a new copy would have it: nothing stays of what the clone was told before, or the source has no more.
        wanted = self._clone_config(copy, source)
        gone = [key for key in self._clone(name).config if not key.startswith("volatile.")]
        config = {**dict.fromkeys(gone, ""), **wanted.config}
        devices = {device: each for device, each in wanted.devices.items() if each.get("type") != "none"}
        self.writer.set_instance_config(name, config)
        self.writer.set_instance_devices(name, devices)

    def _clone_config(self, step: steps.CopyClone, source: Instance) -> CloneConfig:
        golden = bool(self._facts.golden)
        return clone_config(source, step.container, self._settings, managed=self._managed, golden=golden)

    def _copy(
        self,
        name: str,
        source: str,
        wanted: CloneConfig,
        *,
        target: str = "",
        moved: Callable[[str], None] | None = None,
    ) -> None:
        self.writer.copy_instance(
            name, source, config=wanted.config, devices=wanted.devices, target=target, moved=moved
        )

    def _limit_error(self, step: steps.CopyClone, source: Instance) -> LimitTooSmall:
        referenced = self._referenced_bytes(step, source)
        size = "bytes" if referenced is None else f"about {bytes_text(referenced)}"
        return LimitTooSmall(
            f"{step.subject}: the disk limit {step.limit} ({bytes_text(parse_size(step.limit))}) is below the {size} "
            f"that {source.project}/{source.name} already references",
            seen="the storage driver refused the limit; shared bytes count against it",
            remedy=f"raise disk_limit, or set containers.{step.subject}.disk_limit",
        )

    def _referenced_bytes(self, step: steps.CopyClone, source: Instance) -> int | None:
        """Bytes that a clone references, found by asking which limits the driver takes for one without a limit.

        Drivers report only the bytes that a volume has for itself. The clones never start, and are removed.
        """
        wanted = self._clone_config(step, source)
        try:
            low, high = parse_size(step.limit), parse_size(step.limit) * 2
            while not self._takes_limit(step, source, wanted, high):
                if high > LARGEST_LIMIT:
                    return None
                low, high = high, high * 2
            while high - low > max(high // 20, 1 << 20):
                middle = (low + high) // 2
                if self._takes_limit(step, source, wanted, middle):
                    high = middle
                else:
                    low = middle
        except (OperationFailed, ServerRefused):
            return None
        finally:
            remove_clone(self._reader, self.writer, self._settings, step.subject)
        return high

    def _takes_limit(self, step: steps.CopyClone, source: Instance, wanted: CloneConfig, size: int) -> bool:
        """Of a new clone each time: btrfs keeps a limit that it refused, and then refuses every other one, too."""
        remove_clone(self._reader, self.writer, self._settings, step.subject)
        root = {**wanted.devices["root"], "size": ""}
        self._copy(step.subject, source.name, replace(wanted, devices={**wanted.devices, "root": root}))
        try:
            limited = {**wanted.devices, "root": {**root, "size": str(size)}}
            self.writer.set_instance_devices(step.subject, limited)
        except (OperationFailed, ServerRefused):
            return False
        return True

    def prepare_clone(self, step: steps.PrepareClone) -> None:
        """Check the stopped clone's configuration, place its files, and only then mark it as safe to start."""
        name = step.subject
        clone = self._clone(name)
        self._refuse_unsafe(clone)
        if clone.is_running:
            raise UnsafeClone(
                f"{name} in {self._settings.project} is running although it was not made safe",
                remedy="somebody else started it, or this is a bug: run provision again",
            )
        if not self._facts.golden:  # where the golden clone's files are in it
            file = boot_file(step.container, self._settings)
            self.writer.make_folder(name, posixpath.dirname(file.path))
            self.writer.put_file(name, file.path, file.content.encode(), mode=file.mode)
        if not step.container.hooks:  # they come before that
            if step.container.may_restore and not self._family:  # slots go back to their golden copy
                take_snapshot(self._reader, self.writer, name)
            self.writer.set_instance_config(name, {marks.STATE: marks.PREPARED})

    def _refuse_unsafe(self, clone: Instance) -> None:
        problems = unsafe(clone, self._settings)
        if problems:
            raise UnsafeClone(
                f"{clone.name} in {self._settings.project} must not be started",
                seen=", ".join(problems),
                remedy="if production's configuration is being changed at this moment, run provision again; otherwise "
                "please report what was seen",
            )

    def resize_clone(self, step: steps.ResizeClone) -> None:
        clone = self._clone(step.subject)
        devices = {name: dict(device) for name, device in clone.devices.items()}
        devices["root"] = root_disk(clone.pool, step.limit)
        self.writer.set_instance_devices(step.subject, devices)

    def limit_restored(self, name: str) -> None:
        """See that a clone which was brought back from a snapshot has its limit, also where nobody can look."""
        clone = self._clone(name)
        if self.limits.lost(clone) is not False:
            self.limits.set_again(self.writer, clone)

    def start_clone(self, step: steps.StartClone) -> None:
        self.limits.see()

        def start() -> None:
            clone = self._clone(step.subject)
            if clone.config.get(marks.STATE) != marks.PREPARED and clone.name not in self.bootable:
                raise UnsafeClone(
                    f"{step.subject} was not made safe",
                    seen=f"state {clone.config.get(marks.STATE)}",
                    remedy="provision again",
                )
            if clone.config.get(marks.PROVEN) != "true":
                self._refuse_unsafe(clone)
                if make_safe(self._reader, self.writer, self._settings, self._settings.containers[step.subject]):
                    clone = self._clone(step.subject)
            if self.limits.lost(clone):
                self.limits.set_again(self.writer, clone)
            if clone.is_running:
                return
            self._started.add(step.subject)
            try:
                self.writer.set_state(step.subject, "unfreeze" if clone.status == "Frozen" else "start")
            except (OperationFailed, ServerRefused) as error:  # as a run that was killed had asked for
                if not dialect.runs_already(error):
                    if not dialect.is_busy(error):
                        let_stop(self._reader, self._settings.project, step.subject)
                    raise

        patiently(start, self._settings.timeouts.operation)

    def await_clone(self, step: steps.AwaitClone) -> None:
        running = self._facts.clones.get(step.subject)
        if running is not None and step.subject not in self._started and self.limits.lost(running):
            clone = self._clone(step.subject)  # it may have another limit by now
            if self.limits.lost(clone):
                self.limits.set_again(self.writer, clone)
        if step.prove and holds_services(step.container):  # what it needs answers now
            own = own_identity(self._clone(step.subject))
            self.writer.put_file(step.subject, release(own), b"\n", mode=0o644)
        try:
            self.readiness[step.subject] = await_clone(
                self._reader,
                self.writer,
                self._settings,
                step.container,
                self._keys,
                first_boot=step.prove,
                running=step.subject not in self._started,
            )
        except NotReady as error:
            if step.prove:
                self._stop_unproven(step.subject, error)
            raise
        if step.prove:
            marked = {marks.STATE: marks.PREPARED} if step.subject in self.bootable else {}
            known = marks.of_instance(self._clone(step.subject))
            self.writer.set_instance_config(step.subject, {**marked, **known, marks.PROVEN: "true"})
            self.bootable.discard(step.subject)

    def _stop_unproven(self, name: str, error: NotReady) -> None:
        """Stop a clone that nothing shows to be wiped: it may run as production does, with its data and schedules.

        Raises:
            NotReady: it was stopped.
        """
        clone = self._reader.instance(self._settings.project, name)
        if clone is None or not clone.is_running or own_stamp(self._reader, clone):
            return
        self.writer.set_state(name, "stop", force=True)
        raise NotReady(
            f"{error.message}; its first boot did not make it safe, so it was stopped",
            seen=error.seen,
            remedy=f"see whether {name} of production boots with another program than systemd; {error.remedy}",
        ) from None

    def _clone(self, name: str) -> Instance:
        clone = self._reader.instance(self._settings.project, name)
        if clone is None:
            raise StageMissing(f"{name} vanished from {self._settings.project}", remedy="run provision again")
        return clone
