"""The host's own files, while a test has its process see made-up ones through pyfakefs.

What this package does for a test, on the test's thread, runs with the fake paused. Threads of its own go on meanwhile
(disk guard, resets behind a test), so its modules are also among those that pyfakefs leaves alone. pyfakefs is never
imported here.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    T = TypeVar("T")

__all__ = ["begun_in_real_files", "leave_our_modules_alone", "real_files"]

PACKAGE = __name__.partition(".")[0]


@contextlib.contextmanager
def real_files() -> Iterator[None]:
    """For a block, or as a decorator: `@real_files()`. May be nested, and entered by several threads at once."""
    faking = leave_our_modules_alone()
    if faking is None:
        yield
        return
    _pause(faking)
    try:
        yield
    finally:
        _resume()


def begun_in_real_files(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """As `contextlib.contextmanager`; what comes before and after the block sees the host's files, the block does not.

    An error of the block is not raised at the `yield` of `function`.
    """
    manager = contextlib.contextmanager(function)

    @functools.wraps(function)
    @contextlib.contextmanager
    def within(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with contextlib.ExitStack() as stack:
            with real_files():
                value = stack.enter_context(manager(*args, **kwargs))
            try:
                yield value
            finally:
                with real_files():
                    stack.close()

    return within


def leave_our_modules_alone() -> Any:
    """Tell pyfakefs, if somebody has imported it, to fake no file for this package; its class `Patcher`, or None."""
    faking = getattr(sys.modules.get("pyfakefs.fake_filesystem_unittest"), "Patcher", None)
    if faking is not None:
        faking.RUNTIME_SKIPMODULES.setdefault(PACKAGE, [PACKAGE])
    return faking


def _pause(faking: Any) -> None:
    with _lock:
        if not _depth:
            _paused[:] = [each for each in (faking.PATCHER, getattr(faking, "DOC_PATCHER", None)) if _is_faking(each)]
            for each in _paused:
                each.pause()
        _depth.append(None)


def _resume() -> None:
    with _lock:
        _depth.pop()
        if not _depth:
            for each in reversed(_paused):
                each.resume()
            _paused.clear()


def _is_faking(patcher: Any) -> bool:
    """A test that has paused the fake itself wants it to stay so."""
    return patcher is not None and bool(patcher.is_patching)


_lock = threading.Lock()
_depth: list[None] = []
"""One for each block that runs."""
_paused: list[Any] = []
