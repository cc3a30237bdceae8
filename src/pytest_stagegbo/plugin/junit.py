"""Adds the stage to JUnit's file: properties of the suite and its tests, and logs of a failed test's containers."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_stagegbo.plugin.running import is_of_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JUnit"]


@functools.cache
def _no_xml() -> re.Pattern[str]:
    """What no XML may have. Compiling it takes 8 ms, and most sessions write none."""
    return re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _File(Protocol):
    """pytest's own plugin for `--junitxml`, as far as it is used here."""

    def add_global_property(self, name: str, value: str) -> None: ...

    def node_reporter(self, report: pytest.TestReport) -> Any: ...

    def pytest_sessionfinish(self) -> None: ...


class JUnit:
    """Adds to the file of `--junitxml`, in the process that writes it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def _file(self) -> _File | None:
        plugins = self._config.pluginmanager.get_plugins()
        return next((each for each in plugins if hasattr(each, "add_global_property")), None)

    @pytest.hookimpl(tryfirst=True)  # while the report of the test is open
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        texts = [f"{title}\n{text}" for title, text in report.sections if is_of_stage(title)] if report.failed else []
        file = self._file() if texts else None
        if file is not None:
            from xml.etree import ElementTree

            element = ElementTree.Element("system-err")
            element.text = _no_xml().sub("?", "\n\n".join(texts))
            file.node_reporter(report).append(element)

    def finish(self, properties: Mapping[str, str]) -> None:
        """Add properties to the suite. The file has been written by then, so it is written again."""
        file = self._file()
        if file is not None and properties:
            for name, value in properties.items():
                file.add_global_property(name, _no_xml().sub("?", value))
            file.pytest_sessionfinish()
