"""Provisions stages before the first test that needs one, and releases them after the last test."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.plugin.capsules import drop_oldest, forget_old
from pytest_stagegbo.plugin.live import watched
from pytest_stagegbo.plugin.running import executed, pass_on, runs_tests, said
from pytest_stagegbo.plugin.stash import DEMAND, FRESH
from pytest_stagegbo.realfiles import real_files

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_stagegbo.credentials import Credentials
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.errors import NoRoom
    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.plugin.production import ProductionBan
    from pytest_stagegbo.plugin.reports import Reports
    from pytest_stagegbo.session.fresh import FreshStages
    from pytest_stagegbo.session.guard import DiskGuard
    from pytest_stagegbo.stage import Stage

__all__ = ["Provisioning"]


class Provisioning:
    """Provisions the stages that tests ask for, once in each process."""

    def __init__(
        self,
        config: pytest.Config,
        configuration: Configuration,
        process: StageProcess,
        production: ProductionBan,
        reports: Reports,
    ) -> None:
        self._config = config
        self._configuration = configuration
        self._process = process
        self._production = production
        self._reports = reports
        self._begun = False
        self._over = threading.Event()
        """Set when the last test has ended."""
        self.no_stage: StageGboError | None = None
        """Why no test can have the stage."""
        self.guard: DiskGuard | None = None
        """The disk guard of the stage that this process's tests share; set once the stage has been provisioned."""
        self.shared: Stage | None = None
        """What `stage` gave, if it was asked for one."""
        self.fresh: FreshStages | None = None
        """What `fresh_stages` gave, if it was asked for them."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Provision before the first test, outside any test's own time limit."""
        items = executed(getattr(session, "items", []))
        shared = any(DEMAND in item.stash for item in items)
        if shared:
            self._reports.describe_early()
            self.begin(session)
        if any(FRESH in item.stash for item in items):
            self._prepare_fresh(session, others_only=shared)
        try:
            return (yield)
        finally:
            self._over.set()
            for each in (self.fresh, self.guard, self._process.opened):
                if each is not None:
                    with self._process.noting_trouble("the stage could not be let go of"):
                        each.close()
            self._production.end()

    def begin(self, session: pytest.Session) -> None:
        """Provision the stage that tests share, and begin to watch its disk. If that fails, `no_stage` says why."""
        from pytest_stagegbo.session.logsizes import remember

        if self.no_stage is not None or self._begun:
            return
        self._begun = True
        try:
            self._production.begin()
            with watched(self._config, self._process.progress, is_worker=self._process.is_worker):
                stage_session = self._process.session()
                stage_session.ensure()
            if stage_session.failed:
                return
            if stage_session.settings.pytest.deploy:
                self._reports.describe_builds()
            engine = stage_session.engine
            self.guard = self._watched(engine, session)
            with self._process.noting_trouble("old capsules could not be deleted"):
                forget_old(engine)
        except StageGboError as error:
            self.no_stage = error
            return
        except BaseException as error:
            pass_on(error)
            self.no_stage = StageGboError("the stage can't be used", seen=said(error))
            return
        used = sorted(frozenset().union(*(item.stash[DEMAND].uses for item in session.items if DEMAND in item.stash)))
        threading.Thread(
            target=remember, args=(engine, used, self._over.is_set), name="stagegbo log sizes", daemon=True
        ).start()

    def _prepare_fresh(self, session: pytest.Session, *, others_only: bool) -> None:
        with contextlib.suppress(Exception):  # the first test that wants a stage reports it
            self.fresh_stages(session).prepare(others_only=others_only)

    def refuse_without_tests(self) -> None:
        """Skip the test for `--setup-only`, which would set up its fixtures, and so reset the stage, for no test."""
        if not runs_tests(self._config):
            pytest.skip("no test is executed, so nothing is done to the stage")

    @real_files()
    def stage(self, credentials: Credentials | None = None) -> Stage:
        """Return the stage, provisioned. A test that asks for it only by `getfixturevalue` is not seen before it
        runs."""
        from pytest_stagegbo.stage import Stage

        self.refuse_without_tests()
        self._production.begin()
        session = self._process.session()
        session.ensure()
        session.check()
        self.shared = Stage(session.engine, credentials=credentials, reset=session.reset, baselines=session.baselines)
        return self.shared

    def fresh_stages(self, session: pytest.Session) -> FreshStages:
        """The stages that tests may have to themselves."""
        if self.fresh is None:
            from pytest_stagegbo.session.fresh import FreshStages
            from pytest_stagegbo.session.session import StageSession

            process = self._process
            self.fresh = FreshStages(
                process.session(),
                process.assignment,
                process.place()[1],
                lambda engine: StageSession(engine, process.run, process.summary()),
                lambda engine: self._watched(engine, session),
                process.summary(),
            )
        return self.fresh

    def _watched(self, engine: StageEngine, session: pytest.Session) -> DiskGuard:
        """Return a guard that watches a stage's disk and has looked once. Raises what `DiskGuard.check` raises."""
        from pytest_stagegbo.session.guard import DiskGuard

        recording = self._process.recording

        def stop(error: NoRoom) -> None:
            session.shouldstop = str(error)
            if recording is not None:
                recording.stopped(error)

        guard = DiskGuard(engine, stop, drop_capsule=lambda: drop_oldest(engine))
        guard.check()
        guard.start()
        if recording is not None:
            recording.watch(guard, engine)
        return guard
