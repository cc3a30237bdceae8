"""Adds what changed in the containers of a failed test, and what they logged, to its report, and keeps the stage as the
test left it if that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.plugin.capsules import Capsules
from pytest_stagegbo.plugin.changes import hiding, own_of, read, section
from pytest_stagegbo.plugin.running import pass_on, said
from pytest_stagegbo.plugin.stash import BEGAN, DEMAND, FAILURE, KEPT, SECTIONS, TAKEN, UNTOUCHED
from pytest_stagegbo.plugin.tracebacks import shorten
from pytest_stagegbo.realfiles import real_files

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.plugin.provisioning import Provisioning
    from pytest_stagegbo.stage import Stage

__all__ = ["Failures"]


class Failures:
    """Adds sections to the reports of failed tests, and keeps the stage for `--stage-keep`."""

    def __init__(self, configuration: Configuration, process: StageProcess, provisioning: Provisioning) -> None:
        self._configuration = configuration
        self._capsules = Capsules(configuration)
        self._process = process
        self._provisioning = provisioning

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        uses_stage, whole = DEMAND in item.stash or TAKEN in item.stash, item.config.getoption("fulltrace", False)
        if call.excinfo is not None and uses_stage and not whole:
            shorten(call.excinfo)
        report = yield
        if report.failed:
            if call.when == "teardown":
                explained = item.stash.get(SECTIONS, [])
            else:
                explained = self.explain(item, call.when, lambda: report.longreprtext)
            report.sections.extend(explained)
            if item.stash.get(KEPT, False):
                item.stash.setdefault(FAILURE, report.longreprtext)
        return report

    @real_files()
    def explain(self, item: pytest.Item, phase: str, report: Callable[[], str]) -> list[tuple[str, str]]:
        """Return what is added to the report of a failed test, as titles and texts. Keep the stage for `--stage-keep`,
        and what the test left for `--stage-capsule`.

        Raises nothing: the test's own failure has to be reported, whatever the test has done to this process.

        Args:
            phase: In which the test failed.
            report: Makes the text of the failure.
        """
        found: list[tuple[str, str]] = []
        self._add(found, item, self._keep_stages)  # first what nobody may reset meanwhile
        used = ((engine, names, number) for engine, names, number, *_ in self.stages_of(item))
        with self._capsules.keeping(item, phase, used, found, lambda: self._masked(item, report())):
            self._add(found, item, self._look_inside)
        return found

    def _add(
        self, found: list[tuple[str, str]], item: pytest.Item, part: Callable[[pytest.Item], list[tuple[str, str]]]
    ) -> None:
        try:
            found += part(item)
        except BaseException as error:
            pass_on(error)
            found.append(("stage: not all of it could be looked at", said(error)))

    def _masked(self, item: pytest.Item, text: str) -> str:
        for engine, _, _, stage, _ in self.stages_of(item):
            text = hiding(engine, stage)[0](text)
        return text

    def stages_of(self, item: pytest.Item) -> Iterator[tuple[StageEngine, list[str], int, Stage | None, str]]:
        """Return the stages that a test used, each with the containers used, the slot, and the options to name it."""
        if DEMAND in item.stash and self._provisioning.guard is not None and not item.stash.get(UNTOUCHED, False):
            assignment = self._process.assignment
            number = assignment.number if assignment is not None else 0
            yield self._process.engine(), sorted(item.stash[DEMAND].uses), number, self._provisioning.shared, ""
        if TAKEN in item.stash:
            slot, stage = item.stash[TAKEN].slot, item.stash[TAKEN].stage
            yield slot.engine, list(stage.services), slot.number, stage, f"fresh stage {stage.project}: "

    def _keep_stages(self, item: pytest.Item) -> list[tuple[str, str]]:
        used = list(self.stages_of(item))
        if not used or not self._configuration.settings.pytest.keep:
            return []
        item.stash[KEPT] = True
        item.session.shouldstop = f"--stage-keep: {item.nodeid} failed and the stage is left as it was"
        if TAKEN in item.stash and self._provisioning.fresh is not None:
            self._provisioning.fresh.keep(item.stash[TAKEN], item.nodeid)
        if DEMAND in item.stash:
            self._process.session().keep(item.nodeid)
        command = self._configuration.command
        looks = [f"{command(number)} shell {name}" for _, names, number, *_ in used for name in names]
        return [("stage kept as the test left it; to look inside", "\n".join(looks))]

    def _look_inside(self, item: pytest.Item) -> list[tuple[str, str]]:
        found = []
        for engine, names, _, stage, whose in self.stages_of(item):
            changes = read(engine, names, own_of(item))  # first: to fetch logs is to do something in the containers
            hide, problem = hiding(engine, stage)
            found.append(section(changes, whose, hide))
            for title, text in _logs(engine, names, item.stash.get(BEGAN, 0.0), hide, problem):
                found.append((whose + title.removeprefix("stage ") if whose else title, text))
        return found


def _logs(
    engine: StageEngine, names: Sequence[str], since: float, hide: Callable[[str], str], problem: str
) -> list[tuple[str, str]]:
    """Return what containers logged since a moment. It raises only what ends pytest."""
    if not problem:
        from pytest_stagegbo.session.failure import sections

        try:
            return sections(engine, names, since, hide)
        except BaseException as error:
            pass_on(error)
            problem = said(error)
    title = f"stage containers {', '.join(names)}: logged since the test began"
    return [(title, f"(the logs could not be fetched: {problem})")]
