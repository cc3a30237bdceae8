"""Adds what a test changed in its containers to its report: of each failed test, with `--stage-changes` of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.plugin.running import is_of_stage, pass_on, said
from pytest_stagegbo.plugin.stash import DEMAND, TAKEN
from pytest_stagegbo.realfiles import real_files

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence

    from pytest_stagegbo.changes import Changes
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.failures import Failures
    from pytest_stagegbo.stage import Stage

__all__ = ["TITLE", "ChangesOfTests", "changed", "hiding", "own_of", "read", "section"]

TITLE = "stage changes"
"""Of the section. That of a fresh stage ends with the second word."""
PROPERTY = "stage.changes"


class ChangesOfTests:
    """Says for tests that pass what they changed, with `--stage-changes`; and hands what is said to Allure."""

    def __init__(self, config: pytest.Config, configuration: Configuration, failures: Failures) -> None:
        self._config = config
        self._configuration = configuration
        self._failures = failures

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        uses_stage = DEMAND in item.stash or TAKEN in item.stash
        if call.when == "call" and not report.failed and uses_stage and self._configuration.settings.pytest.changes:
            report.sections.extend(self._of_passed(item))
        if text := changed(report):
            entry = (PROPERTY, "; ".join(line.strip() for line in text.splitlines()))
            item.user_properties.append(entry)
            report.user_properties.append(entry)
            self._attach(text)
        return report

    @real_files()
    def _of_passed(self, item: pytest.Item) -> list[tuple[str, str]]:
        found = []
        for engine, names, _, stage, whose in self._failures.stages_of(item):
            changes = read(engine, names, own_of(item))
            found.append(section(changes, whose, hiding(engine, stage)[0]))
        return found

    def _attach(self, text: str) -> None:
        """Attach it to the test in Allure's results, where that plugin writes any."""
        if not self._config.pluginmanager.has_plugin("allure_listener"):
            return
        import allure

        allure.attach(text, name=TITLE, attachment_type=allure.attachment_type.TEXT)


def own_of(item: pytest.Item) -> Collection[str]:
    """Containers that were clean when a test began."""
    if TAKEN in item.stash:
        return tuple(item.stash[TAKEN].stage.services)
    return item.stash[DEMAND].resets if DEMAND in item.stash else ()


def read(engine: StageEngine, names: Sequence[str], cleaned: Collection[str]) -> Changes | str:
    """What changed in containers, or why that can't be told. It raises only what ends pytest."""
    try:
        from pytest_stagegbo.changes import read_changes

        containers = [engine.settings.containers[name] for name in names]
        return read_changes(engine.resetter(), containers, cleaned)
    except BaseException as error:
        pass_on(error)
        return f"(what changed can't be told: {said(error)})"


def hiding(engine: StageEngine, stage: Stage | None) -> tuple[Callable[[str], str], str]:
    """Return what takes secrets out of text, and why not all of them are known. It raises only what ends pytest."""
    from pytest_stagegbo.credentials import Credentials
    from pytest_stagegbo.services.masking import mask

    try:
        known = stage.credentials if stage is not None else Credentials(engine.settings, engine.reader)
        known.load()  # what is not known can't be masked
    except BaseException as error:
        pass_on(error)
        return mask, said(error)
    return known.mask, ""


def section(changes: Changes | str, whose: str, hide: Callable[[str], str]) -> tuple[str, str]:
    """Title and text of the section. `whose`: what a fresh stage's titles begin with."""
    text = changes if isinstance(changes, str) else "\n".join(changes.lines(hide=hide))
    return f"{whose}changes" if whose else TITLE, text


def changed(report: pytest.TestReport) -> str:
    """What a report says that its test changed; empty: nothing about it."""
    sections = [(title, text) for title, text in report.sections if is_of_stage(title)]  # a test may add others
    texts = [text for title, text in sections if title == TITLE or title.endswith(": changes")]
    return "\n".join(texts)
