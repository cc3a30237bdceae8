"""How each step is done. Every method may be repeated after a crash at any point of an earlier try."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_stagegbo.apply.await_clone import await_clone
from pytest_stagegbo.apply.first_boot import make_safe, own_identity, own_stamp
from pytest_stagegbo.apply.removal import let_end, let_stop, patiently, remove_clone
from pytest_stagegbo.desired import marks, objects
from pytest_stagegbo.desired.allowlist import root_disk, violations
from pytest_stagegbo.desired.own_pool import pool_config
from pytest_stagegbo.errors import (
    NoRoom,
    NotReady,
    OperationFailed,
    ServerRefused,
    StageMissing,
    UnsafeClone,
)
from pytest_stagegbo.facts.quotas import Limits, burdens
from pytest_stagegbo.guest import boot_file, boot_folder_of, holds_services, release
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.plan import steps
from pytest_stagegbo.workers import interrupted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.apply.await_clone import Readiness
    from pytest_stagegbo.apply.copying import Copies
    from pytest_stagegbo.apply.foundations import Foundations
    from pytest_stagegbo.credentials.replacements import Replacements
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Instance, Reader, Writer
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.services.unseal import UnsealKeys
    from pytest_stagegbo.settings import Settings

__all__ = ["StepRunner"]

log = logging.getLogger("stagegbo.provision")


class StepRunner:
    """Does steps, from several threads at once.

    Attributes:
        pools: That it copies on, by name, as the facts have them.
        limits: Of these.
        readiness: What each awaited container answered, by name.
        unconfirmed: Names of clones that this run has copied whole and prepared, and that are marked as prepared only
            once their first boot is proven, or known to have failed: a mark is a write of its own. A run that comes
            after a kill does not know how far they were, and replaces them.
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
        parent: str = "",
        unconfirmed: set[str] | None = None,
    ) -> None:
        self._replacements = replacements
        self._reader = reader
        self.writer = writer
        self._facts = facts
        self._settings = settings
        self._keys = keys
        self._progress = progress
        self._parent = parent
        self._host = reader.host()
        self.pools = {name: room.pool for name, room in facts.rooms.items()}
        self.limits = Limits(self._host, self.pools.values(), progress, settings.timeouts.ready)
        self.readiness: dict[str, Readiness] = {}
        self._started: set[str] = set()
        self._checked: dict[str, Instance] = {}
        """Stopped clones as they were found fit to be started, until they are."""
        self._booted: dict[str, Instance] = {}
        """New clones that this run has started, as they were just before."""
        self.unconfirmed: set[str] = set() if unconfirmed is None else unconfirmed

    # What only some steps need is imported with its module: mostly a stage is as it should be.

    @cached_property
    def _foundations(self) -> Foundations:
        from pytest_stagegbo.apply.foundations import Foundations

        return Foundations(self._reader, self.writer, self._facts, self._settings, self._parent)

    @cached_property
    def _copies(self) -> Copies:
        from pytest_stagegbo.apply.copying import Copies

        shared = self._reader, self.writer, self._facts, self._settings
        return Copies(*shared, self._host, self.limits, self._progress, self._parent)

    def do(self, step: steps.Step) -> None:
        """Do one step.

        Raises:
            StageGboError: it could not be done.
        """
        match step:
            case steps.SetProject():
                self._foundations.set_project(step)
            case steps.SetAcl():
                self._foundations.set_acl(step)
            case steps.SetNetwork():
                self._foundations.set_network(step)
            case steps.SetProfile():
                self._foundations.set_profile(step)
            case steps.CreatePool():
                self.writer.create_pool("btrfs", pool_config(self._settings, self._parent), objects.DESCRIPTION)
            case steps.RemoveClone():
                self.remove_clone(step)
            case steps.AwaitRoom():
                self.await_room(step)
            case steps.CopyClone():
                self._copies.copy(step, managed=self._foundations.managed)
                if step.unconfirmed:
                    self.unconfirmed.add(step.subject)
                if step.at_rest:
                    self._finish_at_rest(step)
            case steps.RefreshClone():
                self._copies.refresh(step, managed=self._foundations.managed)
            case steps.PrepareClone():
                self.prepare_clone(step)
            case steps.ResizeClone():
                self.resize_clone(step)
            case steps.AdoptClone():
                self.writer.set_instance_config(step.subject, marks.of_instance(self._clone(step.subject)))
            case steps.AttachClone():
                self.attach_clone(step)
            case steps.StartClone():
                self.start_clone(step)
            case steps.AwaitClone():
                self.await_clone(step)
            case steps.CheckSecrets():
                from pytest_stagegbo.apply import secrets

                assert self._replacements is not None
                for text in secrets.replace_secrets(
                    self._reader, self.writer, self._settings, step, self._replacements
                ):
                    self._progress.note(text)
            case steps.RunHooks():
                from pytest_stagegbo.apply import hooks

                snapshot = step.container.may_restore and not self._parent
                hooks.run_hooks(self._reader, self.writer, self._settings, step, snapshot=snapshot)
            case steps.RemoveProject():
                from pytest_stagegbo.plan import destroy

                destroy.refuse_foreign(self._reader, self._settings)  # somebody may have come between
                self.writer.delete_project()
            case steps.RemoveForward():
                self.writer.delete_forward(step.subject)
            case steps.RemoveNetwork():
                self._foundations.remove_network(step.subject)
            case steps.RemoveAcl():
                self.writer.delete_acl(step.subject)
            case _:
                raise TypeError(f"no way to do {type(step).__name__}")

    # -- clones

    def remove_clone(self, step: steps.RemoveClone) -> None:
        remove_clone(self._reader, self.writer, self._settings, step.subject)

    def _finish_at_rest(self, step: steps.CopyClone) -> None:
        """Mark a copy of a golden clone as whole. Until then the next run copies it again."""
        golden = self._facts.sources[step.container.source_name]
        known = {marks.STATE: marks.PREPARED, marks.GENERATION: golden.config.get(marks.GENERATION, "")}
        self.writer.set_instance_config(step.subject, {**marks.of_instance(self._clone(step.subject)), **known})

    def await_room(self, step: steps.AwaitRoom) -> None:
        from pytest_stagegbo.apply.room import await_room

        missing = await_room(self._reader, self._host, self._settings, step.subject, step.cost, removed=True)
        if missing is not None:
            missing.remedy += "; the old clones are gone, and `stagegbo provision` makes them again"
            raise missing

    def prepare_clone(self, step: steps.PrepareClone) -> None:
        """Check the stopped clone's configuration, place its file, and only then let it be started."""
        name = step.subject
        clone = self._clone(name)
        self._refuse_unsafe(clone)
        if clone.is_running:
            raise UnsafeClone(
                f"{name} in {self._settings.project} is running although it was not made safe",
                remedy="somebody else started it, or this is a bug: run `stagegbo provision` again",
            )
        if not self._facts.golden:  # where the golden clone's files are in it
            file = boot_file(step.container, self._settings)
            folder = boot_folder_of(clone.config)
            assert folder  # as the copy was made with
            path = f"{folder}/{file.name}"
            self.writer.place_at_first_start(name, path, file.content, mode=file.mode)
        if not step.container.hooks:  # they come before that
            if step.container.may_restore and not self._parent:  # slots go back to their golden copy
                self.writer.snapshot_instance(name, marks.SNAPSHOT)  # it is new, so it has none
            self._checked[name] = clone
            self.unconfirmed.add(name)

    def _refuse_unsafe(self, clone: Instance) -> None:
        problems = violations(clone, self._settings)
        if problems:
            raise UnsafeClone(
                f"{clone.name} in {self._settings.project} must not be started",
                seen=", ".join(problems),
                remedy="if production's configuration is being changed at this moment, run `stagegbo provision` "
                "again; otherwise please report what was seen",
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

    @property
    def burdens_production(self) -> bool:
        """Whether a clone that is deleted makes production wait."""
        return any(burdens(pool, self._host.quotas(pool), self._settings) for pool in self.pools.values())

    def copy_in_place(self, planned: Iterable[steps.Step]) -> bool:
        """Make a slot's clone what its golden clone is, without deleting its volume; whether that was done. Where it
        was not, or failed, the clone has to be copied again."""
        copy = next((step for step in planned if isinstance(step, steps.CopyClone)), None)
        if copy is None or not self.burdens_production:
            return False
        clone = self._facts.clones.get(copy.subject)
        golden = self._facts.sources.get(copy.container.source_name)
        generation = golden.config.get(marks.GENERATION) if golden is not None else ""
        if clone is None or golden is None or not generation or clone.config.get(marks.GENERATION) != generation:
            return False
        from pytest_stagegbo.apply.in_place import note_changes

        if not note_changes(self.writer, clone, golden):
            return False
        refresh = steps.RefreshClone(subject=copy.subject, copy=copy, reason="reset")
        try:
            self._copies.refresh(refresh, managed=self._foundations.managed)
        except (OperationFailed, ServerRefused, NoRoom) as error:
            log.debug("%s: copied again, since its files could not be brought back: %s", copy.subject, error)
            return False
        if copy.unconfirmed:
            self.unconfirmed.add(copy.subject)
        return True

    def attach_clone(self, step: steps.AttachClone) -> None:
        from pytest_stagegbo.apply.attach import attach

        def attempt() -> None:
            attach(self.writer, self._clone(step.subject), step, self._settings, managed=self._foundations.managed)

        patiently(attempt, self._settings.timeouts.operation)

    def start_clone(self, step: steps.StartClone) -> None:
        self.limits.see()

        def start() -> None:
            clone = self._checked.pop(step.subject, None) or self._clone(step.subject)
            if clone.config.get(marks.STATE) != marks.PREPARED and clone.name not in self.unconfirmed:
                raise UnsafeClone(
                    f"{step.subject} was not made safe",
                    seen=f"state {clone.config.get(marks.STATE)}",
                    remedy="run `stagegbo provision` again",
                )
            if clone.config.get(marks.PROVEN) != "true":
                self._refuse_unsafe(clone)
                if make_safe(self._reader, self.writer, self._settings, self._settings.containers[step.subject]):
                    clone = self._clone(step.subject)
                self._booted[step.subject] = clone
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
        if (step.prove or step.container.held) and holds_services(step.container):  # what it needs answers now
            clone = self._booted.get(step.subject) or self._clone(step.subject)
            word = release(boot_folder_of(clone.config), own_identity(clone))
            self.writer.put_file(step.subject, word, b"\n", mode=0o644)
        try:
            try:
                self._await(step)
            except NotReady:
                if not self._was_being_stopped(step):
                    raise
                self.start_clone(steps.StartClone(subject=step.subject))
                self._await(step)
        except NotReady as error:
            if step.prove:
                self._stop_unproven(step.subject, error)
                self._keep_for_the_next_run(step)
            raise
        if step.prove:
            marked = {marks.STATE: marks.PREPARED} if step.subject in self.unconfirmed else {}
            clone = self._clone(step.subject)
            known = {**marks.of_instance(clone), marks.BOOTED: clone.last_used_at}
            self.writer.set_instance_config(step.subject, {**marked, **known, marks.PROVEN: "true"})
            self.unconfirmed.discard(step.subject)

    def _await(self, step: steps.AwaitClone) -> None:
        self.readiness[step.subject] = await_clone(
            self._reader,
            self.writer,
            self._settings,
            step.container,
            self._keys,
            first_boot=step.prove,
            booted=self._booted.get(step.subject),
            running=step.subject not in self._started and step.crashes is None,
            crashes=step.crashes,
        )

    def _was_being_stopped(self, step: steps.AwaitClone) -> bool:
        """Whether the clone has stopped since its plan was made, which took it for one that runs: as a run that was
        killed had asked for."""
        if step.subject in self._started or interrupted():
            return False
        let_end(self._reader, self._settings, step.subject)
        clone = self._reader.instance(self._settings.project, step.subject)
        return clone is not None and clone.status == "Stopped"

    def _keep_for_the_next_run(self, step: steps.AwaitClone) -> None:
        """Mark a clone that was made safe, and whose services did not answer: the next run waits for them again. One
        that was copied from a golden clone is copied again."""
        if step.subject in self.unconfirmed and not self._facts.golden and not interrupted():
            self.writer.set_instance_config(step.subject, {marks.STATE: marks.PREPARED})
            self.unconfirmed.discard(step.subject)

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
            raise StageMissing(
                f"{name} vanished from {self._settings.project}", remedy="run `stagegbo provision` again"
            )
        return clone
