"""Reserves containers for a test before it begins, resets those that it wants clean, and releases them afterwards."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import LockTimeout, NotHeld, StageGboError
from pytest_stagegbo.plugin.running import pass_on, runs_tests, skipped_by_unittest
from pytest_stagegbo.plugin.stash import ASKED, BEGAN, DEMAND, FAILURE, FRESH, KEPT, MARKED, SECTIONS, TAKEN, UNTOUCHED
from pytest_stagegbo.realfiles import real_files
from pytest_stagegbo.session.requirements import BASELINE, MARKER, QUIET, Requirements, baseline_of, demand

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pytest_stagegbo.credentials import Credentials
    from pytest_stagegbo.plugin.configuration import Configuration
    from pytest_stagegbo.plugin.failures import Failures
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.plugin.production import ProductionBan
    from pytest_stagegbo.plugin.provisioning import Provisioning
    from pytest_stagegbo.session.fresh import Fresh
    from pytest_stagegbo.stage import Stage

__all__ = ["Reservations"]


class Reservations:
    """Takes the locks of a test, has containers reset for it, and lends it a fresh stage."""

    def __init__(
        self,
        config: pytest.Config,
        configuration: Configuration,
        process: StageProcess,
        production: ProductionBan,
        provisioning: Provisioning,
        failures: Failures,
    ) -> None:
        self._config = config
        self._configuration = configuration
        self._process = process
        self._production = production
        self._provisioning = provisioning
        self._failures = failures
        self._item: pytest.Item | None = None
        """The test that runs, its setup and teardown included."""
        self._told = False
        """Whether a test has said already why there is no stage."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._item = item
        try:
            return (yield)
        finally:
            self._item = None

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Reserve what the test requires, after pytest has looked at `skip` and `skipif` and before the first
        fixture."""
        why = skipped_by_unittest(item) if _is_concerned(item) else None
        if why is not None:
            pytest.skip(why)
        if item.stash.get(KEPT, False):  # by an earlier attempt, whose report plugins that run tests again do not show
            pytest.fail(f"the stage is kept as this test left it when it failed:\n{item.stash[FAILURE]}", pytrace=False)
        item.stash[BEGAN] = clocks.now()
        for key in (UNTOUCHED, KEPT):
            item.stash[key] = False
        item.stash[ASKED] = frozenset()
        if DEMAND in item.stash and not self._config.getoption("setupplan", False):
            self._provisioning.refuse_without_tests()
            error = self._begin_test(item, item.stash[DEMAND])
            item.stash[UNTOUCHED] = self._provisioning.no_stage is not None or isinstance(error, (LockTimeout, NotHeld))
            if error is not None:
                pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Fail the test if a fixture has added a marker of the plugin (`request.applymarker`), which came too late."""
        for marker, effect in ((MARKER, "the reset"), (QUIET, "the quiet"), (BASELINE, "the baseline")):
            known = [mark for mark in item.stash.get(MARKED, []) if mark.name == marker]
            if list(item.iter_markers(marker))[:1] == known:
                continue
            pytest.fail(
                f"{marker} was added to this test after the collection, too late for {effect} that it asks for\n"
                "what to do: mark the test in its source, or add the marker in pytest_collection_modifyitems",
                pytrace=False,
            )
        problem = ""
        if DEMAND in item.stash and item.stash[DEMAND].baseline and self._process.opened is not None:
            try:
                self._process.opened.baselines.check()
            except StageGboError as error:
                problem = f"{type(error).__name__}: {error}"
        if problem:  # said here, since within the `except` pytest would print both errors
            pytest.fail(problem, pytrace=False)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
        """Release what the test reserved. Until here it is the test's own, so a teardown that fails is explained
        first."""
        try:
            return (yield)
        except BaseException as error:
            pass_on(error)
            if not isinstance(error, pytest.skip.Exception):
                lines = traceback.format_exception(type(error), error, error.__traceback__)
                item.stash[SECTIONS] = self._failures.explain(item, "teardown", lambda: "".join(lines))
            raise
        finally:
            with contextlib.ExitStack() as ends:  # each of them, whatever becomes of the others
                if TAKEN in item.stash:
                    ends.callback(self._end_fresh, item, item.stash[TAKEN])
                    del item.stash[TAKEN]
                if self._process.opened is not None:
                    after = nextitem.stash.get(DEMAND, None) if nextitem is not None else None
                    ends.callback(self._process.opened.end, after.quiet if after is not None else frozenset())

    @real_files()
    def _begin_test(self, item: pytest.Item, wanted: Requirements) -> StageGboError | None:
        """Reserve what a test requires of the stage, and return the error if that fails."""
        from pytest_stagegbo.session.outcome import reminder

        provisioning = self._provisioning
        provisioning.begin(item.session)
        if self._process.assignment is not None:  # also of a test that does not get what it wants there
            item.user_properties.append(("stage.slot", self._process.assignment.number))
        try:
            if provisioning.no_stage is None:
                if provisioning.guard is not None and wanted.resets:
                    provisioning.guard.check()
                self._note(item, wanted)
                return None
            error: StageGboError = reminder(provisioning.no_stage) if self._told else provisioning.no_stage
            self._told = True
            return error
        except StageGboError as error:
            return error

    def _note(self, item: pytest.Item, wanted: Requirements) -> None:
        """Reserve, and store at the test its wait and its resets, which reports show."""
        session, recording = self._process.session(), self._process.recording
        summary = self._process.summary()
        waits, before = len(summary.waits), {names: len(times) for names, times in summary.resets.items()}
        began = clocks.monotonic()
        try:
            session.begin(item.nodeid, wanted)
        finally:
            if recording is not None:
                waited = sum(summary.waits[waits:]) if len(summary.waits) > waits else clocks.monotonic() - began
                recording.reserved(wanted, began, waited)
        item.user_properties += [("stage.waited", round(seconds, 3)) for seconds in summary.waits[waits:]]
        for names, times in summary.resets.items():
            for seconds in times[before.get(names, 0) :]:
                item.user_properties.append((f"stage.reset.{'+'.join(names)}", round(seconds, 3)))
                item.stash[BEGAN] = clocks.now()  # what the reset stopped and started is not the test's

    # -- fixtures that are asked for while a test runs; see `Asking`

    def claim(self, fixtures: frozenset[str]) -> None:
        """Take the locks and resets that fixtures need for the running test, if it has not got them yet."""
        item = self._item
        if item is None or fixtures <= item.stash.get(ASKED, frozenset()) or self._config.getoption("setupplan", False):
            return
        self._provisioning.refuse_without_tests()
        asked = {*getattr(item, "fixturenames", ()), *item.stash.get(ASKED, ()), *fixtures}
        has = item.stash.get(DEMAND, Requirements(frozenset(), ()))
        marks, quiet = list(item.iter_markers(MARKER)), next(item.iter_markers(QUIET), None) is not None
        baseline = baseline_of(next(item.iter_markers(BASELINE), None))
        wanted = demand(asked, marks, self._configuration.settings, quiet=quiet, baseline=baseline)
        if not wanted.uses <= has.uses:
            error = self._not_beside_fresh(item, fixtures) or self._begin_test(item, wanted)
            if error is not None:
                pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)
            item.stash[DEMAND] = wanted
        item.stash[ASKED] = item.stash.get(ASKED, frozenset()) | fixtures

    def claim_for_end(self, fixtures: frozenset[str]) -> Callable[[], None]:
        """Have the test that runs share the containers that a fixture may use while it is torn down: one of wider
        scope ends with a test that may not use them. It is torn down in any case; what this returns tells of trouble.
        """
        item = self._item
        if item is None or self._process.opened is None or not runs_tests(self._config):
            return lambda: None
        has = item.stash.get(DEMAND, Requirements(frozenset(), ()))
        uses = demand(fixtures, [], self._configuration.settings).uses
        if uses <= has.uses:
            return lambda: None
        error = self._begin_test(item, Requirements(has.uses | uses, ()))

        def tell() -> None:
            if error is not None:
                pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)

        return tell

    def _not_beside_fresh(self, item: pytest.Item, fixtures: frozenset[str]) -> StageGboError | None:
        """Raise `NotHeld` if the test has the stage as its fresh one: waiting for it would never end."""
        session = self._process.opened
        if TAKEN not in item.stash or session is None or item.stash[TAKEN].slot.engine is not session.engine:
            return None
        names = ", ".join(sorted(fixtures))
        return NotHeld(
            f"the fresh stage of this test is the one that {names} would share with other tests",
            remedy=f"name {names} in the test's arguments and let there be more slots (--stage-slots=2): the test gets "
            "another one as its fresh stage then",
        )

    # -- a stage of the test's own

    @real_files()
    def fresh(self, item: pytest.Item, credentials: Credentials | None) -> Stage:
        """Return a clean stage that nobody else uses until the test has been torn down."""
        self._provisioning.refuse_without_tests()
        problem, began = "", clocks.monotonic()
        try:
            self._production.begin()
            stages, shared = self._provisioning.fresh_stages(item.session), DEMAND in item.stash
            item.stash[TAKEN] = stages.take(item.nodeid, credentials, others_only=shared)
        except StageGboError as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:  # said here, since within the `except` pytest would print both errors
            pytest.fail(problem, pytrace=False)
        if self._process.recording is not None:
            self._process.recording.took_fresh(item.stash[TAKEN].slot.engine, began)
        return item.stash[TAKEN].stage

    def _end_fresh(self, item: pytest.Item, taken: Fresh) -> None:
        stages = self._provisioning.fresh
        assert stages is not None  # the test has taken one of them
        if item.stash.get(KEPT, False):
            stages.let_go(taken)
        else:
            stages.give_back(taken)


def _is_concerned(item: pytest.Item) -> bool:
    """Whether the stage has anything to do with a test."""
    return DEMAND in item.stash or FRESH in item.stash
