"""Clocks that a test does not move, for deadlines and for what is compared with the stage's own times.

Tests freeze or replace the time of their process, with freezegun, time-machine or `monkeypatch`, while sessions wait
for locks and services. freezegun replaces the functions of `time`, and every module's references to them, but for
`clock_gettime`. time-machine changes `clock_gettime` itself, but for `CLOCK_REALTIME` only. References in a closure are
out of reach for both, and for `monkeypatch`. So nothing else in this package asks `time` what time it is.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["awake_or_not", "monotonic", "now", "sleep", "utc_text"]

_LINUX_REALTIME_COARSE = 5
"""linux/time.h. Python has no name for it. It is at most one tick of the kernel (10 ms) behind `CLOCK_REALTIME`."""


def _clocks() -> tuple[
    Callable[[], float], Callable[[], float], Callable[[], float], Callable[[float], None], Callable[[str], str]
]:
    gettime, pause, to_utc, to_text = time.clock_gettime, time.sleep, time.gmtime, time.strftime
    steady = time.CLOCK_MONOTONIC
    through = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # on macOS this one counts sleep as well
    real = _LINUX_REALTIME_COARSE if sys.platform == "linux" else time.CLOCK_REALTIME

    def monotonic() -> float:
        """Seconds, steadily rising, from an unknown moment."""
        return gettime(steady)

    def awake_or_not() -> float:
        """As `monotonic`, and it goes on while the machine sleeps."""
        return gettime(through)

    def now() -> float:
        """Seconds since the epoch."""
        return gettime(real)

    def sleep(seconds: float) -> None:
        """Do nothing for so many seconds."""
        pause(seconds)

    def utc_text(form: str) -> str:
        """Now, in UTC, as `time.strftime` writes it."""
        return to_text(form, to_utc(now()))

    return monotonic, awake_or_not, now, sleep, utc_text


monotonic, awake_or_not, now, sleep, utc_text = _clocks()
