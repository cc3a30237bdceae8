"""What a hot way to reset a container is, and which one it has.

What a way needs is imported with it: a process mostly resets few kinds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_stagegbo.resets.listing import Inspection
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["HotReset", "hot_way"]


class HotReset(Protocol):
    """A way to make a container clean while its service runs."""

    def untouched(self, target: ResetTarget) -> bool:
        """Whether it is certain that nothing has changed since the last reset by this process. Takes a millisecond at
        most, as nothing is run in the container: False where it can't be told like that. Raises like `clean`."""

    def clean(self, target: ResetTarget) -> bool:
        """Make it clean and prove it, unless nothing can have changed since the last reset by this process.

        Returns:
            Whether there was something to do: False only when it is certain that there was not.

        Raises:
            NeedsRestart: it is not certain that the container is now as after a restart.
            NoAnswer: the service does not answer as it should.
            StageGboError: the container can't be reached.
        """

    def note(self, target: ResetTarget, inspection: Inspection) -> dict[str, Any]:
        """What to remember of the service right after a restart, beside its processes. Raises like `clean`."""

    def settle(self, target: ResetTarget) -> None:
        """What it is like now, `untouched` compares with, if it is certain that nobody has used it yet. As `clean`."""


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
