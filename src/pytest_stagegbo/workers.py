"""Threads that keep no process from ending, and work that stops writing once its caller was interrupted."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Executor, Future, wait
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["GRACE", "INTERRUPTED", "LOOK", "Workers", "at_once", "interrupted"]

A = TypeVar("A")
T = TypeVar("T")

GRACE = 3.0
"""Seconds for work to end, once its caller was interrupted."""
LOOK = 0.5
"""Seconds after which a thread that waits for others looks up. A signal that comes in the moment before the main thread
falls asleep does not wake it: CPython would notice Ctrl-C only once the work is done."""
INTERRUPTED: ContextVar[threading.Event | None] = ContextVar("INTERRUPTED", default=None)
"""Set in threads whose caller may be interrupted: by Ctrl-C, which Python tells the main thread only."""


def interrupted() -> bool:
    """Whether whoever had this thread's work done was interrupted, and no longer holds the stage's locks for it."""
    event = INTERRUPTED.get()
    return event is not None and event.is_set()


def at_once(call: Callable[[A], T], arguments: Collection[A], name: str, kept: Workers | None = None) -> list[T]:
    """The result of `call` for each argument, each in a thread. Raises the first one's error when all have ended.

    When the caller is interrupted, or whoever the caller itself works for, they write nothing more. They are not waited
    for longer than `GRACE`.

    Args:
        kept: Threads of the caller to use again and again, instead of new ones.
    """
    event = INTERRUPTED.get() or threading.Event()

    def one(argument: A) -> T:
        INTERRUPTED.set(event)
        return call(argument)

    workers = kept or Workers(len(arguments) or 1, name)
    running: list[Future[T]] = []
    try:
        for argument in arguments:
            running.append(workers.submit(one, argument))
        while wait(running, timeout=LOOK).not_done:
            pass
    except BaseException:
        event.set()
        for each in running:
            each.cancel()
        workers.settle(GRACE)
        raise
    finally:
        if workers is not kept:
            workers.shutdown(wait=False, cancel_futures=True)
    return [each.result() for each in running]


class Workers(Executor):
    """As `ThreadPoolExecutor`, whose threads the interpreter waits for at its end, however long their calls take.

    Args:
        most: Threads at most. One is started for a call that no thread is free for.
        name: Of the threads, for debuggers.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._open = 0
        self._closed = False
        self._interrupted = INTERRUPTED.get() or threading.Event()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("these threads have been shut down")
            self._open += 1  # before anybody else can see the call, should this thread be interrupted here
            self._calls.put((future, lambda: fn(*args, **kwargs)))
            if len(self._threads) < min(self._open, self._most):
                thread = threading.Thread(target=self._work, name=f"{self._name} {len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def _work(self) -> None:
        INTERRUPTED.set(self._interrupted)
        while (call := self._calls.get()) is not None:
            future, function = call
            del call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            del future, function  # while this thread waits for the next call, nothing of this one stays
            with self._settled:
                self._open -= 1
                self._settled.notify_all()

    def settle(self, timeout: float) -> None:
        """Wait until no call is under way, also one whose `submit` was interrupted before it returned; no longer than
        `timeout` seconds."""
        with self._settled:
            self._settled.wait_for(lambda: self._open <= 0, timeout)

    def interrupt(self) -> None:
        """Have the calls write nothing more, and begin none that waits for a thread. `settle` waits for their end."""
        self._interrupted.set()
        self.shutdown(wait=False, cancel_futures=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Whoever is interrupted waits for no call."""
        if kind is not None and not issubclass(kind, Exception):
            self.interrupt()
        else:
            self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls. Threads end when their calls have."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        while cancel_futures:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            if call is not None:
                call[0].cancel()
        for _ in threads:
            self._calls.put(None)
        if wait:
            for thread in threads:
                thread.join()
