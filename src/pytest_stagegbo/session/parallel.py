"""Makes several calls at once, and waits for them no longer than the caller says."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from pytest_stagegbo import clocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["run_parallel"]

T = TypeVar("T")


def run_parallel(calls: Mapping[str, Callable[[], T]], seconds: float) -> dict[str, T | Exception]:
    """The result of each call, or the exception that it raised; `TimeoutError` for one that is still at it.

    Args:
        calls: By whatever name the caller knows them.
        seconds: How long to wait for all of them. One that takes longer goes on in a daemon thread, which keeps no
            process from ending.
    """
    results: dict[str, T | Exception] = {}

    def run(name: str, call: Callable[[], T]) -> None:
        try:
            results[name] = call()
        except Exception as error:
            results[name] = error
        except BaseException as error:  # of a test that patched what is called here: pytest.fail, SystemExit
            results[name] = RuntimeError(f"{type(error).__name__}: {error}")

    threads = [
        threading.Thread(target=run, args=item, name=f"stagegbo {item[0]}", daemon=True) for item in calls.items()
    ]
    for thread in threads:
        thread.start()
    deadline = clocks.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - clocks.monotonic()))
    late = TimeoutError(f"no answer within {seconds:g} s")
    return {name: results.get(name, late) for name in calls}
