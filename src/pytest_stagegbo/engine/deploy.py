"""Builds of the people who test, in place of production's files: put in, taken out, and never left half done.

A deployment begins on production's data and ends with a clean state that has the build's migrations. Until its mark
says `done`, whatever happens to this process is answered by what ran before: by this process itself if the build does
not come up, else by the next one that wants the container (`recover`). A clone that is replaced, or restored, gets its
build again (`save`, `bring_back`).
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo.apply.scheduler import apply
from pytest_stagegbo.desired import marks
from pytest_stagegbo.engine import local_files
from pytest_stagegbo.engine.build_runner import BuildRunner, Ways
from pytest_stagegbo.engine.saved_builds import SavedBuilds
from pytest_stagegbo.errors import BuildFailed, NotReady, StageGboError, StageMissing
from pytest_stagegbo.guest import builds as guest
from pytest_stagegbo.locks import STAGE, FileLock
from pytest_stagegbo.plan.builds import (
    Artefact,
    Build,
    BuildStep,
    Local,
    build_of,
    build_of_text,
    builds_of,
    plan_deployment,
    plan_undo,
)
from pytest_stagegbo.progress import task

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.guest.builds import Inspection
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.plan.steps import Step

__all__ = ["Deployments", "Ways"]

log = logging.getLogger("stagegbo.deploy")

CRASHES = 3
"""How often systemd may start a unit of a new build again. One that ends as often does not come up."""


class Deployments:
    """Deploys builds to the clones of one stage, with the locks, the reader and the writer of its engine."""

    def __init__(self, engine: StageEngine, ways: Ways) -> None:
        self._engine = engine
        self._ways = ways
        self._recovered = False
        self.crashes: int | None = None
        """How often systemd may start a unit again that is waited for; None: as often as it likes."""

    def builds(self) -> dict[str, Build]:
        """What runs, or is being put in, instead of production's files, by container."""
        engine = self._engine
        return builds_of(engine.reader.instances(engine.settings.project), engine.settings.containers)

    # -- changes

    def plan(self, name: str, files: Mapping[str, Path]) -> tuple[BuildStep, ...]:
        """What `deploy` would do now. It looks inside the container, and changes nothing."""
        runner = self._inside(name)
        return self._plan(runner, local_files.wanted(runner.container, files))[0]

    def deploy(self, name: str, files: Mapping[str, Path]) -> tuple[BuildStep, ...]:
        """Put files of this host into a running clone, and have its services run them.

        Args:
            files: By artefact, which is a name of `containers.NAME.deploy` or a path in the container.

        Returns:
            What was done; nothing when the container has these very files.

        Raises:
            BuildFailed: the build did not come up. What ran before runs again.
            NoRoom: there is too little room; nothing was changed.
            StageGboError: anything else in its tree.
        """
        runner = self._inside(name)
        wanted = local_files.wanted(runner.container, files)
        names, lock = runner.names, self._engine.lock()
        doing = f"deploy {', '.join(local.name for local in wanted)} to {name}"
        lock.acquire(doing, self._engine.waiting, shared=(STAGE, *names), exclusive=(), keep_note=True)
        try:
            build = build_of(self._engine.clone(name))
            if (build is None or not build.unfinished) and not self._plan(runner, wanted)[0]:
                return ()
        finally:
            lock.release()
        with lock.hold(doing, self._engine.waiting, shared=(STAGE,), exclusive=names), lock.changing(names):
            self.recover(names)
            steps, inspection, build = self._plan(runner, wanted)
            if steps:
                self._carry_out(runner, steps, inspection, build)
            return steps

    def plan_undo(self, name: str) -> tuple[BuildStep, ...]:
        """What `undo` would do now."""
        runner = self._inside(name)
        return plan_undo(runner.container, runner.database, build_of(self._engine.clone(name)))

    def undo(self, name: str) -> tuple[BuildStep, ...]:
        """Bring production's files, and its data, back to a clone.

        Returns:
            What was done; nothing when it runs nothing else.
        """
        runner = self._inside(name)
        names, lock = runner.names, self._engine.lock()
        with lock.hold(f"undo the deployment to {name}", self._engine.waiting, shared=(STAGE,), exclusive=names):
            if not self.plan_undo(name):
                return ()
            with lock.changing(names):
                self.recover(names)
                build = build_of(self._engine.clone(name))
                steps = self.plan_undo(name)
                if build is not None:
                    self._note()
                    runner.mark(structs.replace(build, state="undoing"))
                    self._finish_undo(runner, build, steps)
                return steps

    # -- what others have left half done

    def recover(self, names: Collection[str], *, seen: bool = False) -> None:
        """Finish what a killed run has left half done in these containers. The caller holds the lock of one of them.

        Nobody else can be using the others: whoever wants a container that a killed run was changing comes here first.

        Args:
            seen: It is known that there is something to finish.
        """
        noted = self._noted
        if self._recovered and not seen and not noted.exists():
            return
        self._recovered = True
        found = self.builds()
        left = [
            name for name, build in found.items() if build.unfinished and {name, build.database}.intersection(names)
        ]
        for name in left:
            self._engine.lock().make_folder()
            with FileLock(noted.with_suffix(".flock")):
                build = build_of(self._engine.clone(name))
                if build is not None and build.unfinished:
                    self._recover(self._inside(name), build)
        if not any(build.unfinished for name, build in found.items() if name not in left):
            noted.unlink(missing_ok=True)

    def _recover(self, runner: BuildRunner, build: Build) -> None:
        container = runner.container
        if build.state == "damaged":
            raise StageMissing(
                f"what is known of the build in {container.name} was damaged, so it is not known what it runs",
                seen=f"its key {marks.BUILD}",
                remedy="run `stagegbo provision`, which copies it again",
            )
        self._engine.progress.note(f"{container.name}: a deployment was interrupted, so what ran before it comes back")
        for each in (runner.database, container):
            if each is not None:
                self._ways.start(each)
        if build.state == "undoing":
            self._finish_undo(runner, build, plan_undo(container, runner.database, build))
        else:
            self._roll_back(runner, build)

    # -- clones that are replaced

    @functools.cached_property
    def _saved(self) -> SavedBuilds:
        return SavedBuilds(self._engine.lock().folder.name)

    @property
    def has_saved(self) -> bool:
        """Whether `bring_back` has something to do."""
        return self._saved.exist

    def save(self, clones: Mapping[str, Instance], leaving: Collection[str]) -> None:
        """Keep the builds of clones that are about to be replaced, or whose database is."""
        if not leaving:
            return
        engine, saved = self._engine, self._saved
        kept: dict[str, str] = {}
        for name, build in builds_of(clones, engine.settings.containers).items():
            if build.unfinished or not {name, build.database}.intersection(leaving):
                continue
            missing = [each for each in build.artefacts if not saved.has(each)]
            with task(engine.progress, f"save:{name}", f"{name}: keep its build for the new clone"):
                for each in missing:
                    saved.fetch(engine.reader, clones[name], each)
            kept[name] = build.to_text()
        if kept:
            saved.add(kept)

    def bring_back(self) -> None:
        """Give new clones the builds that `save` has kept. The caller holds the locks of what was replaced.

        Raises:
            BuildFailed: a build did not come up; it is tried again by the next run.
        """
        if not self.has_saved:
            return
        saved = self._saved
        for name, text in saved.read().items():
            build = build_of_text(text)
            if name in self._engine.settings.containers and not build.unfinished:
                runner = self._inside(name)
                wanted = [
                    Local(each.name, each.path, saved.file(each.sha256), each.size, each.sha256)
                    for each in build.artefacts
                ]
                inspection = runner.inspect([local.path for local in wanted])
                # All of them again, also if it is the database alone that was replaced, and has to be migrated again.
                database = None if runner.has_kept() else runner.database
                steps = plan_deployment(runner.container, database, inspection, None, wanted)
                present = build_of(self._engine.clone(name))
                self._carry_out(runner, steps, inspection, present, known=build.artefacts)
            saved.remove(name)

    # -- a deployment

    def _plan(
        self, runner: BuildRunner, wanted: Sequence[Local]
    ) -> tuple[tuple[BuildStep, ...], Inspection, Build | None]:
        inspection = runner.inspect([local.path for local in wanted])
        build = build_of(self._engine.clone(runner.container.name))
        before = None if build is None or build.unfinished else build
        steps = plan_deployment(runner.container, runner.database, inspection, before, wanted)
        if steps:
            runner.refuse_database()
        return steps, inspection, before

    def _carry_out(
        self,
        runner: BuildRunner,
        steps: Sequence[BuildStep],
        inspection: Inspection,
        before: Build | None,
        known: Sequence[Artefact] = (),
    ) -> None:
        """Do the steps, or bring back what ran before.

        Args:
            known: What is said of artefacts that were deployed to another clone before.
        """
        changed = [step.local for step in steps if step.local is not None]
        runner.refuse_room(changed)
        files = {found.path: found for found in inspection.files}
        reals = tuple(files[local.path].real for local in changed)
        said = {each.path: each for each in known}
        artefacts = [
            structs.replace(said[local.path], real=files[local.path].real)
            if local.path in said
            else local_files.artefact(local, files[local.path].real)
            for local in changed
        ]
        kept = before.artefacts if before is not None else ()
        build = Build(
            artefacts=(*(each for each in kept if each.real not in reals), *artefacts),
            state="deploying",
            changed=reals,
            before=kept,
            database=runner.database.name if runner.database is not None else "",
        )
        runner.clear(reals)
        self._note()
        runner.mark(build)
        stopped = False

        def do(step: Step) -> None:
            nonlocal stopped
            assert isinstance(step, BuildStep)
            stopped = stopped or step.action != "receive"
            self._do(runner, step, build, inspection)

        try:
            self.crashes = CRASHES
            try:
                apply(steps, do, self._engine.progress)
            finally:
                self.crashes = None
        except StageGboError as error:
            self._give_up(runner, build, error, stopped=stopped)
        runner.mark(structs.replace(build, state="done", changed=(), before=(), artefacts=runner.stated(build)))
        runner.clear(reals)
        self._noted.unlink(missing_ok=True)

    def _do(self, runner: BuildRunner, step: BuildStep, build: Build, inspection: Inspection) -> None:
        files = {found.path: found for found in inspection.files}
        match step.action:
            case "receive":
                assert step.local is not None
                runner.receive(step.local, files[step.local.path].real)
            case "stop":
                paths = [found.path for found in inspection.files if found.real in build.changed]
                runner.stop(inspection.units_of(paths))
            case "rewind":
                runner.rewind()
            case "swap":
                runner.run(guest.swap_script(build.changed))
            case "first-start":
                runner.start()
                self._ways.wait(runner.container, False)
            case "keep":
                runner.stop(runner.container.units)
                runner.keep()
            case "start":
                runner.clean_start()

    def _give_up(self, runner: BuildRunner, build: Build, error: StageGboError, *, stopped: bool) -> None:
        """Bring back what ran before a deployment that failed. Always raises."""
        name = runner.container.name
        names = ", ".join(each.name for each in build.artefacts if each.real in build.changed)
        log.info("%s: %s failed: %s", name, names, error.message)
        with task(self._engine.progress, f"back:{name}", f"{name}: bring back what ran before"):
            if stopped:
                try:
                    self._roll_back(runner, build)
                except StageGboError as worse:
                    raise BuildFailed(
                        f"{names} did not come up in {name}, and what ran before does not come back: {worse.message}",
                        seen=f"of the build: {error.seen or error.message}\nof what ran before: {worse.seen}",
                        remedy="run `stagegbo provision`, which tries again; then `stagegbo provision --recreate`",
                    ) from None
            else:
                runner.run(guest.discard_script(build.changed, ("new",)))
                self._end(runner, build.before)
        if not isinstance(error, NotReady):
            raise error
        raise BuildFailed(
            f"{names} did not come up in {name}, so what ran before runs again: {error.message}",
            seen=error.seen,
            remedy="read the build's own last lines above",
        ) from None

    def _roll_back(self, runner: BuildRunner, build: Build) -> None:
        """Files, clean state and data as they were before. May be repeated, and ends what was begun before."""
        runner.stop(runner.container.units)
        runner.run(guest.put_back_script(build.changed, "before"))
        if runner.database is not None:
            runner.drop(to="before" if build.before else "production")
            runner.rewind(production=False)
        runner.clean_start()
        # Once nothing of the build runs.
        known = {each.real for each in build.before}
        runner.run(guest.discard_script([real for real in build.changed if real not in known], ("production",)))
        self._end(runner, build.before)

    def _finish_undo(self, runner: BuildRunner, build: Build, steps: Sequence[BuildStep]) -> None:
        def do(step: Step) -> None:
            assert isinstance(step, BuildStep)
            match step.action:
                case "stop":
                    runner.stop(runner.container.units)
                case "production":
                    runner.run(guest.put_back_script([each.real for each in build.artefacts], "production"))
                case "rewind":
                    runner.drop(to="production")
                    runner.rewind()
                case "start":
                    runner.clean_start()

        apply(steps, do, self._engine.progress)
        self._end(runner, ())

    def _end(self, runner: BuildRunner, artefacts: tuple[Artefact, ...]) -> None:
        """Mark the clone as running these files, or production's."""
        database = runner.database.name if runner.database is not None else ""
        runner.mark(Build(artefacts, database=database) if artefacts else None)
        self._noted.unlink(missing_ok=True)

    def _inside(self, name: str) -> BuildRunner:
        clone = self._engine.clone(name)
        if not clone.is_running:
            raise StageMissing(f"{name} is {clone.status.lower()}", remedy="run `stagegbo provision`")
        return BuildRunner(self._engine, self._ways, self._engine.settings.containers[name])

    # -- a note for other processes of this host, which ask for nothing when there is no such file

    @functools.cached_property
    def _noted(self) -> Path:
        return self._engine.lock().folder / "deploying"

    def _note(self) -> None:
        self._engine.lock().make_folder()
        self._noted.touch(mode=0o660)
