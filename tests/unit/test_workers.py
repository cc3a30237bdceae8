"""Work in threads ends with its caller, or soon after."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest

from pytest_stagegbo import workers
from pytest_stagegbo.apply import scheduler as applying
from pytest_stagegbo.apply.scheduler import apply
from pytest_stagegbo.errors import OperationFailed
from pytest_stagegbo.plan.steps import StartClone
from pytest_stagegbo.progress import Silent
from pytest_stagegbo.slots.pool import Pool
from pytest_stagegbo.workers import Workers, at_once, interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.plan.steps import Step

PATIENCE = 30.0


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a call waits for that does not end by itself."""
    event = threading.Event()
    yield event
    event.set()


def test_calls_have_results_and_errors() -> None:
    with Workers(2, "test") as pool:
        assert list(pool.map(lambda number: number * 2, range(20))) == list(range(0, 40, 2))
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0).result(PATIENCE)


def test_a_call_that_waits_for_a_thread_can_be_cancelled(never: threading.Event) -> None:
    pool = Workers(1, "test")
    began = threading.Event()
    first = pool.submit(lambda: began.set() or never.wait(PATIENCE))  # type: ignore[func-returns-value]
    second = pool.submit(never.wait)
    assert began.wait(PATIENCE)
    pool.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled()
    never.set()
    assert first.result(PATIENCE)
    with pytest.raises(RuntimeError):
        pool.submit(never.wait)


def test_calls_and_what_they_call_in_threads_of_their_own_know_of_an_interruption() -> None:
    pool = Workers(1, "test")
    began = threading.Event()

    def until_interrupted(_: int) -> bool:
        began.set()
        deadline = time.monotonic() + PATIENCE
        while not interrupted() and time.monotonic() < deadline:
            time.sleep(0.001)
        return interrupted()

    with_threads = pool.submit(at_once, until_interrupted, [1, 2], "below")
    waiting = pool.submit(until_interrupted, 3)
    assert began.wait(PATIENCE)
    pool.interrupt()
    assert with_threads.result(PATIENCE) == [True, True]
    assert waiting.cancelled()
    assert not interrupted()


def test_the_end_of_a_pool_of_slots_interrupts_what_is_not_done_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset behind the tests wrote to the stage for as long as the process lived."""
    monkeypatch.setattr("pytest_stagegbo.slots.pool.END_SECONDS", 0.0)
    began, ended = threading.Event(), threading.Event()

    def ensure(_: object) -> None:
        began.set()
        deadline = time.monotonic() + PATIENCE
        while not interrupted() and time.monotonic() < deadline:
            time.sleep(0.001)
        if interrupted():
            ended.set()
        raise OperationFailed("the run was interrupted")

    engine: Any = MagicMock()
    pool = Pool({0: engine}, None, ensure, 1.0)
    pool.prepare()
    assert began.wait(PATIENCE)
    pool.close()
    assert ended.is_set()
    assert not engine.reset.called


def test_a_call_that_goes_on_keeps_no_process_from_ending() -> None:
    code = """
import threading
from pytest_stagegbo.workers import Workers
began = threading.Event()
Workers(1, "test").submit(lambda: (began.set(), threading.Event().wait(600)))
began.wait()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


def test_a_block_that_is_interrupted_waits_for_no_call(never: threading.Event) -> None:
    began = threading.Event()
    calls = []

    def block() -> None:
        with Workers(1, "test") as pool:
            calls.append(pool.submit(lambda: began.set() or never.wait(PATIENCE)))  # type: ignore[func-returns-value]
            calls.append(pool.submit(never.wait))
            assert began.wait(PATIENCE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert [call.done() for call in calls] == [False, True]
    assert calls[1].cancelled()


def test_a_call_whose_submission_was_interrupted_is_waited_for(never: threading.Event) -> None:
    """Ctrl-C may come when the thread is there and its future is not yet returned."""
    ended: list[str] = []
    both = threading.Barrier(2, timeout=PATIENCE)

    class Interrupted(Workers):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(fn, *args, **kwargs)
            if args == ("second",):
                raise KeyboardInterrupt
            return future

    def call(name: str) -> None:
        both.wait()
        never.wait(0.2)
        ended.append(name)

    with pytest.raises(KeyboardInterrupt):
        at_once(call, ["first", "second"], "test", Interrupted(2, "test"))
    assert sorted(ended) == ["first", "second"]


def test_threads_of_a_thread_hear_of_the_interruption_and_kept_ones_work_on(
    never: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden copy is stopped in threads of a slot's thread, and resets keep theirs."""
    monkeypatch.setattr(workers, "GRACE", 0.1)
    kept = Workers(2, "test")
    heard: list[bool] = []
    done = threading.Event()

    def inner(_: str) -> None:
        interrupt()
        never.wait(PATIENCE)
        heard.append(interrupted())
        done.set()

    with pytest.raises(KeyboardInterrupt):
        at_once(lambda name: at_once(inner, [name], "inner", kept), ["slot"], "outer")
    never.set()
    assert done.wait(PATIENCE)
    assert heard == [True]
    assert at_once(lambda _: interrupted(), ["again"], "again", kept) == [False]


def interrupt() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def test_ctrl_c_does_not_wait_for_the_steps_under_way(never: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads see the interruption, so that they write nothing more."""
    monkeypatch.setattr(applying, "GRACE", 0.1)
    told: list[bool] = []
    done = threading.Event()
    both = threading.Barrier(2, timeout=PATIENCE)

    def do(_: Step) -> None:
        if both.wait() == 0:
            interrupt()
        never.wait(PATIENCE)
        told.append(interrupted())
        if len(told) == 2:
            done.set()

    with pytest.raises(KeyboardInterrupt):
        apply([StartClone(subject="cache"), StartClone(subject="drive")], do, Silent())
    assert not told
    never.set()
    assert done.wait(PATIENCE)
    assert told == [True, True]
    assert not interrupted()


def test_nor_does_it_further_out(never: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are provisioned in threads of their own, which Python tells nothing."""
    monkeypatch.setattr(applying, "GRACE", 0.1)
    monkeypatch.setattr(workers, "GRACE", PATIENCE)
    ended: list[BaseException] = []
    both = threading.Barrier(2, timeout=PATIENCE)

    def do(_: Step) -> None:
        if both.wait() == 0:
            interrupt()
        never.wait(PATIENCE)

    def provision(name: str) -> None:
        try:
            apply([StartClone(subject=name)], do, Silent())
        except BaseException as error:
            ended.append(error)
            raise

    with pytest.raises(KeyboardInterrupt):
        at_once(provision, ["cache", "drive"], "test")
    assert [type(error).__name__ for error in ended] == ["OperationFailed", "OperationFailed"]
