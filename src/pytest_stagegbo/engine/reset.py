"""What a reset of some names means, and whether there is a clone to do it to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import NotOurs, SettingsError, StageMissing
from pytest_stagegbo.incus.away import SILENT, member_away

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["chosen", "our_clone"]


def chosen(settings: Settings, names: Sequence[str]) -> list[ContainerSettings]:
    """The containers that a reset of `names` means; `all` means those whose data the settings wipe.

    Raises:
        SettingsError: a name is unknown, or there is no way to make the container clean.
    """
    containers = settings.containers
    wanted = [name for each in names for name in (_wiped(settings) if each == "all" else [each])]
    unknown = [name for name in wanted if name not in containers]
    if unknown:
        raise SettingsError.unknown("no container", unknown, containers)
    keeping = [name for name in wanted if not containers[name].resettable]
    if keeping:
        raise SettingsError(
            ", ".join(keeping) + ": keeps its data by the staging guide, so there is nothing to clear",
            seen=f"containers.{keeping[0]}.wipe is empty",
            remedy=f'name folders in that setting, or set containers.{keeping[0]}.reset = "restore"',
        )
    return [containers[name] for name in dict.fromkeys(wanted)]


def _wiped(settings: Settings) -> list[str]:
    return [name for name, container in settings.containers.items() if container.wipe]


def our_clone(clone: Instance | None, settings: Settings, name: str) -> Instance:
    """The clone, if it is there and this tool's.

    Raises:
        MemberAway: it is on a member of the cluster that does not answer.
        StageMissing: it is not there, or was never finished.
        NotOurs: this tool did not make it, or it is a copy.
    """
    if clone is not None and clone.is_unknown:
        raise member_away(clone.location, SILENT, settings.project)
    if clone is None or clone.config.get(marks.STATE, marks.PREPARED) != marks.PREPARED:
        raise StageMissing(
            f"{settings.project} has no {'finished ' if clone else ''}container {name}",
            remedy="run `stagegbo provision`",
        )
    if not marks.is_clone(clone, settings):
        raise NotOurs(f"{name} in {settings.project} was not made by pytest-stagegbo, so it is left alone")
    return clone
