"""Holds what one pytest process has of the stage: its connection, its session, its slot and its summary.

A run is one process, or a controller of pytest-xdist with its workers. Nothing connects before it is needed.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.plugin.running import pass_on, runs_tests, said
from pytest_stagegbo.progress import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.recording import Recording
    from pytest_stagegbo.session.session import StageSession
    from pytest_stagegbo.session.summary import Summary
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.slots.assignment import SlotAssignment

__all__ = ["StageProcess"]


class StageProcess:
    """Knows which process of the run this one is, and connects it to the stage."""

    def __init__(self, config: pytest.Config, configuration: Configuration) -> None:
        self._config = config
        self._configuration = configuration
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        self.run = str(self._worker["testrunuid"]) if self._worker is not None else uuid.uuid4().hex
        """Identifies the run; the same in all its processes."""
        self.progress = Relay()
        """Passes on the progress of work on the stage to all subscribers."""
        self.assignment: SlotAssignment | None = None
        """The slot that this process uses, where there are several."""
        self.opened: StageSession | None = None
        """What `session` gave, if it was asked for one."""
        self.noted: Summary | None = None
        """What `summary` gave, if it was asked for one."""
        self.recording: Recording | None = None
        """Records what this process does, if a report of the session is asked for."""

    @property
    def is_worker(self) -> bool:
        """Whether a controller of pytest-xdist started this process."""
        return self._worker is not None

    def place(self) -> tuple[int, int]:
        """Return the number of this worker, and how many workers there are."""
        if self._worker is None:
            return 0, max(1, int(getattr(self._config.option, "numprocesses", None) or 1))
        number = str(self._worker["workerid"]).lstrip("gw")
        return int(number) if number.isdigit() else 0, int(self._worker["workercount"])

    def session(self) -> StageSession:
        """Return this process's session. It connects, and joins the lab's network if the run uses the lab."""
        if self.opened is None:
            from pytest_stagegbo.engine.stage import StageEngine
            from pytest_stagegbo.incus.connection import Connection
            from pytest_stagegbo.session.session import StageSession

            settings, lab = self._configuration.settings, self._configuration.lab
            if lab is not None:
                from pytest_stagegbo.lab.command import require_root

                require_root()
                lab.join_network()
            connection = Connection(settings.incus)
            if settings.slots.count == 1 and settings.storage.own:
                from pytest_stagegbo.slots.fleet import Fleet

                engine = Fleet(settings, connection, progress=self.progress).engine(0)
            elif settings.slots.count == 1:
                engine = StageEngine(settings, connection, progress=self.progress)
            else:
                from pytest_stagegbo.slots.assignment import assignment

                self.assignment = assignment(
                    settings, connection, self.run, *self.place(), lease=self._leases(), progress=self.progress
                )
                engine = self.assignment.engine
            self.opened = StageSession(engine, self.run, self.summary())
        return self.opened

    def _leases(self) -> bool:
        """Whether this process runs tests itself, so that it needs a slot of its own."""
        return self._worker is not None or getattr(self._config.option, "dist", "no") == "no"

    def engine(self) -> StageEngine:
        """The engine of the stage that this process uses."""
        return self.session().engine

    def settings(self) -> Settings:
        """Return the settings of the stage that this process uses. In a slot, their addresses differ from the run's
        own."""
        settings = self._configuration.settings
        return settings if settings.slots.count == 1 or not runs_tests(self._config) else self.engine().settings

    def summary(self) -> Summary:
        """The summary of what this process does to the stage."""
        if self.noted is None:
            from pytest_stagegbo.session.summary import Summary

            self.noted = Summary()
        return self.noted

    @contextlib.contextmanager
    def noting_trouble(self, doing: str) -> Iterator[None]:
        """Report any error of the block at the end of the session, and go on: a test may have patched anything that is
        called there."""
        try:
            yield
        except BaseException as error:
            pass_on(error)
            self.summary().trouble.append(f"{doing}: {said(error)}")
