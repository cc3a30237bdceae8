"""Finds reasons not to use the storage pool that the settings name, before the first write. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import MissingRequirement, NoRoom, NotOurs, ProductionProtected, SettingsError
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.settings import Settings

__all__ = ["refuse_elsewhere", "refuse_left_behind", "refuse_pool"]


def refuse_pool(facts: Facts, settings: Settings) -> None:
    """Raise the error that keeps clones from the stage's own pool, if it has one.

    Raises:
        MissingRequirement: it is not there, and may not be created.
        ProductionProtected: production is on it.
        SettingsError: its driver has no copy-on-write.
        NoRoom: it may be created, and the file system below it is too full for that.
    """
    name, size = settings.storage.own, settings.storage.create
    if not name:
        return
    if name in facts.production_pools:
        raise ProductionProtected(
            f"storage.pool names {name}, which production is on",
            seen="production is on " + ", ".join(sorted(facts.production_pools)),
            remedy="name another pool, or leave storage.pool out: the stage shares production's pool then",
        )
    room = facts.rooms.get(name)
    if room is not None:
        if not room.pool.copy_on_write:
            raise SettingsError(
                f"pool {name} has no copy-on-write, so each clone on it would be a full copy",
                seen=f"its driver is {room.pool.driver}",
                remedy="name a btrfs or ZFS pool with storage.pool: " + _by_hand(name),
            )
        return
    if not size:
        raise MissingRequirement(
            f"there is no storage pool {name} (storage.pool)",
            seen="nobody has created it, or somebody has removed it",
            remedy=f"{_by_hand(name)}; or set storage.create to a size such as 20GB, and provisioning creates it",
        )
    if facts.server.clustered:
        raise MissingRequirement(
            f"pool {name} can't be created here: this server is a member of a cluster",
            seen="a cluster's pool is created on each member first",
            remedy=f"`incus storage create {name} btrfs size={size} --target MEMBER` for each member, then "
            f"`incus storage create {name} btrfs`, and leave storage.create out",
        )
    free = facts.new_pool_free
    floor = parse_size(settings.disk_floor)
    if free is not None and free - parse_size(size) < floor:
        raise NoRoom(
            f"too little room for pool {name} of {size}: its file may grow to that size",
            seen=f"the host's file system for it has {bytes_text(free)} free, {bytes_text(floor)} must stay free",
            remedy="free some space, lower storage.create, or create the pool yourself on another disk: "
            + _by_hand(name),
        )


def _by_hand(name: str) -> str:
    return f"`incus storage create {name} btrfs size=20GiB`"


def refuse_elsewhere(clones: Mapping[str, Instance], settings: Settings, replacing: Collection[str]) -> None:
    """Raise `NotOurs` when clones that would be kept are on another pool than the stage's own.

    Args:
        replacing: Names of containers whose clones are to be replaced anyway.
    """
    name = settings.storage.own
    left = {
        each.name: each.pool
        for each in clones.values()
        if each.name in settings.containers and each.name not in replacing and marks.is_clone(each, settings)
    }
    left = {clone: pool for clone, pool in left.items() if pool != name}
    if name and left:
        there = ", ".join(sorted(set(left.values())))
        raise NotOurs(
            f"stage {settings.project} is on pool {there}, and storage.pool says {name}",
            seen=f"clones there: {', '.join(sorted(left))}. Nothing was changed",
            remedy="`stagegbo provision --recreate` makes the stage again on its own pool; what tests "
            "left in its clones is lost then. To keep them, leave storage.pool out",
        )


def refuse_left_behind(kept: Collection[Instance], production: Mapping[str, Instance], settings: Settings) -> None:
    """Raise `NotOurs` when the settings name no pool, and clones that would be kept are on another one than production:
    the setting was taken away, or production was moved.

    Args:
        production: Its instances, by name.
    """
    if settings.storage.own or any(each.held for each in settings.containers.values()):
        return
    names = {name: container.source_name for name, container in settings.containers.items()}
    sources = {clone.name: production.get(names.get(clone.name, "")) for clone in kept}
    left = {
        clone.name: (clone.pool, source.pool)
        for clone in kept
        if (source := sources[clone.name]) is not None and source.pool and source.pool != clone.pool
    }
    if left:
        there, wanted = (", ".join(sorted(pools)) for pools in map(set, zip(*left.values(), strict=True)))
        raise NotOurs(
            f"stage {settings.project} is on pool {there}, production is on {wanted}, and storage.pool names no pool",
            seen=f"clones on {there}: {', '.join(sorted(left))}. Nothing was changed",
            remedy=f'set storage.pool to "{there}" to leave the stage there; or `stagegbo provision --recreate` makes '
            "it again on production's pool, and what tests left in its clones is lost then",
        )
