"""The pytest plugin: options and hooks. With `fixtures`, the only module that imports pytest.

pytest loads it at its start wherever this package is installed, so nothing heavy is imported here, and a run whose
tests do not ask for the stage costs nothing and cannot fail because of it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from pytest_stagegbo import clocks
from pytest_stagegbo.asking import Asking
from pytest_stagegbo.errors import LockTimeout, NotHeld, SettingsError, StageGboError
from pytest_stagegbo.options import OPTIONS, SETTINGS, SWITCHES, add_options, destination
from pytest_stagegbo.realfiles import real_files
from pytest_stagegbo.running import executed, pass_on, runs_tests, said
from pytest_stagegbo.session.demand import (
    FRESH_STAGE,
    MARKER,
    PRODUCTION_ACCESS,
    Demand,
    asks_for_stage,
    check_production_access,
    demand,
)
from pytest_stagegbo.truth import LAB_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.errors import NoRoom
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.session.fresh import Fresh, FreshStages
    from pytest_stagegbo.session.guard import DiskGuard
    from pytest_stagegbo.session.production_guard import ProductionGuard
    from pytest_stagegbo.session.session import StageSession
    from pytest_stagegbo.session.summary import Summary
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.slots.seat import Seat
    from pytest_stagegbo.stage import Credentials, Stage

pytest_plugins = ("pytest_stagegbo.fixtures",)

NO_SETTINGS = ("STAGEGBO_LAB_", "STAGEGBO_ENDPOINT_", "STAGEGBO_DEBUG")
"""How variables begin that say nothing about a stage; a shell may have them for other reasons."""

DEMAND = pytest.StashKey[Demand]()
FRESH = pytest.StashKey[bool]()
BEGAN = pytest.StashKey[float]()
TAKEN = pytest.StashKey["Fresh"]()
"""The stage that the test has to itself."""
UNTOUCHED = pytest.StashKey[bool]()
"""Whether the test did not get the stage."""
KEPT = pytest.StashKey[bool]()
SECTIONS = pytest.StashKey[list[tuple[str, str]]]()
"""What the report of a failed teardown says of the stage."""
ASKED = pytest.StashKey[frozenset[str]]()
"""Names of the stage's fixtures that the test has asked for so far, and got."""
MARKED = pytest.StashKey[list[pytest.Mark]]()
"""The marker that says what to reset, as it was when tests had been collected."""
PLUGIN_NAME = "stagegbo-session"


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*names): reset these containers of the stage before the test (`all`: cache, drive and system; "
        "`none`: whatever the settings say), and keep them from every other test until it ends",
    )
    config.addinivalue_line(
        "markers",
        f"{PRODUCTION_ACCESS}(reason): this test may connect to addresses of production, which is an error otherwise",
    )
    plugin = StagePlugin(config)
    config.pluginmanager.register(plugin, PLUGIN_NAME)
    config.pluginmanager.register(plugin.asking, f"{PLUGIN_NAME}-asking")
    plugin.asking.begin()


class StagePlugin:
    """What one pytest process knows of the stage."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        self.run = str(self._worker["testrunuid"]) if self._worker is not None else uuid.uuid4().hex
        self._settings: Settings | None = None
        self._lab: Lab | None = None
        self._header = ""
        self._begun = False
        self._session: StageSession | None = None
        self._seat: Seat | None = None
        self._fresh: FreshStages | None = None
        self._guard: DiskGuard | None = None
        self._production: ProductionGuard | None = None
        self._item: pytest.Item | None = None
        self._summary: Summary | None = None
        self._stage: Stage | None = None
        self._no_stage: StageGboError | None = None
        self._told = False
        self._had_workers = False
        self._workers_out: set[str] = set()
        """Workers that have not said yet what they did, or died without."""
        self._described = False
        self.asking = Asking(config, self._claim, self._claim_for_end)

    # -- settings

    def pytest_sessionstart(self) -> None:
        """Bad values end pytest before collection, all at once; without any option nothing is read. Commands that
        only print something (`--help`, `--markers`, `--version`) have no session."""
        given = [name for name in (*OPTIONS, *SWITCHES) if self._given(name) is not None]
        names = [name for name in os.environ if name.startswith("STAGEGBO_") and name != LAB_VARIABLE]
        if given or any(not name.startswith(NO_SETTINGS) for name in names):
            from pytest_stagegbo.session.summary import header

            with _usage_errors():
                self._header = header(self._read(lab=None), "the lab" if self._chosen_lab() else "")

    def _given(self, name: str) -> Any:
        option = self._config.getoption(destination(name))
        return self._config.getini(destination(name)) if option is None else option

    def _sources(self) -> tuple[dict[str, Any], dict[str, Any]]:
        options = {name: self._config.getoption(destination(name)) for name in SETTINGS}
        return options, {name: self._config.getini(destination(name)) for name in SETTINGS}

    def _read(self, lab: Lab | None) -> Settings:
        from pytest_stagegbo.session.options import read_settings

        return read_settings(self._config.rootpath, *self._sources(), SETTINGS, lab=lab)

    def _chosen_lab(self) -> bool | str:
        from pytest_stagegbo.session.options import chosen_lab

        return chosen_lab(*self._sources())

    @property
    def settings(self) -> Settings:
        """The settings of this run, read once. Needs neither root nor a lab that is up.

        Raises:
            pytest.UsageError: they are malformed.
        """
        if self._settings is None:
            with _usage_errors():
                chosen = self._chosen_lab()
                if chosen:
                    from pytest_stagegbo.lab import Lab

                    self._lab = Lab.find(chosen if isinstance(chosen, str) else None)
                self._settings = self._read(self._lab)
        return self._settings

    # -- the run

    def engine(self) -> StageEngine:
        return self.session().engine

    def session(self) -> StageSession:
        """This process's session; connects, and moves this process into the lab's network if it is aimed there."""
        if self._session is None:
            from pytest_stagegbo.engine.stage import StageEngine
            from pytest_stagegbo.incus.connection import Connection
            from pytest_stagegbo.session.session import StageSession

            settings = self.settings
            if self._lab is not None:
                from pytest_stagegbo.lab.command import require_root

                require_root()
                self._lab.join_network()
            connection = Connection(settings.incus)
            if settings.slots.count == 1:
                engine = StageEngine(settings, connection)
            else:
                from pytest_stagegbo.slots.seat import seat

                self._seat = seat(settings, connection, self.run, *self._place(), lease=self._runs_tests())
                engine = self._seat.engine
            self._session = StageSession(engine, self.run, self.summary())
        return self._session

    def _place(self) -> tuple[int, int]:
        """Which worker this is, and of how many."""
        if self._worker is None:
            return 0, max(1, int(getattr(self._config.option, "numprocesses", None) or 1))
        number = str(self._worker["workerid"]).lstrip("gw")
        return int(number) if number.isdigit() else 0, int(self._worker["workercount"])

    def _runs_tests(self) -> bool:
        return self._worker is not None or getattr(self._config.option, "dist", "no") == "no"

    def stage_settings(self) -> Settings:
        """Those of the stage that this process uses; they differ from the run's own in addresses where it is a slot."""
        if self.settings.slots.count == 1 or not runs_tests(self._config):
            return self.settings
        return self.engine().settings

    def summary(self) -> Summary:
        if self._summary is None:
            from pytest_stagegbo.session.summary import Summary

            self._summary = Summary()
        return self._summary

    @real_files()
    def stage(self, credentials: Credentials | None = None) -> Stage:
        """The stage, provisioned: a test may ask for it by `getfixturevalue` only, which nobody sees before it runs."""
        from pytest_stagegbo.stage import Stage

        self._refuse_without_tests()
        self._keep_from_production()
        session = self.session()
        session.ensure()
        session.check()
        self._stage = Stage(session.engine, credentials=credentials, reset=session.reset)
        return self._stage

    def fresh_stages(self, session: pytest.Session) -> FreshStages:
        """The stages that tests may have to themselves."""
        if self._fresh is None:
            from pytest_stagegbo.session.fresh import FreshStages
            from pytest_stagegbo.session.session import StageSession

            self._fresh = FreshStages(
                self.session(),
                self._seat,
                self._place()[1],
                lambda engine: StageSession(engine, self.run, self.summary()),
                lambda engine: _watched(engine, session),
                self.summary(),
            )
        return self._fresh

    @real_files()
    def fresh(self, item: pytest.Item, credentials: Credentials | None) -> Stage:
        """A clean stage that nobody else uses until the test has been torn down."""
        self._refuse_without_tests()
        problem = ""
        try:
            self._keep_from_production()
            stages, shared = self.fresh_stages(item.session), DEMAND in item.stash
            item.stash[TAKEN] = stages.take(item.nodeid, credentials, others_only=shared)
        except StageGboError as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:  # said here, since within the `except` pytest would print both errors
            pytest.fail(problem, pytrace=False)
        return item.stash[TAKEN].stage

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, object, object]:
        """After the hooks of everybody else, which add markers and fixtures to tests, and leave tests out.

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
        if problem and self._worker is None:
            raise pytest.UsageError(problem)
        if problem:  # pytest-xdist breaks down on an error here, and does not say which
            self._no_stage = SettingsError(problem)
        return result

    def _look_at(self, item: pytest.Item) -> None:
        """What the test asks of the stage.

        Raises:
            SettingsError: a marker of it can't mean anything.
            pytest.UsageError: the settings are malformed.
        """
        for mark in item.iter_markers(PRODUCTION_ACCESS):
            check_production_access(mark)
        fixtures = getattr(item, "fixturenames", ())
        marks = list(item.iter_markers(MARKER))
        item.stash[MARKED] = marks[:1]
        if FRESH_STAGE in fixtures:
            item.stash[FRESH] = True
        if asks_for_stage(fixtures, marked=bool(marks)):
            item.stash[DEMAND] = Demand(frozenset(), ())
            item.stash[DEMAND] = demand(fixtures, marks, self.settings)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Provision before the first test, outside any test's own time limit."""
        items = executed(getattr(session, "items", []))
        shared = any(DEMAND in item.stash for item in items)
        if shared:
            reporter = self._config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None and self._worker is None and self._config.get_verbosity() >= 0:
                reporter.write_line(self._describe())
            self._begin_run(session)
        if any(FRESH in item.stash for item in items):
            self._prepare_fresh(session, others_only=shared)
        try:
            return (yield)
        finally:
            for each in (self._fresh, self._guard, self._session):
                if each is not None:
                    with self._borne("the stage could not be let go of"):
                        each.close()
            if self._production is not None:
                self._production.end()

    def _begin_run(self, session: pytest.Session) -> None:
        from pytest_stagegbo.session.logsizes import remember

        if self._no_stage is not None or self._begun:
            return
        self._begun = True
        try:
            self._keep_from_production()
            stage_session = self.session()
            stage_session.ensure()
            if stage_session.failed:
                return
            engine = stage_session.engine
            self._guard = _watched(engine, session)
        except StageGboError as error:
            self._no_stage = error
            return
        except BaseException as error:
            pass_on(error)
            self._no_stage = StageGboError("the stage can't be used", seen=said(error))
            return
        used = sorted(frozenset().union(*(item.stash[DEMAND].uses for item in session.items if DEMAND in item.stash)))
        threading.Thread(target=remember, args=(engine, used), name="stagegbo log sizes", daemon=True).start()

    def _prepare_fresh(self, session: pytest.Session, *, others_only: bool) -> None:
        with contextlib.suppress(Exception):  # which the first test that wants a stage is told
            self.fresh_stages(session).prepare(others_only=others_only)

    def _keep_from_production(self) -> None:
        """From now on, this process does not connect to production."""
        if self._production is None and self.settings.pytest.production_access == "refuse":
            from pytest_stagegbo.session.production_guard import ProductionGuard

            self._production = ProductionGuard(self.settings)
            self._production.begin()
            self._tell_production_guard()

    def _tell_production_guard(self) -> None:
        if self._production is not None:
            lifted = self._item is not None and self._item.get_closest_marker(PRODUCTION_ACCESS) is not None
            self._production.now(self._item.nodeid if self._item is not None else "", lifted=lifted)

    # -- one test

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Errors about production name the test; a marker lifts the ban for it, its fixtures included."""
        self._item = item
        self._tell_production_guard()
        try:
            return (yield)
        finally:
            self._item = None
            self._tell_production_guard()

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """After the markers `skip` and `skipif` were heard, before the first fixture of the test."""
        item.stash[BEGAN] = clocks.now()
        for key in (UNTOUCHED, KEPT):
            item.stash[key] = False
        item.stash[ASKED] = frozenset()
        if DEMAND in item.stash and not self._config.getoption("setupplan", False):
            self._refuse_without_tests()
            error = self._begin_test(item, item.stash[DEMAND])
            item.stash[UNTOUCHED] = self._no_stage is not None or isinstance(error, (LockTimeout, NotHeld))
            if error is not None:
                pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """A fixture may have added a marker (`request.applymarker`) when the time for the reset was over."""
        if list(item.iter_markers(MARKER))[:1] != item.stash.get(MARKED, []):
            pytest.fail(
                f"{MARKER} was added to this test after the collection, too late for the reset that it asks for\n"
                "what to do: mark the test in its source, or add the marker in pytest_collection_modifyitems",
                pytrace=False,
            )

    def _refuse_without_tests(self) -> None:
        """`--setup-only` has the fixtures of tests set up, and here there would be a reset for no test."""
        if not runs_tests(self._config):
            pytest.skip("no test is executed, so nothing is done to the stage")

    @real_files()
    def _begin_test(self, item: pytest.Item, wanted: Demand) -> StageGboError | None:
        """What kept the test from having what it asks of the stage."""
        from pytest_stagegbo.session.session import reminder

        self._begin_run(item.session)
        try:
            if self._no_stage is None:
                if self._guard is not None and wanted.resets:
                    self._guard.check()
                self.session().begin(item.nodeid, wanted)
                return None
            error: StageGboError = reminder(self._no_stage) if self._told else self._no_stage
            self._told = True
            return error
        except StageGboError as error:
            return error

    # -- fixtures that are asked for while a test runs

    def _claim(self, fixtures: frozenset[str]) -> None:
        """Have the test that runs take the locks and resets that fixtures need, if it has not yet."""
        item = self._item
        if item is None or fixtures <= item.stash.get(ASKED, frozenset()) or self._config.getoption("setupplan", False):
            return
        self._refuse_without_tests()
        asked = {*getattr(item, "fixturenames", ()), *item.stash.get(ASKED, ()), *fixtures}
        has = item.stash.get(DEMAND, Demand(frozenset(), ()))
        wanted = demand(asked, list(item.iter_markers(MARKER)), self.settings)
        if not wanted.uses <= has.uses:
            error = self._not_beside_fresh(item, fixtures) or self._begin_test(item, wanted)
            if error is not None:
                pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)
            item.stash[DEMAND] = wanted
        item.stash[ASKED] = item.stash.get(ASKED, frozenset()) | fixtures

    def _claim_for_end(self, fixtures: frozenset[str]) -> Callable[[], None]:
        """Have the test that runs share the containers that a fixture may use while it is torn down: one of wider
        scope ends with a test that may not use them. It is torn down in any case; what this returns tells of trouble.
        """
        item = self._item
        if item is None or self._session is None or not runs_tests(self._config):
            return lambda: None
        has = item.stash.get(DEMAND, Demand(frozenset(), ()))
        uses = demand(fixtures, [], self.settings).uses
        if uses <= has.uses:
            return lambda: None
        error = self._begin_test(item, Demand(has.uses | uses, ()))

        def tell() -> None:
            if error is not None:
                pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)

        return tell

    def _not_beside_fresh(self, item: pytest.Item, fixtures: frozenset[str]) -> StageGboError | None:
        """Waiting for the stage that the test itself has as its fresh one would never end."""
        if (
            TAKEN not in item.stash
            or self._session is None
            or item.stash[TAKEN].slot.engine is not self._session.engine
        ):
            return None
        names = ", ".join(sorted(fixtures))
        return NotHeld(
            f"the fresh stage of this test is the one that {names} would share with other tests",
            remedy=f"name {names} in the test's arguments and let there be more slots (--stage-slots=2): the test gets "
            "another one as its fresh stage then",
        )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """The stage is the test's own until here; so a teardown that fails is explained now."""
        try:
            return (yield)
        except BaseException as error:
            pass_on(error)
            if not isinstance(error, pytest.skip.Exception):
                item.stash[SECTIONS] = self._explain(item)
            raise
        finally:
            with contextlib.ExitStack() as ends:  # each of them, whatever becomes of the others
                if TAKEN in item.stash:
                    ends.callback(self._end_fresh, item, item.stash[TAKEN])
                    del item.stash[TAKEN]
                if self._session is not None:
                    ends.callback(self._session.end)

    def _end_fresh(self, item: pytest.Item, taken: Fresh) -> None:
        assert self._fresh is not None
        if item.stash.get(KEPT, False):
            self._fresh.let_go(taken)
        else:
            self._fresh.give_back(taken)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            explained = item.stash.get(SECTIONS, []) if call.when == "teardown" else self._explain(item)
            report.sections.extend(explained)
        return report

    @real_files()
    def _explain(self, item: pytest.Item) -> list[tuple[str, str]]:
        """What is added to the report of a failed test: titles and texts. Keeps the stage if it is to be kept.

        Raises nothing: the test's own failure has to be reported, whatever the test has done to this process.
        """
        found: list[tuple[str, str]] = []
        for part in (self._keep_stages, self._look_inside):  # first what nobody may reset meanwhile
            try:
                found += part(item)
            except BaseException as error:
                pass_on(error)
                found.append(("stage: not all of it could be looked at", said(error)))
        return found

    def _stages_of(self, item: pytest.Item) -> Iterator[tuple[StageEngine, list[str], int, Stage | None, str]]:
        """The stages that a test used: with the containers that it used, the slot, and how to call it."""
        if DEMAND in item.stash and self._guard is not None and not item.stash.get(UNTOUCHED, False):
            number = self._seat.number if self._seat is not None else 0
            yield self.engine(), sorted(item.stash[DEMAND].uses), number, self._stage, ""
        if TAKEN in item.stash:
            slot, stage = item.stash[TAKEN].slot, item.stash[TAKEN].stage
            yield slot.engine, list(stage.services), slot.number, stage, f"fresh stage {stage.project}: "

    def _keep_stages(self, item: pytest.Item) -> list[tuple[str, str]]:
        used = list(self._stages_of(item))
        if not used or not self.settings.pytest.keep:
            return []
        item.stash[KEPT] = True
        item.session.shouldstop = f"--stage-keep: {item.nodeid} failed and the stage is left as it was"
        if TAKEN in item.stash and self._fresh is not None:
            self._fresh.keep(item.stash[TAKEN], item.nodeid)
        if DEMAND in item.stash:
            self.session().keep(item.nodeid)
        looks = [f"{self.command(number)} shell {name}" for _, names, number, *_ in used for name in names]
        return [("stage kept as the test left it; to look inside", "\n".join(looks))]

    def _look_inside(self, item: pytest.Item) -> list[tuple[str, str]]:
        from pytest_stagegbo.failing import logs

        found = []
        for engine, names, _, stage, whose in self._stages_of(item):
            for title, text in logs(engine, names, item.stash.get(BEGAN, 0.0), stage):
                found.append((whose + title.removeprefix("stage ") if whose else title, text))
        return found

    @contextlib.contextmanager
    def _borne(self, doing: str) -> Iterator[None]:
        """What goes wrong within, of whatever type, is told at the session's end, and ends nothing else: a test may
        have patched anything that is called here."""
        try:
            yield
        except BaseException as error:
            pass_on(error)
            self.summary().trouble.append(f"{doing}: {said(error)}")

    def command(self, slot: int) -> str:
        """The command line aimed at what this run uses, for somebody to copy."""
        words = ["python", "-m", "pytest_stagegbo"]
        if self._lab is not None:
            words.append("--lab")
            chosen = self._chosen_lab()
            words[:0] = [f"{LAB_VARIABLE}={chosen}"] if isinstance(chosen, str) else []
        from_ini = self._config.getoption(destination("config")) is None
        config = self._given("config")
        if config and not (from_ini and "STAGEGBO_CONFIG" in os.environ):
            file = self._config.rootpath / os.path.expanduser(config)  # noqa: PTH111 - as settings do it
            words += ["--config", os.path.relpath(file, self._config.invocation_params.dir)]
        if self.settings.project != "STAGE-GBO":
            words += ["--project", self.settings.project]
        return shlex.join([*words, *(["--slot", str(slot)] if slot else [])])

    # -- reports

    def pytest_report_header(self) -> str | None:
        """Project and server, where the stage was spoken of when pytest began. Connects to nothing."""
        return self._header if self._worker is None else None

    def _describe(self) -> str:
        self._described = True
        from pytest_stagegbo.session.summary import header, pool_line

        try:
            line = pool_line(self.engine())
            return "\n".join([line, *self._seat.lines()]) if self._seat is not None else line
        except StageGboError as error:
            return f"{header(self.settings)}: {error.message}"
        except BaseException as error:
            pass_on(error)
            return f"{header(self.settings)}: {said(error)}"

    @pytest.hookimpl(trylast=True)  # xdist has ended its workers by then
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._worker is None and (self._session is not None or self._had_workers or self._workers_out):
            self._verify_at_the_end(session)
        if self._summary is None:
            return
        if self._session is not None:
            self._verify_events()
        if self._guard is not None:
            with self._borne("the stage's growth could not be measured"):
                doubt = self._guard.doubt()
                if doubt:
                    self._summary.trouble.append(f"disk limits did not hold all the time: {doubt}; see `doctor`")
                else:
                    self._summary.growth(self._guard.growth())
        if self._worker is not None:
            self._config.workeroutput["stagegbo"] = self._summary.to_json()  # type: ignore[attr-defined] # xdist's
        elif self._session is not None or self._had_workers:
            with self._borne("what this run noted could not be removed"):
                self._forget()

    def _verify_events(self) -> None:
        """A worker's part of the proof: what it did itself. The controller's `verify` has proven the rest."""
        assert self._session is not None
        try:
            if self._worker is not None:
                self._session.verify_events()
            if self._fresh is not None:
                self._fresh.verify_events()
        except BaseException as error:
            pass_on(error)
            self.summary().broken.append(said(error))
        finally:
            with self._borne("production could not be let go of"):
                self._session.stop_listening()

    def _verify_at_the_end(self, session: pytest.Session) -> None:
        """Once a run: workers have ended when their controller does. What can't be tried is not proven."""
        try:
            if not self.settings.pytest.verify:
                return
            from pytest_stagegbo.session.proof import prove

            lost = [f"worker {each}" for each in sorted(self._workers_out)]
            broken = prove(self.session(), self._seat, self.run, lost)
        except (StageGboError, pytest.UsageError) as error:
            broken = [str(error)]
        except BaseException as error:
            pass_on(error)
            broken = [f"the stage's isolation could not be proven: {said(error)}"]
        self.summary().broken += broken
        if self.summary().broken and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _forget(self) -> None:
        with contextlib.suppress(StageGboError):  # then nothing is known of it either
            self.session().forget(self.run)
            if self._seat is not None:
                self._seat.forget(self.run)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """xdist: a worker is about to start."""
        self.run = str(node.workerinput["testrunuid"])
        self._workers_out.add(str(node.workerinput["workerid"]))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """xdist: a worker has ended, and sends what it did to the stage, if it did not die."""
        output, number = getattr(node, "workeroutput", None), str(node.workerinput["workerid"])
        if output is None or number not in self._workers_out:  # an interrupted one is said to be down twice
            return
        self._workers_out.discard(number)
        found = output.get("stagegbo")
        if found:
            from pytest_stagegbo.session.summary import Summary

            self._had_workers = True
            with self._borne(f"what worker {number} did is not known"):
                self.summary().merge(Summary.from_json(found))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._summary is None or self._worker is not None:
            return
        with self._borne("the summary could not be made"):
            self._summarize(terminalreporter, self._summary)
        if self._summary.trouble:
            terminalreporter.section("stage-gbo: trouble", yellow=True)
            for line in "\n".join(self._summary.trouble).splitlines():
                terminalreporter.line(line)

    def _summarize(self, terminalreporter: pytest.TerminalReporter, summary: Summary) -> None:
        lines = summary.lines(self._settings)
        if lines and not self._described:  # the workers collected the tests
            lines.insert(0, self._describe())
        if lines:
            terminalreporter.section("stage-gbo")
            for line in lines:
                terminalreporter.line(line)
        if summary.broken:
            terminalreporter.section("stage-gbo: isolation", red=True)
            for line in "\n".join(summary.broken).splitlines():
                terminalreporter.line(line)


def plugin_of(config: pytest.Config) -> StagePlugin:
    """The plugin's object of a run."""
    plugin = config.pluginmanager.get_plugin(PLUGIN_NAME)
    assert isinstance(plugin, StagePlugin)
    return plugin


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """What is wrong with what pytest was given ends it."""
    problem = ""
    try:
        yield
    except StageGboError as error:
        problem = str(error)
    if problem:
        raise pytest.UsageError(problem)


def _watched(engine: StageEngine, session: pytest.Session) -> DiskGuard:
    """The guard of a stage's disk, which has looked once and goes on. Raises as `DiskGuard.check` does."""
    from pytest_stagegbo.session.guard import DiskGuard

    def stop(error: NoRoom) -> None:
        session.shouldstop = str(error)

    guard = DiskGuard(engine, stop)
    guard.check()
    guard.start()
    return guard
