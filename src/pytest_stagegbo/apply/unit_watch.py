"""Whether the units of a clone that does not answer can still come up: asked of the clone's own systemd.

A service that somebody stopped is started. One that failed, or that waits for another unit which does not come up, is
waited for in vain.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import OperationFailed, ServerRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["UnitWatch", "watch_script"]

FIRST_LOOK = 5.0
"""Seconds without an answer before the first look: every service of the lab is up by then. All is well until it is
not, so this costs nothing where it is."""
FIRST_LOOK_RUNNING = 1.0
"""Likewise for a clone that ran already."""
LOOK_EVERY = 2.0
STUCK_AFTER = 15.0
"""Seconds that a unit has to wait for the very same others. Any other job that ends is progress."""
PATIENCE = 15.0
"""For one look."""
_BOOTED = {"running", "degraded"}


class _Unit(Struct, frozen=True):
    name: str
    load: str
    active: str
    result: str
    kind: str
    job: str
    """`waiting` or `running`; empty: none."""
    restarts: int
    """By systemd itself (`Restart=`), since somebody started it."""


class UnitWatch:
    """The units of one clone, looked at now and then while it is waited for.

    Args:
        running: The clone ran before the wait began, so that a failed unit is worth another start.
        crashes: How often systemd may start a unit again that ended by itself; None: as often as it likes.
    """

    def __init__(
        self,
        writer: Writer,
        container: ContainerSettings,
        *,
        running: bool,
        crashes: int | None = None,
        clock: Callable[[], float] = clocks.monotonic,
    ) -> None:
        self._writer = writer
        self._container = container
        self._running = running
        self._clock = clock
        self._crashes = crashes
        self._restarts: dict[str, int] = {}
        """By unit, how often systemd had started it again when it was looked at first."""
        soon = running or crashes is not None
        self._next = clock() + (FIRST_LOOK_RUNNING if soon else FIRST_LOOK)
        self._started: set[str] = set()
        self._stuck: frozenset[str] = frozenset()
        self._since = 0.0
        self.remedy = ""
        """What to do once there is no hope."""

    def look(self) -> str | None:
        """Why there is no hope; None while there is. Starts a unit that is stopped, once."""
        now = self._clock()
        if not self._container.units or now < self._next:
            return None
        self._next = now + LOOK_EVERY
        try:
            said = self._writer.execute(
                self._container.name, ["sh", "-c", watch_script(self._container.units)], timeout=PATIENCE
            ).stdout
        except (OperationFailed, ServerRefused):
            return None  # it is only just starting
        state, units, jobs = _parse(said)
        for unit in units:
            ended = unit.restarts - self._restarts.setdefault(unit.name, unit.restarts)
            if self._crashes is not None and ended >= self._crashes:
                self.remedy = f"read why {unit.name} ended in the lines above"
                return f"{unit.name} was started {ended + 1} times and ended by itself each time"
            if unit.job or unit.load != "loaded":
                continue
            stopped = unit.active == "inactive" and unit.kind != "oneshot" and state in _BOOTED
            failed = unit.active == "failed"
            if (stopped or (failed and self._running)) and unit.name not in self._started:
                self._start(unit.name)
            elif stopped or failed:
                what = f"failed ({unit.result})" if failed else "ended by itself after it was started"
                self.remedy = (
                    f"read why {unit.name} {'failed' if failed else 'ended'} in the lines above; the source may have "
                    "the same fault"
                )
                return f"{unit.name} {what}"
        return self._is_stuck(units, jobs, now)

    def _start(self, name: str) -> None:
        self._started.add(name)
        unit = shlex.quote(name)
        script = f"systemctl reset-failed {unit} 2>/dev/null; systemctl start --no-block {unit}"
        try:
            self._writer.execute(self._container.name, ["sh", "-c", script], timeout=PATIENCE)
        except (OperationFailed, ServerRefused):
            return  # the next look tells

    def _is_stuck(self, units: list[_Unit], jobs: Mapping[str, str], now: float) -> str | None:
        own = {unit.name for unit in units}
        waiting = sorted(unit.name for unit in units if unit.job == "waiting")
        others = frozenset(name for name, state in jobs.items() if state == "running" and name not in own)
        if not waiting or not others or any(unit.job == "running" for unit in units):
            self._stuck = frozenset()
            return None
        if others != self._stuck:
            self._stuck, self._since = others, now
            return None
        if now - self._since < STUCK_AFTER:
            return None
        names = " and ".join(sorted(others))
        name = self._container.name
        self.remedy = (
            f"{names} has to come up in the clone, or not to be waited for: `systemctl list-dependencies --reverse "
            f"{sorted(others)[0]}` in the source says which units need it. If it may take longer, name it in "
            f"containers.{name}.units"
        )
        return f"{', '.join(waiting)} waits for {names}, which has not come up for {now - self._since:.0f} s"


def watch_script(units: tuple[str, ...]) -> str:
    """POSIX shell that prints the state of systemd, of units, and its jobs."""
    names = " ".join(map(shlex.quote, units))
    return f"""export LC_ALL=C SYSTEMD_COLORS=0
echo "state $(systemctl is-system-running 2>/dev/null)"
systemctl list-jobs --no-legend --no-pager --plain | while read -r number unit type state; do
    echo "job $state $unit"
done
systemctl show -p Id -p LoadState -p ActiveState -p Result -p Type -p NRestarts -- {names}
"""


def _parse(text: str) -> tuple[str, list[_Unit], dict[str, str]]:
    """The state of systemd, the units, and the state of each job by its unit."""
    state = ""
    jobs: dict[str, str] = {}
    blocks: list[dict[str, str]] = [{}]
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "state":
            state = rest
        elif word == "job":
            job, _, unit = rest.partition(" ")
            jobs[unit] = job
        elif not line:
            blocks.append({})
        else:
            key, _, value = line.partition("=")
            blocks[-1][key] = value
    units = {
        block["Id"]: _Unit(
            block["Id"],
            block.get("LoadState", ""),
            block.get("ActiveState", ""),
            block.get("Result", ""),
            block.get("Type", ""),
            jobs.get(block["Id"], ""),
            int(block.get("NRestarts") or 0),
        )
        for block in blocks
        if block.get("Id")
    }
    return state, list(units.values()), jobs
