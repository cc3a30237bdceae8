"""Which hot way a container is reset by. What a way needs is imported with it: a process mostly resets few kinds."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_stagegbo.resets.target import HotReset
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["hot_way"]


def hot_way(container: ContainerSettings) -> HotReset | None:
    """The hot way to reset a container; None: there is none, or it was not asked for."""
    hot = container.reset == "hot" and container.wipe and not container.data and container.probes
    return _by_protocol(container.probes[0].protocol) if hot else None


@cache
def _by_protocol(protocol: str) -> HotReset | None:
    """The way for services whose first probe speaks a protocol."""
    if protocol == "valkey":
        from pytest_stagegbo.resets.cache import HotCache

        return HotCache()
    if protocol == "s3":
        from pytest_stagegbo.resets.drive import HotDrive

        return HotDrive()
    if protocol == "http":
        from pytest_stagegbo.resets.work import HotWork

        return HotWork()
    return None
