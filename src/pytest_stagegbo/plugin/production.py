"""Keeps this process from connecting to production. A marker lifts that for a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.session.requirements import PRODUCTION_ACCESS

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.session.production_guard import ProductionGuard

__all__ = ["ProductionBan"]


class ProductionBan:
    """The ban on connections to production. It lasts from the first need of the stage until the last test has run."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._guard: ProductionGuard | None = None
        self._item: pytest.Item | None = None

    def begin(self) -> None:
        """Begin to refuse connections of this process to production."""
        if self._guard is None and self._configuration.settings.pytest.production_access == "refuse":
            from pytest_stagegbo.session.production_guard import ProductionGuard

            self._guard = ProductionGuard(self._configuration.settings)
            self._guard.begin()
            self._name_test(self._item)

    def end(self) -> None:
        """Allow connections of this process to production again."""
        if self._guard is not None:
            self._guard.end()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Have errors about production name the test, and lift the ban for a test with the marker, its fixtures
        included."""
        self._name_test(item)
        try:
            return (yield)
        finally:
            self._name_test(None)

    def _name_test(self, item: pytest.Item | None) -> None:
        self._item = item
        if self._guard is not None:
            lifted = item is not None and item.get_closest_marker(PRODUCTION_ACCESS) is not None
            self._guard.now(item.nodeid if item is not None else "", lifted=lifted)
