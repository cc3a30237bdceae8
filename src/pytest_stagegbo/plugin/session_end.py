"""Ends the session: proves the isolation, measures the containers' growth, and removes the run's notes."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.plugin.running import pass_on, said
from pytest_stagegbo.realfiles import real_files

if TYPE_CHECKING:
    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.junit import JUnit
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.plugin.provisioning import Provisioning
    from pytest_stagegbo.plugin.workers import Workers

__all__ = ["SessionEnd"]


class SessionEnd:
    """Does what is left to do when the session ends, and adds what it finds to the summary."""

    def __init__(
        self,
        config: pytest.Config,
        configuration: Configuration,
        process: StageProcess,
        provisioning: Provisioning,
        workers: Workers,
        junit: JUnit,
    ) -> None:
        self._config = config
        self._configuration = configuration
        self._process = process
        self._provisioning = provisioning
        self._workers = workers
        self._junit = junit

    @pytest.hookimpl(trylast=True)  # xdist has ended its workers by then
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        process, workers = self._process, self._workers
        if not process.is_worker and (process.opened is not None or workers.used_stage or workers.out):
            self._verify(session)
        try:
            self._finish()
        finally:
            leases = sys.modules.get("pytest_stagegbo.leases.process")
            if leases is not None:
                with process.noting_trouble("the lease of the stage could not be given up"), real_files():
                    leases.close_all()

    def _finish(self) -> None:
        process, workers = self._process, self._workers
        if process.noted is None:
            return
        if process.opened is not None:
            self._verify_events()
        self._measure_growth()
        if process.is_worker:
            self._config.workeroutput["stagegbo"] = process.noted.to_json()  # type: ignore[attr-defined] # xdist's
        elif process.opened is not None or workers.used_stage:
            with process.noting_trouble("what this run noted could not be removed"):
                self._forget()
            with process.noting_trouble("JUnit's file could not be completed"):
                self._junit.finish(self._properties())

    def _verify(self, session: pytest.Session) -> None:
        """Prove the isolation once a run, when all workers have ended. What can't be tried counts as not proven."""
        try:
            if not self._configuration.settings.pytest.verify:
                return
            from pytest_stagegbo.session.proof import prove

            lost = [f"worker {each}" for each in sorted(self._workers.out)]
            broken = prove(self._process.session(), self._process.assignment, self._process.run, lost)
        except (StageGboError, pytest.UsageError) as error:
            broken = [str(error)]
        except BaseException as error:
            pass_on(error)
            broken = [f"the stage's isolation could not be proven: {said(error)}"]
        summary = self._process.summary()
        summary.broken += broken
        summary.verified = not broken
        if summary.broken and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _verify_events(self) -> None:
        """Prove what this worker itself did to production. The controller's `verify` proves the rest."""
        assert self._process.opened is not None
        try:
            if self._process.is_worker:
                self._process.opened.verify_events()
            if self._provisioning.fresh is not None:
                self._provisioning.fresh.verify_events()
        except BaseException as error:
            pass_on(error)
            self._process.summary().broken.append(said(error))
        finally:
            with self._process.noting_trouble("production could not be let go of"):
                self._process.opened.stop_listening()

    def _measure_growth(self) -> None:
        guard, summary = self._provisioning.guard, self._process.summary()
        if guard is None:
            return
        with self._process.noting_trouble("the stage's growth could not be measured"):
            doubt = guard.doubt()
            if doubt:
                summary.trouble.append(f"disk limits did not hold all the time: {doubt}; see `stagegbo doctor`")
            else:
                summary.growth(guard.growth())

    def _properties(self) -> dict[str, str]:
        """The properties of the suite in JUnit's file."""
        if not getattr(self._config.option, "xmlpath", None):
            return {}
        from pytest_stagegbo.plan.builds import build_of

        process, settings = self._process, self._configuration.settings
        summary, reader = process.summary(), process.engine().reader
        clones = reader.instances(process.engine().settings.project).values()
        builds = [
            f"{clone.name}:{file.name} {file.sha256}"
            for clone in clones
            if (build := build_of(clone)) is not None
            for file in build.artefacts
        ]
        verified = "failed" if summary.broken else "passed" if settings.pytest.verify else "not asked for"
        slots = process.assignment.capacity.count if process.assignment is not None else 1
        return {
            "stage.project": settings.project,
            "stage.incus": reader.server().version,
            "stage.slots": str(slots),
            "stage.build": ", ".join(sorted(builds)) or "production's",
            "stage.copied": min((clone.created_at for clone in clones), default=""),
            "stage.provisioned": f"{summary.provisioned:.3f}",
            "stage.verify": verified,
        }

    def _forget(self) -> None:
        from pytest_stagegbo.session.proof import forget

        with contextlib.suppress(StageGboError):  # then nothing is known of it either
            forget(self._process.session(), self._process.assignment, self._process.run)
