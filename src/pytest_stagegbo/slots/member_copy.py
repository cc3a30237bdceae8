"""Golden copies of further members of a cluster.

A copy to another member moves every byte. So the golden copy is copied once to each member that has a slot, and the
slots there are copied from it copy-on-write. It is never started, so it needs no bridge.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pytest_stagegbo.apply.scheduler import apply
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.facts.placement import refuse_away
from pytest_stagegbo.plan.member_copy import foundations, plan_member_copy, unfit
from pytest_stagegbo.progress import task
from pytest_stagegbo.slots.held import HeldCopy
from pytest_stagegbo.slots.layout import member_copy_settings

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.plan.steps import Step
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.slots.golden import Golden

__all__ = ["MemberCopy", "NearestCopy"]


class MemberCopy(HeldCopy):
    """The golden copy on one more member.

    Args:
        golden: What it is a copy of. Whoever makes or holds this holds that, too.
        parent: The stage's project.
        moving: Held while bytes are moved: one member gets its copy after the other, so that the disk that production
            is on stays quick.
    """

    def __init__(
        self,
        golden: Golden,
        member: str,
        connection: Connection,
        progress: Progress,
        parent: str,
        moving: threading.Lock,
    ) -> None:
        settings = member_copy_settings(golden.settings, member)
        engine = StageEngine(settings, connection, progress=progress, origin=golden, parent=parent, place=member)
        super().__init__(engine, progress)
        self._golden = golden
        self._member = member
        self._moving = moving

    def is_fit(self) -> bool:
        reader = self.engine.reader
        clones, golden = (reader.instances(project) for project in (self.project, self._golden.project))
        return bool(clones) and not unfit(clones, golden, self.settings, self._member)

    def foundations(self, facts: Facts) -> list[Step]:
        return foundations(facts, self.settings, self.engine.parent)

    def make(self) -> None:
        with self.engine.lock().hold("copying the golden copy to another member", self._waiting), self._moving:
            if self.is_fit():
                return
            refuse_away(self._golden.engine.reader, self._golden.project)
            text = f"golden copy for {self._member}: every byte of it is moved once"
            with task(self._progress, f"golden:{self._member}", text):
                facts = self.engine.facts()
                steps = plan_member_copy(facts, self.settings, self.engine.parent)
                apply(steps, self.engine.new_runner(facts, None).do, self._progress)


class NearestCopy:
    """What the clones of one slot are copied from: the golden copy of the member that the slot is on.

    Args:
        reader: The slot's, which knows that member.
    """

    def __init__(self, golden: Golden, reader: Reader) -> None:
        self._golden = golden
        self._reader = reader

    @property
    def project(self) -> str:
        """Until that member has a golden copy, the one that it will be copied from."""
        copy = self._golden.at(self._reader.member)
        return copy.project if copy is self._golden or copy.is_held or copy.is_fit() else self._golden.project

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._golden.kept():
            copy = self._golden.at(self._reader.member)
            with contextlib.nullcontext() if copy is self._golden else copy.held():
                yield
