"""Finds out what each collected test requires of the stage, and reports wrong markers as errors of collection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.plugin.stash import DEMAND, FRESH, MARKED
from pytest_stagegbo.session.requirements import (
    BASELINE,
    FRESH_STAGE,
    MARKER,
    PRODUCTION_ACCESS,
    QUIET,
    Requirements,
    asks_for_stage,
    baseline_of,
    check_production_access,
    check_quiet,
    demand,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.plugin.provisioning import Provisioning

__all__ = ["Collection"]


class Collection:
    """Stores at each test what it requires of the stage, once all tests have been collected."""

    def __init__(self, configuration: Configuration, process: StageProcess, provisioning: Provisioning) -> None:
        self._configuration = configuration
        self._process = process
        self._provisioning = provisioning

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, object, object]:
        """Look at all tests, after the hooks of other plugins, which may add markers and fixtures or deselect tests.
        A test whose markers say nothing that can be done is an error of its collection: pytest ends after those, and
        pytest-xdist reports them and goes on with the other tests.
        """
        result = yield
        problem = ""
        wrong = []
        for item in items:
            try:
                self._look_at(item)
            except SettingsError as error:
                wrong.append(item)
                text = f"{item.nodeid}: {error}"
                item.ihook.pytest_collectreport(report=pytest.CollectReport(item.nodeid, "failed", text, []))
            except pytest.UsageError as error:
                problem = str(error)
        items[:] = [item for item in items if item not in wrong]
        if problem and not self._process.is_worker:
            raise pytest.UsageError(problem)
        if problem:  # pytest-xdist breaks down on an error here, and does not say which
            self._provisioning.no_stage = SettingsError(problem)
        return result

    def _look_at(self, item: pytest.Item) -> None:
        """Store what one test requires of the stage.

        Raises:
            SettingsError: a marker of it can't mean anything.
            pytest.UsageError: the settings are malformed.
        """
        for mark in item.iter_markers(PRODUCTION_ACCESS):
            check_production_access(mark)
        fixtures = getattr(item, "fixturenames", ())
        marks, quiet = list(item.iter_markers(MARKER)), list(item.iter_markers(QUIET))
        for mark in quiet:
            check_quiet(mark)
        found = list(item.iter_markers(BASELINE))[:1]
        baseline = baseline_of(found[0] if found else None)
        item.stash[MARKED] = [*marks[:1], *quiet[:1], *found]
        if FRESH_STAGE in fixtures:
            if baseline:
                raise SettingsError(
                    f"{BASELINE} is about the stage that tests share, and {FRESH_STAGE} gives this test another one",
                    remedy=f"use stage_gbo instead of {FRESH_STAGE}: the marker keeps its containers from other tests",
                )
            item.stash[FRESH] = True
        if asks_for_stage(fixtures, marked=bool(marks or baseline)):
            item.stash[DEMAND] = Requirements(frozenset(), ())
            settings = self._configuration.settings
            item.stash[DEMAND] = demand(fixtures, marks, settings, quiet=bool(quiet), baseline=baseline)
