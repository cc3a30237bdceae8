"""What resets and deployments have done to one clone: start, go on, go back to what it was copied from, wait."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_stagegbo.apply.scheduler import apply
from pytest_stagegbo.apply.snapshots import restore
from pytest_stagegbo.desired import marks
from pytest_stagegbo.engine import reset
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.facts.bridge import refuse_fault
from pytest_stagegbo.plan.secrets import plan_secrets
from pytest_stagegbo.plan.steps import AwaitClone, AwaitRoom, CopyClone, PrepareClone, RemoveClone, StartClone, Step

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["CloneActions"]


class CloneActions:
    """Acts on the clones of one stage, with the reader and the step runner of its engine. The caller holds their
    locks."""

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine

    def start(self, container: ContainerSettings) -> None:
        """Start a clone that does not run."""
        engine = self._engine
        name = container.name
        if name not in engine.unconfirmed:
            clone = reset.our_clone(engine.reader.instance(engine.settings.project, name), engine.settings, name)
            refuse_fault(engine.reader, engine.settings, clone)
            if clone.is_running:
                return
        engine.runner().do(StartClone(subject=name))

    def thaw(self, container: ContainerSettings) -> None:
        """Let a clone go on that somebody has paused."""
        engine = self._engine
        clone = engine.reader.instance(engine.settings.project, container.name)
        if clone is not None and clone.status == "Frozen" and marks.is_ours(clone.config):
            engine.progress.note(f"{container.name} was paused and goes on, since it is to be reset")
            engine.clone_writer().set_state(container.name, "unfreeze")

    def restore(self, container: ContainerSettings) -> None:
        """Bring a clone back to what it was copied from. It is stopped then, and its first boot comes next."""
        engine = self._engine
        clones = engine.reader.instances(engine.settings.project)
        engine.deployments.save(clones, [container.name])
        from pytest_stagegbo.engine.capsules import Capsules  # only few commands restore anything

        Capsules(engine).preserve(clones, [container.name])
        engine.baselines.note_lost([container.name])
        if engine.parent:
            self._copy_again(container)
        else:
            runner = engine.runner()
            restore(engine.reader, runner.writer, engine.settings, container.name, sparing=runner.burdens_production)
            runner.limit_restored(container.name)

    def _copy_again(self, container: ContainerSettings) -> None:
        """A slot's clone from the golden one; what comes next is its first boot."""
        engine = self._engine
        assert engine.clone_source is not None  # slots are reset by engines that know their golden copy
        with engine.clone_source.held():
            facts = engine.facts()
            plan = engine.provisioning.plan_for(facts, to_replace=[container.name])
            own = [step for step in plan.steps if step.subject == container.name or isinstance(step, AwaitRoom)]
            runner = engine.new_runner(facts, None)
            made: tuple[type[Step], ...] = (RemoveClone, AwaitRoom, CopyClone, PrepareClone)
            wanted = (PrepareClone,) if runner.copy_in_place(own) else made
            steps = [step for step in own if isinstance(step, wanted)]
            apply(steps, runner.do, engine.progress)

    def await_ready(self, container: ContainerSettings, first_boot: bool) -> None:
        """Wait until the services of a clone answer, and prove its first boot."""
        engine = self._engine
        runner = engine.runner()
        crashes = engine.deployments.crashes
        runner.do(AwaitClone(subject=container.name, container=container, crashes=crashes, prove=first_boot))
        if first_boot:
            self.prepare_resets([container.name])
        if first_boot and container == marks.vault_container(engine.settings):
            secrets = plan_secrets(engine.facts(), engine.settings, new_vault=True)
            if secrets is not None:  # the snapshot has production's
                runner.do(secrets)

    def prepare_resets(self, names: Collection[str]) -> None:
        """Begin with what the first resets of these clones' databases need. Nobody waits for it, or misses it.

        Their servers have just been started on what is clean.
        """
        engine = self._engine
        if engine.settings.project == f"{engine.parent}-GOLDEN":
            return  # it is stopped now, and never reset
        for name, container in engine.settings.containers.items():
            if name in names and container.data and container.reset == "hot":
                from pytest_stagegbo.resets.database import prepare_database

                with suppress(StageGboError):
                    prepare_database(engine.clone_writer(), container)
