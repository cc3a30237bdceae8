"""What is exposed of one stage: opened, closed, and closed by whoever comes by once its time is over."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo.desired.exposure import forward_body, over, read_forward
from pytest_stagegbo.engine import reset
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.locks import STAGE

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager
    from typing import Any

    from pytest_stagegbo.desired.exposure import Exposure
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Settings

__all__ = ["Exposures"]

EXPOSE = "+expose"
"""What those lock who change what is exposed. No container has such a name."""


class Exposures:
    """Opens and closes ports of one stage, with the lock, the facts and the writer of its engine."""

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine
        self._seen: tuple[Exposure, ...] | None = None
        """None: nobody has looked yet."""

    def observe(self, facts: Facts) -> None:
        """Remember what the facts know, for `close_over`."""
        self._seen = facts.exposed

    def open(self, wanted: Exposure, *, dry_run: bool = False) -> None:
        """Open it.

        Args:
            dry_run: Only say whether it could be.

        Raises:
            SettingsError, ProductionProtected, NotOurs, StageMissing: it can't be, and nothing was changed.
        """
        from pytest_stagegbo.facts.facts import host_addresses
        from pytest_stagegbo.facts.guests import find_guests
        from pytest_stagegbo.plan.exposure_request import refuse

        engine, settings = self._engine, self._engine.settings
        with self._changing(f"expose {wanted.container}"):
            clone = engine.reader.instance(settings.project, wanted.container)
            reset.our_clone(clone, settings, wanted.container)
            facts = engine.facts()
            if not dry_run and self.close_what_is_over_in(facts):
                facts = engine.facts()
            if facts.guests is None:
                facts = replace(facts, guests=find_guests(engine.reader, facts.projects))
            addresses = host_addresses(engine.reader)
            refuse(engine.reader, facts, settings, wanted, addresses)
            if not dry_run:
                _open(engine.writer(facts), facts, settings, wanted)

    def close(self, listen: str = "", *, dry_run: bool = False) -> tuple[Exposure, ...]:
        """Close what is exposed; what was closed.

        Args:
            listen: What is exposed at this address; empty: everything.
            dry_run: Only say what would be closed.
        """
        with self._changing("closing what is exposed"):
            facts = self._engine.facts(need_source=False)
            closing = tuple(each for each in facts.exposed if listen in {"", each.listen})
            return closing if dry_run else self._close(facts, closing)

    def close_over(self) -> bool:
        """Close what was seen last and is over by now; whether there was any. For who holds the stage's lock, shared at
        least."""
        engine = self._engine
        if self._seen is None and not any(map(read_forward, engine.reader.forwards(engine.settings.network.name))):
            self._seen = ()  # one request, where a stage's facts are a dozen
        if not over(engine.facts().exposed if self._seen is None else self._seen):
            return False
        with self._changing("closing what is exposed", already_locked=True):
            self.close_what_is_over_in(self._engine.facts())
        return True

    def close_what_is_over_in(self, facts: Facts) -> tuple[Exposure, ...]:
        """What was closed. For who holds the stage's lock, or `EXPOSE`, to itself."""
        return self._close(facts, over(facts.exposed))

    def _changing(self, doing: str, *, already_locked: bool = False) -> AbstractContextManager[None]:
        shared = () if already_locked else (STAGE,)
        return self._engine.lock().hold(doing, self._engine.waiting, shared=shared, exclusive=(EXPOSE,))

    def _close(self, facts: Facts, closing: tuple[Exposure, ...]) -> tuple[Exposure, ...]:
        if closing:
            engine = self._engine
            _close(engine.writer(facts), facts, engine.settings, closing, engine.progress)
        return closing


# -- the writes, in their order


def _open(writer: Writer, facts: Facts, settings: Settings, wanted: Exposure) -> None:
    """The forward first: without the rule, nothing passes. For who holds `EXPOSE`."""
    writer.create_forward(forward_body(wanted))
    still_open = [each for each in facts.exposed if each.state == "open"]
    writer.replace_acl(_access_list(facts, settings, [*still_open, wanted]))


def _close(writer: Writer, facts: Facts, settings: Settings, closing: Collection[Exposure], progress: Progress) -> None:
    """The rules first, then connections that are open, since the list lets those go on; the forward is what tells a
    later run that something is left to do. For who holds `EXPOSE`."""
    staying = [each for each in facts.exposed if each not in closing and each.state == "open"]
    if facts.acl is not None:
        writer.replace_acl(_access_list(facts, settings, staying))
    for each in closing:
        clone = facts.clones.get(each.container)
        if clone is not None and clone.is_running:
            _cut(writer, settings, each, progress)
        writer.delete_forward(each.listen)
        progress.note(f"closed: {each}")


def _access_list(facts: Facts, settings: Settings, exposed: Collection[Exposure]) -> dict[str, Any]:
    """With the marks that the list has: whose slot the stage is does not matter here."""
    from pytest_stagegbo.plan.access_list import access_list

    marks = (facts.acl or {}).get("config")
    wanted = access_list(facts, settings, exposed)
    return {**wanted, "config": dict(marks)} if marks else wanted


def _cut(writer: Writer, settings: Settings, each: Exposure, progress: Progress) -> None:
    """End what is connected to the port from outside of the stage."""
    which = f"src {each.address} and sport = :{each.port} and not dst {settings.network.subnet}"
    try:
        done = writer.execute(each.container, ["sh", "-c", f"ss -tnHK state established {shlex.quote(which)} 2>&1"])
        trouble = done.stdout.strip() if done.status else ""
    except StageGboError as error:
        trouble = error.text
    if trouble:
        progress.note(f"connections to {each.container}:{each.port} that are open may go on until they end: {trouble}")
