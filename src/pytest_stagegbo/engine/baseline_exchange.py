"""Baselines that a slot gets from the slot that they were saved in: over the daemon, once, and compared file by file.

Slots don't share blocks for this: a part is a folder of one container, which nobody can copy into another one but as
root of the daemon's host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import json, structs

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import BaselineMissing, CommandFailed
from pytest_stagegbo.guest import baselines as guest
from pytest_stagegbo.plan import baselines as plan
from pytest_stagegbo.progress import task
from pytest_stagegbo.resets.database import prepare_baseline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.engine.baselines import Baselines
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plan.baselines import About, Found
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["Exchange"]

PATIENCE = 60.0
"""Seconds without any progress in a copy."""


class Exchange:
    """Brings baselines of other slots to one."""

    def __init__(self, engine: StageEngine, baselines: Baselines) -> None:
        self._engine = engine
        self._baselines = baselines
        self._confirmed: set[str] = set()
        """Keys of what was found to be still what the slot has that it is from."""

    def look(self, name: str, found: Found) -> tuple[About, StageEngine | None]:
        """The baseline of that name, and the slot that it has to be brought from; None: it is here.

        Args:
            found: What is here.

        Raises:
            BaselineMissing: there is none that may be used, here or there.
        """
        project, problem = self._engine.settings.project, None
        try:
            own = plan.usable(found, name, self._baselines.run)
        except BaselineMissing as error:
            problem = error
        else:
            if own.origin in {"", project} or own.key in self._confirmed:
                return own, None
        reasons = []
        for sibling in self._engine.siblings():
            if problem is None and sibling.settings.project != own.origin:
                continue
            try:
                about = sibling.baselines.found().whole.get(name)
            finally:
                sibling.close()
            if about is None or about.run or about.origin != sibling.settings.project:
                continue
            if problem is None and about.key == own.key:
                self._confirmed.add(own.key)
                return own, None
            if reason := self._unfit(about, sibling):
                reasons.append(f"{sibling.settings.project} has one that is of {reason}")
            else:
                return about, sibling
        if problem is None:
            problem = BaselineMissing(
                f"baseline {name} can't be used: it is not in {own.origin} any more, where it was saved",
                remedy=f"save it again: `stagegbo baseline save {name} --replace`",
            )
        problem.seen = "; ".join([problem.seen, *reasons]) if problem.seen else "; ".join(reasons)
        raise problem

    def current(self, name: str, found: Found) -> About:
        """The baseline of that name, brought here if it is not. The caller has its containers to itself. Raises as
        `look`."""
        about, sibling = self.look(name, found)
        if sibling is None:
            return about
        try:
            return self._bring(about, sibling, found)
        finally:
            sibling.close()

    def _unfit(self, about: About, sibling: StageEngine) -> str:
        """Why a baseline of another slot can't be one of this; empty: it can."""
        here, there = (each.reader.instances(each.settings.project) for each in (self._engine, sibling))
        for name in about.containers:
            generations = [
                clones[name].config.get(marks.GENERATION) if name in clones else "" for clones in (here, there)
            ]
            if not generations[0] or generations[0] != generations[1]:
                return f"another copy of production ({name})"
        build = self._baselines.build()
        return "" if about.build == build else "another build"

    def _bring(self, about: About, sibling: StageEngine, found: Found) -> About:
        engine, key = self._engine, about.key
        containers = [engine.settings.containers[name] for name in about.containers]
        clones = engine.reader.instances(engine.settings.project)
        own = structs.replace(about, clones={name: plan.clone_id(clones[name]) for name in about.containers})
        text = json.encode(own).decode()
        sizes = dict(
            zip(about.containers, sibling.resetter().on_targets(containers, lambda each: _size(each, key)), strict=True)
        )
        self._baselines.refuse_room(about.containers, sum(sizes.values()))

        def finish(target: ResetTarget) -> None:
            folders = guest.folders_of(target.container)
            target.run_checked(guest.about_script(folders, key, text))
            if target.container.data:
                prepare_baseline(target, key + guest.NEW)

        with (
            task(
                engine.progress, f"bring:{about.name}", f"bring baseline {about.name} from {sibling.settings.project}"
            ),
            self._baselines.making(containers, key),
        ):
            for container in containers:
                self._copy(container, sibling, key, sizes[container.name])
            engine.resetter().on_targets(containers, finish)
        self._baselines.drop(found.folders.get(about.name, {}))
        self._confirmed.add(key)
        return own

    def _copy(self, container: ContainerSettings, sibling: StageEngine, key: str, size: int) -> None:
        folders = guest.folders_of(container)
        pieces: Iterable[bytes] = sibling.clone_writer().output(
            container.name, guest.pack_script(folders, key), size, patience=PATIENCE
        )
        script = guest.unpack_script(folders, key, size)
        result = self._engine.clone_writer().feed(container.name, script, pieces, patience=PATIENCE)
        if result.status:
            raise CommandFailed(
                f"a baseline of {container.name} could not be brought from {sibling.settings.project}",
                seen=result.stdout.strip()[-500:],
                remedy="run it again; if it fails again, save the baseline again",
            )


def _size(target: ResetTarget, key: str) -> int:
    script = guest.pack_script(guest.folders_of(target.container), key)
    return int(target.run_checked(f"(\n{script}) | wc -c"))
