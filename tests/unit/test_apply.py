"""Doing steps: in order, side by side, and no further than a failure or Ctrl-C allows."""

from __future__ import annotations

import concurrent.futures
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from fakes import Journal

from pytest_stagegbo.apply.scheduler import AT_ONCE, apply
from pytest_stagegbo.plan.steps import Step

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0
"""Seconds after which something that should have happened at once has not."""


class Do(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "do"


class Inspection(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "look"
    changes: ClassVar[bool] = False


def step(subject: str, *after: str) -> Do:
    return Do(subject=subject, after=frozenset(f"do:{name}" for name in after))


class Doer:
    """Notes what was begun, and fails where the test wants it."""

    def __init__(self, **failures: Exception) -> None:
        self._failures = failures
        self._lock = threading.Lock()
        self.begun: list[str] = []

    def __call__(self, step: Step) -> None:
        with self._lock:
            self.begun.append(step.subject)
        if step.subject in self._failures:
            raise self._failures[step.subject]


class TestOrder:
    def test_a_step_waits_for_those_that_it_comes_after(self) -> None:
        doer = Doer()
        apply([step("last", "middle"), step("middle", "first"), step("first")], doer, Journal())
        assert doer.begun == ["first", "middle", "last"]

    def test_a_step_waits_for_all_of_several(self) -> None:
        both = threading.Barrier(2, timeout=PATIENCE)
        ended: list[str] = []

        def do(step: Step) -> None:
            if step.subject != "last":
                both.wait()
            ended.append(step.subject)

        apply([step("last", "one", "other"), step("one"), step("other")], do, Journal())
        assert ended[-1] == "last"

    def test_a_key_that_the_plan_lacks_needs_nothing(self) -> None:
        doer = Doer()
        apply([step("only", "done-long-ago")], doer, Journal())
        assert doer.begun == ["only"]

    def test_nothing_to_do_is_done(self) -> None:
        assert apply([], Doer(), Journal()) == ()


class TestParallelism:
    def test_independent_steps_run_at_once(self) -> None:
        everybody = threading.Barrier(AT_ONCE, timeout=PATIENCE)
        apply([step(str(number)) for number in range(AT_ONCE)], lambda _: void(everybody.wait()), Journal())

    def test_a_step_begins_as_soon_as_its_own_are_done(self) -> None:
        """`next` needs `quick` only, and `slow` ends only once `next` has begun."""
        reached = threading.Event()

        def do(step: Step) -> None:
            if step.subject == "next":
                reached.set()
            if step.subject == "slow":
                assert reached.wait(PATIENCE)

        apply([step("slow"), step("quick"), step("next", "quick")], do, Journal())

    def test_steps_that_only_look_do_not_keep_others_from_beginning(self) -> None:
        reached = threading.Event()

        def do(step: Step) -> None:
            if isinstance(step, Inspection):
                assert reached.wait(PATIENCE)
            else:
                reached.set()

        apply([*(Inspection(subject=str(number)) for number in range(2 * AT_ONCE)), step("change")], do, Journal())

    def test_no_more_than_a_few_change_something_at_once(self) -> None:
        inside: set[str] = set()
        most: list[int] = []

        def do(step: Step) -> None:
            inside.add(step.subject)
            most.append(len(inside))
            time.sleep(0.02)  # long enough for as many as may to begin
            inside.remove(step.subject)

        apply([step(str(number)) for number in range(3 * AT_ONCE)], do, Journal())
        assert max(most) == AT_ONCE

    def test_more_steps_than_may_run_at_once_are_all_done(self) -> None:
        doer = Doer()
        apply([step(str(number)) for number in range(5 * AT_ONCE)], doer, Journal())
        assert sorted(doer.begun, key=int) == [str(number) for number in range(5 * AT_ONCE)]


def void(_: object) -> None: ...


class TestFailure:
    def test_the_first_error_is_raised(self) -> None:
        error = ValueError("broken")
        with pytest.raises(ValueError, match="broken") as caught:
            apply([step("one")], Doer(one=error), Journal())
        assert caught.value is error

    def test_what_comes_after_a_failure_is_not_begun(self) -> None:
        doer = Doer(one=ValueError())
        with pytest.raises(ValueError):
            apply([step("one"), step("two", "one"), step("three", "two")], doer, Journal())
        assert doer.begun == ["one"]

    def test_what_is_independent_of_a_failure_is_not_begun_either(self) -> None:
        """`next` is ready when `slow` ends, which it does only after `broken` has failed."""
        journal = Watched("do:broken")
        begun: list[str] = []

        def do(step: Step) -> None:
            begun.append(step.subject)
            if step.subject == "broken":
                raise ValueError
            if step.subject == "slow":
                assert journal.over.wait(PATIENCE)

        with pytest.raises(ValueError):
            apply([step("broken"), step("slow"), step("next", "slow")], do, journal)
        assert sorted(begun) == ["broken", "slow"]

    def test_what_is_under_way_is_waited_for(self) -> None:
        journal = Watched("do:broken")

        def do(step: Step) -> None:
            if step.subject == "broken":
                raise ValueError
            assert journal.over.wait(PATIENCE)

        with pytest.raises(ValueError):
            apply([step("broken"), step("slow")], do, journal)
        assert journal.ended["do:slow"] is None

    def test_steps_beyond_those_that_may_run_at_once_are_not_begun_after_a_failure(self) -> None:
        """As many run as may when the first one fails, and none of those that wait for their turn is begun."""
        journal = Watched("do:0")
        everybody = threading.Barrier(AT_ONCE, timeout=PATIENCE)
        begun: list[str] = []

        def do(step: Step) -> None:
            begun.append(step.subject)
            everybody.wait()
            if step.subject == "0":
                raise ValueError
            assert journal.over.wait(PATIENCE)

        with pytest.raises(ValueError):
            apply([step(str(number)) for number in range(2 * AT_ONCE)], do, journal)
        assert sorted(begun, key=int) == [str(number) for number in range(AT_ONCE)]

    def test_further_failures_are_noted(self) -> None:
        both = threading.Barrier(2, timeout=PATIENCE)

        def do(step: Step) -> None:
            both.wait()
            raise ValueError(step.subject)

        journal = Journal()
        with pytest.raises(ValueError) as caught:
            apply([step("one"), step("other")], do, journal)
        (note,) = journal.notes
        assert {note, f"also failed: {caught.value}"} == {"also failed: one", "also failed: other"}

    def test_steps_that_wait_for_each_other_are_named(self) -> None:
        doer = Doer()
        with pytest.raises(RuntimeError, match="steps wait for each other: do:one, do:other"):
            apply([step("one", "other"), step("other", "one"), step("third")], doer, Journal())
        assert doer.begun == ["third"]


class Watched(Journal):
    """Knows when one piece of work is over."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key
        self.over = threading.Event()

    def end(self, key: str, error: BaseException | None = None) -> None:
        super().end(key, error)
        if key == self._key:
            self.over.set()


class TestInterrupt:
    """Ctrl-C reaches the main thread, which waits while the others work."""

    @pytest.fixture(autouse=True)
    def _heeded(self) -> Iterator[None]:
        """Shells start what runs in the background with SIGINT ignored."""
        found = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, found)

    def test_what_is_under_way_ends_and_nothing_else_begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        main_waits, interrupted = threading.Event(), threading.Event()

        def wait(*arguments: Any, **options: Any) -> Any:
            try:
                main_waits.set()
                return concurrent.futures.wait(*arguments, **options)
            except KeyboardInterrupt:
                interrupted.set()
                raise

        monkeypatch.setattr("pytest_stagegbo.apply.scheduler.wait", wait)
        journal, begun = Journal(), list[str]()
        main = threading.get_ident()

        def do(step: Step) -> None:
            begun.append(step.subject)
            assert main_waits.wait(PATIENCE)
            if step.subject == "0":
                for _ in range(50):  # a signal just before the main thread blocks is seen only with the next one
                    signal.pthread_kill(main, signal.SIGINT)
                    if interrupted.wait(0.2):
                        break
            assert interrupted.wait(PATIENCE)

        busy = [str(number) for number in range(AT_ONCE)]
        with pytest.raises(KeyboardInterrupt):
            apply([*map(step, busy), step("next", "0"), step("other")], do, journal)
        assert sorted(begun, key=int) == busy
        assert journal.ended == {f"do:{name}": None for name in busy}


class TestReports:
    def test_progress_hears_of_the_beginning_and_the_end(self) -> None:
        journal = Journal()
        apply([step("one"), step("two", "one")], Doer(), journal)
        assert journal.begun == ["do:one", "do:two"]
        assert journal.ended == {"do:one": None, "do:two": None}

    def test_progress_hears_of_the_error(self) -> None:
        error, journal = ValueError(), Journal()
        with pytest.raises(ValueError):
            apply([step("one")], Doer(one=error), journal)
        assert journal.ended == {"do:one": error}

    def test_timings_are_in_the_order_of_beginning(self) -> None:
        found = apply([step("two", "one"), step("one")], Doer(), Journal())
        assert [timing.key for timing in found] == ["do:one", "do:two"]
        assert 0 <= found[0].began <= found[0].ended <= found[1].began <= found[1].ended
