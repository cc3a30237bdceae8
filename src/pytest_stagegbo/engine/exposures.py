"""What is exposed of one stage: opened, closed, and closed by whoever comes by once its time is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.engine import exposing, reset
from pytest_stagegbo.engine.expose import over
from pytest_stagegbo.engine.facts import gather, host_addresses
from pytest_stagegbo.incus.hostview import HostView
from pytest_stagegbo.locks import STAGE

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_stagegbo.engine.expose import Exposure
    from pytest_stagegbo.engine.facts import Facts
    from pytest_stagegbo.engine.stage import StageEngine

__all__ = ["Exposures"]


class Exposures:
    """Of the stage of an engine, whose lock, facts and writer it uses."""

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine
        self._seen: tuple[Exposure, ...] = ()

    def saw(self, facts: Facts) -> None:
        """Remember what the facts know, for `close_over`."""
        self._seen = facts.exposed

    def open(self, wanted: Exposure, *, dry_run: bool = False) -> None:
        """Open it.

        Args:
            dry_run: Only say whether it could be.

        Raises:
            SettingsError, ProductionProtected, NotOurs, StageMissing: it can't be, and nothing was changed.
        """
        engine, settings = self._engine, self._engine.settings
        with self._changing(f"expose {wanted.container}"):
            clone = engine.reader.instance(settings.project, wanted.container)
            reset.our_clone(clone, settings, wanted.container)
            facts = engine.facts()
            if not dry_run and self.close_what_is_over_in(facts):
                facts = engine.facts()
            addresses = host_addresses(engine.reader, HostView(engine.reader.endpoint))
            exposing.refuse(engine.reader, facts, settings, wanted, addresses)
            if not dry_run:
                exposing.open_exposure(engine.writer(facts), facts, settings, wanted)

    def close(self, listen: str = "", *, dry_run: bool = False) -> tuple[Exposure, ...]:
        """Close what is exposed; what was closed.

        Args:
            listen: What is exposed at this address; empty: everything.
            dry_run: Only say what would be closed.
        """
        engine = self._engine
        with self._changing("closing what is exposed"):
            facts = gather(engine.reader, HostView(engine.reader.endpoint), engine.settings, need_source=False)
            closing = tuple(each for each in facts.exposed if listen in {"", each.listen})
            return closing if dry_run else self._close(facts, closing)

    def close_over(self) -> bool:
        """Close what was seen last and is over by now; whether there was any. For who holds the stage's lock, shared at
        least."""
        if not over(self._seen):
            return False
        with self._changing("closing what is exposed", held=True):
            self.close_what_is_over_in(self._engine.facts())
        return True

    def close_what_is_over_in(self, facts: Facts) -> tuple[Exposure, ...]:
        """What was closed. For who holds the stage's lock, or `EXPOSE`, to itself."""
        return self._close(facts, over(facts.exposed))

    def _changing(self, doing: str, *, held: bool = False) -> AbstractContextManager[None]:
        shared = () if held else (STAGE,)
        return self._engine.lock().hold(doing, self._engine.waiting, shared=shared, exclusive=(exposing.EXPOSE,))

    def _close(self, facts: Facts, closing: tuple[Exposure, ...]) -> tuple[Exposure, ...]:
        if closing:
            engine = self._engine
            exposing.close(engine.writer(facts), facts, engine.settings, closing, engine.progress)
        return closing
