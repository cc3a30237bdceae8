"""Whether anything was done to production while somebody looked: lifecycle events between two sentinels.

"No events" and "the listener did not work" are distinguished by two events that this tool causes itself, in a clone of
its own. What is heard of production is this process's doing if it carries the same requestor as those, and came while
a write of this process was under way; everything else is somebody else's, and is shown.
"""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import OperationFailed, StageGboError
from pytest_stagegbo.verify.finding import Result, sight

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus.events import Event, EventSource
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.verify.context import VerifyContext

__all__ = ["EventMonitor", "is_ours", "is_productions", "no_production_events"]

SENTINEL = "stagegbo-sentinel-"
PATIENCE = 5.0
"""Seconds for a sentinel to be heard."""
MOST = 100
"""Events of production that are kept, of each kind. The rest is counted."""
SHOWN = 10
ITSELF = {"instance-shutdown", "instance-restarted", "instance-ready"}
"""What containers do, by halting and starting again, without anybody's request."""


class EventMonitor:
    """Listens to lifecycle events until `close`. It has its own thread, since the daemon drops slow readers."""

    def __init__(self, source: EventSource, concerns: Callable[[Event], bool]) -> None:
        self._source = source
        self._concerns = concerns
        self._news = threading.Condition()
        self._closing = False
        self._trouble = ""
        self._sentinels: dict[str, Event] = {}
        self.heard = 0
        """Events of all kinds."""
        self.first: Event | None = None
        """The sentinel at the beginning. What was heard before it is not counted."""
        self.ours: list[Event] = []
        """Those about production that this process has to answer for."""
        self.others: list[Event] = []
        """The first of those about production that it has not."""
        self.production = 0
        """How many are about production."""
        self._thread = threading.Thread(target=self._listen, name="stagegbo events", daemon=True)
        self._thread.start()

    def sentinel(self, cause: Callable[[str], object]) -> Event:
        """Cause an event and wait until it arrives. All earlier events have arrived by then.

        Args:
            cause: Executes a command with this word among its arguments.

        Raises:
            OperationFailed: it was not heard.
        """
        word = SENTINEL + secrets.token_hex(8)
        cause(word)
        deadline = clocks.monotonic() + PATIENCE
        with self._news:
            while word not in self._sentinels and not self._trouble and clocks.monotonic() < deadline:
                self._news.wait(0.1)
            found = self._sentinels.get(word)
        if found is None or self._trouble:
            raise OperationFailed(
                "events of the daemon were lost, so that nothing is known of production",
                seen=self._trouble or f"an event that this process caused was not heard within {PATIENCE:g} s",
                remedy="run it again; the daemon drops listeners of a host that is overloaded",
            )
        return found

    def close(self) -> None:
        self._closing = True
        self._thread.join(2)
        self._source.close()

    def _listen(self) -> None:
        try:
            while not self._closing:
                for event in self._source.read(0.2):
                    with self._news:
                        self._take(event)
                        self._news.notify_all()
        except Exception as error:
            with self._news:
                self._trouble = error.message if isinstance(error, StageGboError) else repr(error)
                self._news.notify_all()

    def _take(self, event: Event) -> None:
        for word in event.context.get("command") or ():
            if str(word).startswith(SENTINEL):
                self._sentinels[str(word)] = event
                self.first = self.first or event
        if self.first is None:
            return
        self.heard += 1
        if self._concerns(event):
            self.production += 1
            kept = self.ours if is_ours(event, self.first) else self.others
            if len(kept) < MOST:
                kept.append(event)


def is_productions(event: Event, settings: Settings, facts: Facts) -> bool:
    """Whether an event is about an object of production. Pure.

    Bridges and access lists of the stage live in project `default`, too, and so do those of others: of networks only
    those count that production's containers use.
    """
    kind, name = (*event.path, "", "")[:2]
    if kind == "projects":
        return name == settings.source_project
    if kind == "networks":
        return name in facts.production_networks
    if kind == "network-acls":
        return any(name in _acls(facts, network) for network in facts.production_networks)
    if kind == "storage-pools" and len(event.path) == 2:
        return name in {each.pool for each in facts.sources.values()}
    return kind in {"instances", "profiles", "images", "storage-pools"} and event.project == settings.source_project


def _acls(facts: Facts, network: str) -> list[str]:
    found = facts.networks.get(network)
    return (found.config.get("security.acls", "") if found else "").replace(" ", "").split(",")


def is_ours(event: Event, sentinel: Event) -> bool:
    """Whether this process has to answer for an event. Pure.

    Root is root to the daemon, whichever process it is: what came while this process wrote nothing was another. Some
    events name no requestor (`instance-updated`, all of files), so those may be anybody's, but for what a container
    does to itself.
    """
    anonymous = not event.requestor and event.action not in ITSELF
    return event.writing and (anonymous or event.requestor == sentinel.requestor)


def no_production_events(context: VerifyContext) -> Result:
    """Check that this process did nothing to production between the first sentinel and one that is sent now."""
    if context.monitor is None:  # what kept it from listening keeps it now, and says so
        context.monitor = context.listen()
    monitor = context.monitor
    last = monitor.sentinel(context.sentinel)
    assert monitor.first is not None
    seen = f"{monitor.heard} events heard between sentinels at {monitor.first.at[:19]} and {last.at[:19]}"
    seen += f", {monitor.production} of them of production"
    if monitor.others:
        seen += f"; {monitor.production - len(monitor.ours)} by others: " + "; ".join(map(str, monitor.others[:SHOWN]))
    bad = tuple(str(event) for event in monitor.ours[:SHOWN])
    return Result(bad, seen, sight(["events"], ["events"] if monitor.heard > 1 else []))
