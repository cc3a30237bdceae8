"""A storage pool of the stage's own: what clones lie on, what is in the way of that, and whose it is. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import MissingRequirement, NoRoom, NotOurs, ProductionProtected, SettingsError
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Instance, Pool, Reader
    from pytest_stagegbo.settings import Settings

__all__ = [
    "clone_pool",
    "foreign_users",
    "is_own",
    "pool_config",
    "refuse_elsewhere",
    "refuse_left_behind",
    "refuse_pool",
    "removable_pool",
]


def clone_pool(source: Instance, settings: Settings) -> str:
    """The pool that a clone of `source` lies on."""
    return settings.storage.own or source.pool


def pool_config(settings: Settings, parent: str) -> dict[str, str]:
    """Of the pool that this tool creates."""
    return {"size": settings.storage.create, marks.OWNER: marks.OWNER_VALUE, marks.PROJECT: parent or settings.project}


def is_own(pool: Pool, project: str) -> bool:
    """Whether this tool created the pool for the stage in `project`."""
    return marks.is_ours(pool.config) and pool.config.get(marks.PROJECT) == project


def foreign_users(pool: Pool, projects: Collection[str]) -> list[str]:
    """What is on a pool, or names it, and is not in one of these projects."""
    found = []
    for url in pool.used_by:
        parts = urlsplit(url)
        project = parse_qs(parts.query).get("project", ["default"])[0]
        if project not in projects:
            found.append(f"{parts.path.removeprefix('/1.0/')} of project {project}")
    return sorted(found)


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
            remedy="free some, lower storage.create, or create the pool yourself on another disk: " + _by_hand(name),
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
    if settings.storage.own:
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


def removable_pool(reader: Reader, settings: Settings, members: Collection[str]) -> str:
    """The name of the pool that was created for this stage, if it is there and only these projects use it; empty: it is
    not there.

    Raises:
        SettingsError: the settings name no pool of the stage's own.
        NotOurs: somebody else created it, or has something on it.
    """
    name = settings.storage.own
    if not name:
        raise SettingsError(
            "the stage has no pool of its own to remove",
            seen="storage.pool is auto: the stage is on production's pool",
            remedy="run `destroy` without --pool",
        )
    if not reader.has_pool(name):
        return ""
    pool = reader.pool(name)
    if not is_own(pool, settings.project):
        raise NotOurs(
            f"pool {name} was not created for stage {settings.project}, so it is left alone",
            seen=f"no mark {marks.OWNER}={marks.OWNER_VALUE} with {marks.PROJECT}={settings.project}",
            remedy=f"run `destroy` without --pool, and `incus storage delete {name}` if nobody needs it",
        )
    others = foreign_users(pool, members)
    if others:
        raise NotOurs(
            f"pool {name} has something on it that is not the stage's, so it is left alone",
            seen=", ".join(others),
            remedy="move that elsewhere, then destroy again; `destroy` without --pool removes the stage alone",
        )
    return name
