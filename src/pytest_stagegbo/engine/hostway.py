"""Why the host does not reach the stage, as far as the host itself can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.engine.subnets import lost_ways
from pytest_stagegbo.incus.hostview import HostView

if TYPE_CHECKING:
    from pytest_stagegbo.settings import Settings

__all__ = ["trouble"]


def trouble(endpoint: str, settings: Settings) -> str:
    """What is in the way from the daemon's host to the clones; empty: nothing that can be seen from here."""
    view = HostView(endpoint)
    host, ways = view.networks(), view.ways(container.address for container in settings.containers.values())
    return "" if host is None else lost_ways(settings, host, ways)
