"""Capsules opened as stages of their own: copies of the clones that have their parts, with these put back.

An opened capsule is provisioned as any stage is, from the stage instead of production, so it is as isolated. Its clones
boot, and their services wait. The project's mark says which capsule it is from its beginning, each clone's mark that
it is as the capsule has it: what a killed run left is finished by the next one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo.apply.await_clone import await_clone
from pytest_stagegbo.apply.scheduler import apply
from pytest_stagegbo.desired import marks
from pytest_stagegbo.engine.leasing import ENDING
from pytest_stagegbo.engine.removal import remove_rest
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import CapsuleMissing, CommandFailed, MissingRequirement
from pytest_stagegbo.facts import inventory
from pytest_stagegbo.facts.host_path import refuse_dropped
from pytest_stagegbo.guest.capsules import put_back_script
from pytest_stagegbo.plan.steps import AwaitClone, SetProject, Step
from pytest_stagegbo.progress import Silent, task
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.settings.opened import MOST_OPENED, opened_number, opened_project, opened_settings
from pytest_stagegbo.workers import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.plan.capsules import Capsule
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Settings

__all__ = ["Opening", "forget_leases", "opened", "opened_engines"]


def opened(reader: Reader, settings: Settings) -> dict[int, str]:
    """By the number of each opened capsule of a stage, the capsule's identifier; empty: it was never marked."""
    found = {}
    for name, project in reader.projects().items():
        number = opened_number(settings.project, name)
        if number is not None and marks.is_ours(project.config):
            found[number] = project.config.get(marks.OPENED, "")
    return dict(sorted(found.items()))


def opened_engines(settings: Settings, connection: Connection, reader: Reader) -> list[StageEngine]:
    """The engines of all opened capsules of a stage, also of those that a killed run has left something of."""
    opening = Opening(settings, connection, Silent())
    return [opening.engine(number) for number in sorted({*opened(reader, settings), *_rests(reader, settings)})]


def _rests(reader: Reader, settings: Settings) -> set[int]:
    """The numbers of the opened capsules of a stage that have a bridge, an access list or leases."""
    configs = [each.config for each in reader.networks().values()]
    configs += [each.get("config") or {} for each in reader.acls().values()]
    projects = [config.get(marks.PROJECT, "") for config in configs if marks.is_ours(config)]
    projects += [
        name.removesuffix(f"-{ENDING}") for name, each in reader.projects().items() if marks.is_ours(each.config)
    ]
    return {number for each in projects if (number := opened_number(settings.project, each)) is not None}


def forget_leases(engine: StageEngine) -> None:
    """Remove the project of the leases of an opened capsule, which is gone."""
    if engine.settings.timeouts.lease:
        engine.lease_store().remove_project()


class Opening:
    """Opens capsules of one stage, and closes them.

    Args:
        settings: Of the stage, which is slot 0.
    """

    def __init__(self, settings: Settings, connection: Connection, progress: Progress) -> None:
        self._settings = settings
        self._connection = connection
        self._progress = progress

    def engine(self, number: int) -> StageEngine:
        """The engine of an opened capsule."""
        return StageEngine(opened_settings(self._settings, number), self._connection, progress=self._progress)

    def open(self, stage: StageEngine, capsule: Capsule, purpose: str = "") -> StageEngine:
        """Open a capsule, unless it is open; the engine of what it is opened as.

        Args:
            stage: The stage or slot that the capsule is of.
            capsule: Has all of its parts.
            purpose: Opens it once more, beside the one for people. It is behind the identifier in the marks.

        Raises:
            MissingRequirement: too many capsules are open.
            CapsuleMissing: it was deleted meanwhile.
            StageGboError: it could not be done; the next try goes on from there.
        """
        while True:
            word = capsule.key + purpose
            number = self._number(stage.reader, word)
            engine = self._filling(number, stage, capsule)
            with engine.lock().hold(f"open capsule {capsule.key}", engine.waiting):
                if opened(stage.reader, self._settings).get(number, "") in {"", word}:
                    self._fill(engine, self.engine(number), capsule, word)
                    return self.engine(number)

    def close(self, reader: Reader, word: str) -> bool:
        """Remove the stage that a capsule is open as; whether there was one.

        Args:
            word: The capsule's identifier, with the purpose behind it.
        """
        return self._close(reader, lambda each: each == word)

    def close_all(self, reader: Reader, key: str) -> bool:
        """Remove every stage that a capsule is open as, for whatever purpose, and what killed runs have left of stages
        like it; whether there was one."""
        found = self._close(reader, lambda each: _key_in(each) == key)
        self._close_rests(reader)
        return found

    def close_left(self, reader: Reader, known: Collection[str]) -> None:
        """Remove what killed runs have opened for a purpose of theirs, of capsules that are gone, and what they left.

        Args:
            known: The identifiers of all capsules of the stage and its slots.
        """
        self._close(reader, lambda each: each != _key_in(each) and _key_in(each) not in known)
        self._close_rests(reader)

    def _close_rests(self, reader: Reader) -> None:
        """Remove bridges, access lists and leases whose project is gone."""
        for number in sorted(_rests(reader, self._settings) - set(opened(reader, self._settings))):
            engine = self.engine(number)
            remove_rest(engine)
            forget_leases(engine)

    def _close(self, reader: Reader, wanted: Callable[[str], bool]) -> bool:
        numbers = [number for number, each in opened(reader, self._settings).items() if wanted(each)]
        for number in numbers:
            engine = self.engine(number)
            engine.destroy()
            forget_leases(engine)
        return bool(numbers)

    def _number(self, reader: Reader, word: str) -> int:
        there = opened(reader, self._settings)
        taken = {project for project in reader.projects() if opened_number(self._settings.project, project)}
        numbers = [number for number, each in there.items() if each == word]
        numbers += [
            number
            for number in range(1, MOST_OPENED + 1)
            if not there.get(number)
            and (number in there or opened_project(self._settings.project, number) not in taken)
        ]
        if not numbers:
            raise MissingRequirement(
                f"{MOST_OPENED} capsules are open, and no more can be",
                seen="open: " + ", ".join(filter(None, there.values())),
                remedy=f"close one: `stagegbo --project {opened_project(self._settings.project, 1)} destroy`",
            )
        return numbers[0]

    def _filling(self, number: int, stage: StageEngine, capsule: Capsule) -> StageEngine:
        """The engine that copies an opened capsule's clones from the stage, or from what was kept of it."""
        settings = opened_settings(self._settings, number)
        containers = {
            name: replace(each, source=capsule.holders.get(name, name)) for name, each in settings.containers.items()
        }
        settings = replace(settings, source_project=stage.settings.project, containers=MappingProxyType(containers))
        return StageEngine(settings, self._connection, progress=self._progress)

    def _fill(self, engine: StageEngine, later: StageEngine, capsule: Capsule, word: str) -> None:
        """Make what is missing.

        Args:
            later: The engine of those who use it, whose production is the real one.
        """
        facts = engine.facts()
        plan = engine.provisioning.plan_for(facts)
        if plan.changes:
            refuse_dropped(engine.reader, engine.settings)
            before = inventory.take(later.reader, later.settings, later.facts())
        runner = engine.new_runner(facts, None)
        engine.keep_runner(runner)
        if engine.settings.project in facts.projects:
            self._mark(engine, word)

        def do(step: Step) -> None:
            runner.do(step)
            if isinstance(step, SetProject):
                self._mark(engine, word)

        apply([step for step in plan.steps if not isinstance(step, AwaitClone)], do, engine.progress)
        runner.limits.see()
        clones = engine.reader.instances(engine.settings.project)
        left = [name for name in engine.settings.containers if clones[name].config.get(marks.OPENED) != word]
        at_once(lambda name: self._fill_clone(engine, capsule, word, name), left, "stagegbo capsule")
        if plan.changes:
            after = inventory.take(later.reader, later.settings, later.facts())
            project = engine.reader.projects()[engine.settings.project]
            config = {**project.config, inventory.MARK: inventory.text(before, after)}
            engine.clone_writer().replace_project(config, project.description)

    def _mark(self, engine: StageEngine, word: str) -> None:
        project = engine.reader.projects()[engine.settings.project]
        if project.config.get(marks.OPENED) != word:
            engine.clone_writer().replace_project({**project.config, marks.OPENED: word}, project.description)

    def _fill_clone(self, engine: StageEngine, capsule: Capsule, word: str, name: str) -> None:
        """Wait for a clone's first boot, and put back what the capsule has of it."""
        settings, writer = engine.settings, engine.clone_writer()
        container = settings.containers[name]
        with task(engine.progress, f"fill:{name}", f"{name}: as capsule {capsule.key} has it"):
            # Its services wait, so no probe is answered.
            silent = replace(container, probes=())
            await_clone(engine.reader, writer, settings, silent, None, first_boot=True)
            if name in capsule.about.containers:
                script = put_back_script(container, capsule.key)
                result = writer.execute(name, ["sh", "-c", script])
                if result.status:
                    raise _not_put_back(capsule, name, mask((result.stdout + result.stderr).strip()[-500:]))
            clone = engine.reader.instance(settings.project, name)
            assert clone is not None  # it has just run a command
            known = {**marks.of_instance(clone), marks.BOOTED: clone.last_used_at, marks.PROVEN: "true"}
            writer.set_instance_config(name, {marks.STATE: marks.PREPARED, **known, marks.OPENED: word})
            engine.unconfirmed.discard(name)


def _key_in(word: str) -> str:
    """The identifier of the capsule that a mark names, without a purpose."""
    return word.partition("-")[0]


def _not_put_back(capsule: Capsule, name: str, seen: str) -> CapsuleMissing | CommandFailed:
    if "nothing is kept in" in seen:
        return CapsuleMissing(f"capsule {capsule.key} has no part of {name} any more", seen=seen)
    return CommandFailed(f"{name} can't be made what capsule {capsule.key} has", seen=seen, remedy="open it again")
