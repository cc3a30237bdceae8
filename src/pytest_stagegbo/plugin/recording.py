"""Records what this process does with the stage, and makes the report of the session.

`plugin.reporting` says whether one is asked for. Without one this module is not imported, and `process.recording` is
None.
"""

from __future__ import annotations

import functools
import re
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.plugin.options import RECORDS
from pytest_stagegbo.plugin.running import pass_on
from pytest_stagegbo.plugin.stash import TAKEN
from pytest_stagegbo.services.masking import Masker, mask
from pytest_stagegbo.session.requirements import Requirements, demand
from pytest_stagegbo.session_report.disk import DiskCurves
from pytest_stagegbo.session_report.events import BegunTest, Ending, Freeze, Notice, Reset, Step, Test, Wait
from pytest_stagegbo.session_report.recorder import cut, discard, open_recorder
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path
    from typing import Concatenate, ParamSpec

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.plugin.provisioning import Provisioning
    from pytest_stagegbo.session.guard import DiskGuard
    from pytest_stagegbo.session_report.events import Event
    from pytest_stagegbo.session_report.recorder import Recorder

    P = ParamSpec("P")

__all__ = ["Recording"]

MAIN, CONTROLLER = "main", "controller"
SHORTEST_WAIT = 0.001
"""Seconds of a wait that are recorded: a lock that is free takes less."""
LONGEST_PROPERTY = 2000
"""Characters of what the stage noted at a test."""
_WAITING = re.compile(r"waiting for stage [^:]*: (.*)", re.DOTALL)
_SLOT = re.compile(r"slot (\d+): ")
_IN_THE_PICTURE = ("stage.slot", "stage.waited", "stage.reset.")
"""Properties of a test that the timeline shows."""


def _harmless(method: Callable[Concatenate[Recording, P], None]) -> Callable[Concatenate[Recording, P], None]:
    """Have an error end the recording, and nothing else: no test fails because it could not be recorded."""

    @functools.wraps(method)
    def harmless(self: Recording, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except BaseException as error:
            pass_on(error)
            self.give_up(error)

    return harmless


class Recording:
    """Writes down the events of this process. In the process with the terminal it makes the page at the end.

    Args:
        folder: Where each process of the session writes its file.
        page: The report; None in a worker of pytest-xdist.
    """

    def __init__(
        self,
        config: pytest.Config,
        configuration: Configuration,
        process: StageProcess,
        provisioning: Provisioning,
        folder: Path,
        page: Path | None,
    ) -> None:
        self._config = config
        self._configuration = configuration
        self._process = process
        self._provisioning = provisioning
        self._folder = folder
        self._page = page
        self._written = False
        self._recorder: Recorder | None = None
        self._thread = threading.get_ident()
        self._curves: list[DiskCurves] = []
        self._steps: dict[str, tuple[str, float]] = {}
        self._holders = ""
        self._test = _RunningTest("")
        process.recording = self
        process.progress.recorder = self

    def write(self, event: Event) -> None:
        """Append an event, if the file could be opened."""
        if self._recorder is not None:
            self._recorder.write(event)

    def give_up(self, error: BaseException) -> None:
        """Record no more."""
        if self._recorder is not None:
            self._recorder.give_up(error)

    # -- the session

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Refuse to replace a file that is no report, and begin this process's file."""
        problem = ""
        if self._page is not None:
            from pytest_stagegbo.session_report.page import check_target

            try:
                check_target(self._page)
            except StageGboError as error:
                problem = f"--stage-report: {error}"
            if not problem:
                with self._process.noting_trouble("records of an earlier session could not be removed"):
                    discard(self._folder)
        if problem:
            raise pytest.UsageError(problem)
        if self._process.is_worker:
            self._open(self._process.run, str(self._config.workerinput["workerid"]))  # type: ignore[attr-defined] # xdist's
        elif not self._is_controller:
            self._open(self._process.run, MAIN)

    @property
    def _is_controller(self) -> bool:
        return not self._process.is_worker and getattr(self._config.option, "dist", "no") != "no"

    def _open(self, run: str, worker: str) -> None:
        with self._process.noting_trouble(f"the session can't be recorded in {self._folder}"):
            self._recorder = open_recorder(
                self._folder,
                run,
                worker,
                workers=self._process.place()[1],
                package=version("pytest-stagegbo"),
                pytest=pytest.__version__,
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """A worker is about to start."""
        node.workerinput[RECORDS] = str(self._folder)
        if self._recorder is None:
            self._open(str(node.workerinput["testrunuid"]), CONTROLLER)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker has ended."""
        if error:
            worker = str(node.workerinput["workerid"])
            self.write(Notice(clocks.monotonic(), "killed", f"worker {worker} died: {_said(error)}", worker))

    @pytest.hookimpl(wrapper=True, trylast=True)  # after `SessionEnd`, and before the terminal's summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        for curves in self._curves:
            with self._process.noting_trouble("the disk's last state could not be recorded"):
                curves.close()
        if self._recorder is not None and self._recorder.trouble:
            self._process.summary().trouble.append(f"the session was not recorded to its end: {self._recorder.trouble}")
        try:
            return (yield)
        finally:
            with self._process.noting_trouble("the report of the session could not be written"):
                self._finish(int(session.exitstatus))

    def _finish(self, status: int) -> None:
        if self._recorder is None:
            return
        summary, known = self._process.noted, self._configuration.known
        lines = summary.lines(known) if summary is not None else []
        trouble = [*summary.broken, *summary.trouble] if summary is not None else []
        ending = Ending(clocks.monotonic(), status, tuple(map(_said, lines)), tuple(map(_said, trouble)), self._facts())
        self.write(ending)
        self._recorder.close()
        if self._page is not None:
            from pytest_stagegbo.session_report.page import write_report

            write_report(self._page, [self._folder])
            self._written = True

    def _facts(self) -> dict[str, str]:
        opened = self._process.opened
        if opened is None:
            return {}
        facts: dict[str, str] = {"project": opened.settings.project}
        with self._process.noting_trouble("what the report says of Incus could not be found out"):
            facts["incus"] = opened.engine.reader.server().version
        return facts

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._written and self._page is not None and self._config.get_verbosity() >= 0:
            terminalreporter.write_line(f"stage-gbo: report of the session: {self._page}")

    # -- tests

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._test = test = _RunningTest(printable(item.nodeid), item)
        self.write(BegunTest(test.began, test.name))
        try:
            return (yield)
        finally:
            self._test = _RunningTest("")
            self._end(test)

    @_harmless
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a phase of the test that runs here ended. A controller runs none."""
        test = self._test
        if test.item is None:
            return
        if report.when == "setup":  # of a further attempt, too
            test.outcome, test.failure, test.sections = "", "", {}
        test.phases[str(report.when)] = clocks.monotonic()
        expected = hasattr(report, "wasxfail")
        if report.failed:
            test.outcome = test.outcome if test.outcome == "failed" else "failed" if report.when == "call" else "error"
            self._explain(test, report)
        elif report.skipped:
            test.outcome = "xfailed" if expected else "skipped"
        elif report.when == "call":
            test.outcome = "xpassed" if expected else "passed"

    def _explain(self, test: _RunningTest, report: pytest.TestReport) -> None:
        hide = self._hide(test)
        said = cut(report.longreprtext, hide)
        test.failure = f"{test.failure}\n\n{said}" if test.failure else said
        for title, text in report.sections:
            test.sections[title] = cut(text, hide)
        test.properties = [
            (printable(str(name)), cut(str(value), hide, LONGEST_PROPERTY))
            for name, value in report.user_properties
            if str(name).startswith("stage.") and not str(name).startswith(_IN_THE_PICTURE)
        ]

    def _hide(self, test: _RunningTest) -> Callable[[str], str]:
        """What hides the secrets that are known by now: the logs of a failed test were fetched with them."""
        taken = test.item.stash.get(TAKEN, None) if test.item is not None else None
        stage = taken.stage if taken is not None else self._provisioning.shared
        hide = stage.credentials.mask if stage is not None else Masker().mask
        return lambda text: printable(hide(text))

    @_harmless
    def _end(self, test: _RunningTest) -> None:
        ended, wanted, project = clocks.monotonic(), test.wanted, test.project
        quiet = tuple(sorted(wanted.quiet)) if wanted is not None else ()
        if quiet:
            self.write(Freeze(project, quiet, test.name, test.reserved, ended))
        self.write(
            Test(
                test.name,
                test.outcome or "error",
                test.began,
                ended,
                test.phases.get("setup", 0.0),
                test.phases.get("call", 0.0),
                project,
                tuple(sorted(wanted.uses)) if wanted is not None else (),
                wanted.resets if wanted is not None else (),
                self._asked(test),
                quiet,
                test.failure,
                tuple((printable(title), text) for title, text in test.sections.items()),
                tuple(test.properties),
            )
        )

    def _asked(self, test: _RunningTest) -> tuple[str, ...]:
        """The containers that the test's fixtures stand for, whatever its markers say."""
        if test.wanted is None or not test.wanted.resets or test.item is None:
            return ()
        return tuple(sorted(demand(getattr(test.item, "fixturenames", ()), (), self._configuration.settings).uses))

    # -- what the plugin's other parts tell

    @_harmless
    def reserved(self, wanted: Requirements, began: float, seconds: float) -> None:
        """The test that runs has waited for its locks since `began`."""
        test, holders = self._test, self._holders
        self._holders = ""
        project = self._process.settings().project
        test.wanted, test.project, test.reserved = wanted, project, began + seconds
        if holders:  # else its locks were free, and taking them took the time
            names = tuple(sorted(wanted.uses))
            self.write(Wait(test.name, project, began, began + seconds, names, holders))

    @_harmless
    def took_fresh(self, engine: StageEngine, began: float) -> None:
        """The test that runs has waited for a fresh stage since `began`."""
        test, now = self._test, clocks.monotonic()
        if test.wanted is None:
            test.wanted, test.project = Requirements(frozenset(engine.settings.containers), ()), engine.settings.project
        if now - began >= SHORTEST_WAIT:
            self.write(Wait(test.name, engine.settings.project, began, now))

    @_harmless
    def watch(self, guard: DiskGuard, engine: StageEngine) -> None:
        """Record the curves of a stage whose disk a guard watches."""
        shares = self._process.assignment is None
        first = self._process.place()[0] == 0 or not shares
        curves = DiskCurves(guard, self.write, engine.settings.project, containers=first)
        self._curves.append(curves)
        curves.start()

    @_harmless
    def stopped(self, error: StageGboError) -> None:
        """The disk guard ends the session."""
        self.write(Notice(clocks.monotonic(), "stopped", _said(error)))

    # -- what work on the stage tells; see `Progress`

    @_harmless
    def begin(self, key: str, text: str) -> None:
        if not key.rpartition(": ")[2].startswith("clear:"):  # `reset_done` says more of these
            self._steps[key] = (text, clocks.monotonic())

    @_harmless
    def end(self, key: str, error: BaseException | None = None) -> None:
        if key in self._steps:
            text, began = self._steps.pop(key)
            slot = _SLOT.match(key)
            project = self._configuration.settings.project
            if slot is not None:
                key, text = key[slot.end() :], text.removeprefix(slot[0])
                project += f"-{slot[1]}" if slot[1] != "0" else ""
            elif self._process.opened is not None:
                project = self._process.opened.settings.project
            said = _said(error) if error is not None else ""
            self.write(Step(key, _said(text), began, clocks.monotonic(), project, said))

    @_harmless
    def note(self, text: str) -> None:
        waiting = _WAITING.search(text)
        if waiting is not None and self._test.name:
            self._holders = _said(waiting[1])
        else:
            self.write(Notice(clocks.monotonic(), "note", _said(text), test=self._test.name))

    @_harmless
    def reset_done(self, project: str, container: str, way: str, began: float, ended: float, reason: str) -> None:
        test = self._test.name if threading.get_ident() == self._thread else ""
        self.write(Reset(project, container, way, began, ended, _said(reason), test))


class _RunningTest:
    """What is known of a test while it runs."""

    def __init__(self, name: str, item: pytest.Item | None = None) -> None:
        self.name = name
        self.item = item
        self.began = self.reserved = clocks.monotonic()
        self.phases: dict[str, float] = {}
        self.outcome = ""
        self.failure = ""
        self.sections: dict[str, str] = {}
        self.properties: list[tuple[str, str]] = []
        self.wanted: Requirements | None = None
        self.project = ""


def _said(text: object) -> str:
    """A text of others, without secrets."""
    return printable(mask(str(text))) if text else ""
