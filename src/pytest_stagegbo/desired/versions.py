"""Which version of this package made a thing, and which versions may change it."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import MissingRequirement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Instance, Project
    from pytest_stagegbo.settings import Settings

__all__ = ["OLDEST", "outdated", "own_version", "refuse_newer", "stale_reason"]

OLDEST = "0.2.0"
"""The oldest version that may change a stage of this one. It is raised when an older one would break the stage."""
UNMARKED = "0.1.0"
"""The last version that did not say which it was."""


@functools.cache
def own_version() -> str:
    from importlib import metadata  # takes milliseconds, and most commands don't ask

    return metadata.version("pytest-stagegbo")


def made_by(clone: Instance) -> str:
    """The version that made a clone."""
    return clone.config.get(marks.VERSION, UNMARKED)


def outdated(clones: Mapping[str, Instance], settings: Settings) -> set[str]:
    """The clones that another version made, and that this one would make differently."""
    return {
        name
        for name, container in settings.containers.items()
        if name in clones
        and clones[name].config.get(marks.FINGERPRINT) != marks.fingerprint(container, settings)
        and made_by(clones[name]) != own_version()
    }


def stale_reason(clone: Instance) -> str:
    """Why a clone with another fingerprint is replaced."""
    if made_by(clone) == own_version():
        return "the settings it was made with have changed"
    return (
        f"version {made_by(clone)} made it, and {own_version()} prepares clones differently, or settings have changed"
    )


def refuse_newer(project: Project | None) -> None:
    """Raise `MissingRequirement` if only newer versions may change a stage.

    Args:
        project: The stage's.
    """
    if project is None or not marks.is_ours(project.config):
        return
    needed = project.config.get(marks.REQUIRES, OLDEST)
    if needed != OLDEST and _numbers(needed) > _numbers(own_version()):
        raise MissingRequirement(
            f"a newer version of pytest-stagegbo made stage {project.name}, and this one could break it",
            seen=f"version {own_version()}; the stage needs {needed} or newer",
            remedy=f"install it on this host: `pip install 'pytest-stagegbo>={needed}'`",
        )


def _numbers(version: str) -> tuple[int, ...]:
    """`(0, 2, 0)` of `0.2.0` and of what nobody should have written there."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
