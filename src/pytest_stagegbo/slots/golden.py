"""The golden copy: clones of production that were made safe, booted once and stopped, for slots to be copied from.

Its first boot does what each slot would have to do otherwise: databases recover from what a copy of a running
server is, a power cut, and the folders are emptied. Nothing of it runs afterwards. A clone is fit when it carries
its generation's mark and is stopped. The mark is set last, when a new clone has been stopped, so a run that was killed
leaves a fit clone or one that the next run finishes.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.versions import outdated
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import OperationFailed
from pytest_stagegbo.facts.placement import away
from pytest_stagegbo.guest.settle import settle_script
from pytest_stagegbo.plan.provision import foundations
from pytest_stagegbo.progress import task
from pytest_stagegbo.slots.held import HeldCopy
from pytest_stagegbo.slots.layout import golden_settings
from pytest_stagegbo.slots.member_copy import MemberCopy
from pytest_stagegbo.workers import at_once

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager

    from pytest_stagegbo.engine.provisioned import Provisioned
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.plan.steps import Step
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Settings

__all__ = ["Golden"]

STOP_SECONDS = 30
"""How long a service may take to end cleanly. Killed after that: then the slots recover as from a power cut."""


class Golden(HeldCopy):
    """The golden copy of one stage.

    Args:
        settings: Of the stage.
    """

    def __init__(self, settings: Settings, connection: Connection, progress: Progress) -> None:
        own = golden_settings(settings)
        super().__init__(StageEngine(own, connection, progress=progress, parent=settings.project), progress)
        self._connection = connection
        self.made: Provisioned | None = None
        """What was done when it was made last, by this object."""
        self._members: dict[str, MemberCopy] = {}
        self._finding = threading.Lock()
        self._moving = threading.Lock()

    def at(self, member: str) -> HeldCopy:
        """The golden copy on a member of the cluster: this one, or the copy of it there.

        Args:
            member: Empty: the server is no cluster.
        """
        if member in {"", self.engine.reader.member}:
            return self
        with self._finding:
            if member not in self._members:
                parent = self.engine.parent
                self._members[member] = MemberCopy(self, member, self._connection, self._progress, parent, self._moving)
            return self._members[member]

    def kept(self) -> AbstractContextManager[None]:
        """As `held`; nothing where it is away: its copies on other members are what they were."""
        return contextlib.nullcontext() if self.is_away() else self.held()

    def is_away(self) -> bool:
        """Whether its member of the cluster is offline or evacuated."""
        return away(self.engine.reader) is not None

    def is_fit(self) -> bool:
        """Whether every golden clone can be copied, and is as the settings want it."""
        clones = self.engine.reader.instances(self.project)
        for name, container in self.settings.containers.items():
            clone = clones.get(name)
            if clone is None or clone.status != "Stopped" or not marks.is_clone(clone, self.settings):
                return False
            if clone.config.get(marks.STATE) != marks.PREPARED or not clone.config.get(marks.GENERATION):
                return False
            if clone.config.get(marks.FINGERPRINT) != marks.fingerprint(container, self.settings):
                return False
        left = [name for name, clone in clones.items() if marks.is_clone(clone, self.settings)]
        return not set(left) - self.settings.containers.keys()

    def foundations(self, facts: Facts) -> list[Step]:
        (pool, *_) = {clone.pool for clone in facts.clones.values()}
        return foundations(facts, self.settings, pool, self.engine.parent)

    def make(self, *, recreate: bool = False, to_replace: Collection[str] = ()) -> Provisioned | None:
        """Copy from production what is missing, stale or named, boot it and stop it. Return None if there was nothing
        to do.

        Args:
            recreate: Copy everything again.
            to_replace: Names of containers to copy again.

        Raises:
            StageGboError: it could not be done.
        """
        if recreate:
            to_replace = tuple(self.settings.containers)
        with self.engine.lock().hold("making the golden copy", self._waiting):
            if not to_replace and self.is_fit():
                return None
            if not to_replace:
                self._refuse_to_lose()
            with task(self._progress, "golden", f"golden copy {self.project}: copy, boot once"):
                result = self.engine.provision(to_replace=to_replace, already_locked=True)
            with task(self._progress, "golden-stop", f"golden copy {self.project}: stop cleanly"):
                self._settle()
        self.made = result
        return result

    def _refuse_to_lose(self) -> None:
        """Raise `BaselineInTheWay` when clones would be replaced only since another version made them, and slots have
        baselines: their clones would follow."""
        if names := outdated(self.engine.reader.instances(self.project), self.settings):
            for slot in self.engine.siblings():
                slot.baselines.refuse_to_lose(names)

    def _settle(self) -> None:
        """Stop every clone and mark what has no generation yet."""
        writer = self.engine.clone_writer()
        clones = self.engine.reader.instances(self.project)

        def settle(name: str) -> None:
            clone = clones[name]
            if clone.status != "Stopped":
                writer.set_instance_config(name, {marks.PROVEN: ""})  # before its next boot lacks what this one had
                with contextlib.suppress(OperationFailed):  # without it, a copy overwrites what it finds
                    writer.execute(
                        name, ["sh", "-c", settle_script(self.settings.containers[name])], timeout=STOP_SECONDS
                    )
                try:
                    writer.set_state(name, "stop", seconds=STOP_SECONDS)
                except OperationFailed:
                    writer.set_state(name, "stop", force=True)
            if not clone.config.get(marks.GENERATION):
                writer.set_instance_config(name, {marks.GENERATION: secrets.token_hex(8)})

        at_once(settle, self.settings.containers, "stagegbo golden copy")
