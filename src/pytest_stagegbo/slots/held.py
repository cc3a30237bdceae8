"""What slots are copied from, kept as it is while anything is copied from it."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pytest_stagegbo.apply.scheduler import apply
from pytest_stagegbo.locks import STAGE
from pytest_stagegbo.plan.objections import refuse_foreign

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.plan.steps import Step
    from pytest_stagegbo.progress import Progress

__all__ = ["HeldCopy"]


class HeldCopy(ABC):
    """Clones that are stopped, and that the clones of slots are copied from."""

    def __init__(self, engine: StageEngine, progress: Progress) -> None:
        self.engine = engine
        self.settings = engine.settings
        self._progress = progress
        self._turn = threading.Lock()
        self._holders = 0
        self._held = contextlib.ExitStack()

    @property
    def project(self) -> str:
        return self.settings.project

    @property
    def is_held(self) -> bool:
        """Whether a thread of this process holds it, so that it is fit."""
        return self._holders > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make sure that it can be copied, and keep it so while the block runs. It is checked once for all threads.

        Raises:
            StageGboError: it could not be made; what was done until then stays and the next run goes on from it.
        """
        with self._turn:
            if not self._holders:
                self._held.enter_context(self._hold())
            self._holders += 1
        try:
            yield
        finally:
            with self._turn:
                self._holders -= 1
                if not self._holders:
                    self._held.close()

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        lock = self.engine.lock()
        while True:
            with lock.hold("copying from the golden copy", self._waiting, shared=(STAGE,), exclusive=()):
                if self.is_fit():
                    yield
                    return
            self.make()

    @abstractmethod
    def is_fit(self) -> bool:
        """Whether all of it can be copied, and is as the settings want it."""

    @abstractmethod
    def make(self) -> object:
        """Make what is missing or stale. Raises `StageGboError`."""

    @abstractmethod
    def foundations(self, facts: Facts) -> list[Step]:
        """Return the steps that bring project, bridge and access list to what the settings say, and touch no clone."""

    def left(self) -> list[Step]:
        """Return the steps that `put_back` would do now.

        Raises:
            NotOurs: something that this tool did not make is in the way.
        """
        return self.foundations(self._facts()) if self.is_fit() else []

    def put_back(self) -> None:
        """Bring project, bridge and access list to what the settings say if the clones are fit. Otherwise `make` does.

        Raises:
            StageGboError: it could not be done.
        """
        if not self.left():
            return
        with self.engine.lock().hold("mending the golden copy", self._waiting):
            if self.is_fit():
                facts = self._facts()
                apply(self.foundations(facts), self.engine.new_runner(facts, None).do, self._progress)

    def _facts(self) -> Facts:
        facts = self.engine.facts()
        refuse_foreign(facts, self.settings)
        return facts

    def _waiting(self, holder: str) -> None:
        self._progress.note(f"waiting for the golden copy {self.project}: {holder}")
