"""Prints about the stage: a line in pytest's header, a line before the first test, and a summary at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.plugin.forge import in_pipeline, job_summary, pipeline_lines
from pytest_stagegbo.plugin.running import pass_on, said

if TYPE_CHECKING:
    import pytest

    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.session.summary import Summary

__all__ = ["Reports"]


class Reports:
    """Prints lines about the stage, in the process that has the terminal."""

    def __init__(self, config: pytest.Config, configuration: Configuration, process: StageProcess) -> None:
        self._config = config
        self._configuration = configuration
        self._process = process
        self._described = False

    def pytest_report_header(self) -> str | None:
        """Return the line with project and server, if an option or ini key of the stage is given. It connects to
        nothing."""
        return self._configuration.header if not self._process.is_worker else None

    def describe_early(self) -> None:
        """Print which stage the tests will use, and how much room it has."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and not self._process.is_worker and self._config.get_verbosity() >= 0:
            reporter.write_line(self._describe(early=True))

    def describe_builds(self) -> None:
        """Print which builds the stage runs, once they are deployed."""
        from pytest_stagegbo.session.summary import build_lines

        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or self._process.is_worker or self._config.get_verbosity() < 0:
            return
        with self._process.noting_trouble("which builds the stage runs could not be said"):
            for line in build_lines(self._process.engine()):
                reporter.write_line(line)

    def _describe(self, *, early: bool = False) -> str:
        self._described = True
        from pytest_stagegbo.session.summary import build_lines, header, pool_line

        try:
            engine = self._process.engine()
            # Those that are to be deployed yet are said when they are.
            builds = [] if early and engine.settings.pytest.deploy else build_lines(engine)
            line = "\n".join([pool_line(engine), *builds])
            assignment = self._process.assignment
            return "\n".join([line, *assignment.lines()]) if assignment is not None else line
        except StageGboError as error:
            return f"{header(self._configuration.settings)}: {error.message}"
        except BaseException as error:
            pass_on(error)
            return f"{header(self._configuration.settings)}: {said(error)}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        summary = self._process.noted
        if summary is None or self._process.is_worker:
            return
        with self._process.noting_trouble("the summary could not be made"):
            self._summarize(terminalreporter, summary)
        if in_pipeline():
            with self._process.noting_trouble("annotations for the pipeline could not be written"):
                job_summary(summary.lines(self._configuration.known), terminalreporter, summary)
                for line in pipeline_lines(terminalreporter, summary):
                    terminalreporter.write_line(line)
        if summary.trouble:
            terminalreporter.section("stage-gbo: trouble", yellow=True)
            for line in "\n".join(summary.trouble).splitlines():
                terminalreporter.line(line)

    def _summarize(self, terminalreporter: pytest.TerminalReporter, summary: Summary) -> None:
        lines = []
        if summary.used and self._config.get_verbosity() >= 0:
            lines = summary.lines(self._configuration.known)
            if not self._described:  # the workers collected the tests
                lines.insert(0, self._describe())
        if lines:
            terminalreporter.section("stage-gbo")
            for line in lines:
                terminalreporter.line(line)
        if summary.broken:
            terminalreporter.section("stage-gbo: isolation", red=True)
            for line in "\n".join(summary.broken).splitlines():
                terminalreporter.line(line)
