"""How a container was made clean, for those who asked for it and for those who record it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo import clocks
from pytest_stagegbo.progress import reset_done

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.errors import StageGboError
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["Outcome", "record"]


class Outcome(Struct, frozen=True):
    """How a container was made clean. Times are seconds since the first one was begun."""

    name: str
    way: str
    """`untouched`, `hot`, `restart`, `restore`, `spare` or `database`; for a baseline not `hot` and `restore`."""
    began: float
    ended: float
    doubt: str = ""
    """Why the hot way was not enough; empty when it was, or was not tried."""

    @property
    def key(self) -> str:
        return f"clear:{self.name}"

    @property
    def text(self) -> str:
        return f"{self.name}: {self.way}" + (f" ({self.doubt})" if self.doubt else "")


def record(
    progress: Progress,
    project: str,
    containers: Sequence[ContainerSettings],
    found: Sequence[Outcome | StageGboError],
    origin: float,
) -> None:
    """Pass on how each container of a reset was made clean, or why it was not.

    Args:
        origin: When the reset began, by `clocks.monotonic`.
    """
    for container, each in zip(containers, found, strict=True):
        if isinstance(each, Outcome):
            began, ended = origin + each.began, origin + each.ended
            reset_done(progress, project, container.name, each.way, began, ended, each.doubt)
        else:
            reset_done(progress, project, container.name, "failed", origin, clocks.monotonic(), each.message)
