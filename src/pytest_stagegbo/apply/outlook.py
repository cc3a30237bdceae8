"""Whether a clone that has not answered yet can still do so, and what to do if it can't."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.apply.diagnostics import diagnostics
from pytest_stagegbo.apply.unit_watch import UnitWatch
from pytest_stagegbo.facts.host_path import HostWay
from pytest_stagegbo.facts.reach import Reach, how_to_reach
from pytest_stagegbo.services.dial import way_to
from pytest_stagegbo.workers import interrupted

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader, Writer
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["Outlook"]


class Outlook:
    """The clone itself, its units, and the way to it, looked at now and then while it is waited for.

    Args:
        running: The clone ran already: a service of it that is down was stopped by somebody, or failed.
        crashes: See `UnitWatch`.
    """

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        settings: Settings,
        container: ContainerSettings,
        *,
        running: bool,
        crashes: int | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._settings = settings
        self._container = container
        is_near = reader.is_here or way_to(str(container.address)) is not None
        self._far = None if is_near else Reach(writer, container)
        self._near = HostWay(reader, writer, settings, container, ran=running)
        self._units = UnitWatch(writer, container, running=running, crashes=crashes)

    def look(self) -> str | None:
        """Why there is no hope; None while there is."""
        if interrupted():
            return "it was interrupted"
        clone = self._reader.instance(self._settings.project, self._container.name)
        if clone is None:
            return "the container is gone"
        if not clone.is_running:
            return f"the container is {clone.status.lower()}"
        reason = self._units.look()
        # A unit may have failed because of what is in its way.
        way = self._near.look(at_once=reason is not None) if self._far is None else self._far.look()
        return way or reason

    @property
    def remedy(self) -> str:
        """What to do; empty: nothing is known to be in the way."""
        if self._is_out_of_reach:
            return how_to_reach(self._settings, self._container, self._reader.endpoint)
        return self._near.remedy or self._units.remedy

    def evidence(self) -> str:
        """The state of the clone's units and their last lines; empty where nothing is wrong with the clone."""
        if interrupted() or self._near.remedy or self._is_out_of_reach:
            return ""
        return diagnostics(self._reader, self._writer, self._settings.project, self._container)

    @property
    def _is_out_of_reach(self) -> bool:
        return self._far is not None and self._far.lost
