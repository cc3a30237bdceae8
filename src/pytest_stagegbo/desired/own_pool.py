"""A storage pool of the stage's own: what lies on it, and whose it is. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import NotOurs, SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_stagegbo.incus import Instance, Pool, Reader
    from pytest_stagegbo.settings import Settings

__all__ = [
    "clone_pool",
    "foreign_users",
    "is_own",
    "pool_config",
    "removable_pool",
    "shares_blocks",
]


def clone_pool(source: Instance, settings: Settings) -> str:
    """The pool that a clone of `source` lies on."""
    return settings.storage.own or source.pool


def shares_blocks(source: Instance, pool: str, member: str) -> bool:
    """Whether a copy to a pool can share blocks with its source. To another pool, or to another member of a cluster,
    every byte is moved.

    Args:
        member: Of the cluster, that the copy is for; empty: the server is no cluster.
    """
    return source.pool == pool and member in {"", source.location}


def pool_config(settings: Settings, parent: str) -> dict[str, str]:
    """The configuration of the pool that this tool creates."""
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
            remedy="run `stagegbo destroy` without --pool",
        )
    if not reader.has_pool(name):
        return ""
    pool = reader.pool(name)
    if not is_own(pool, settings.project):
        raise NotOurs(
            f"pool {name} was not created for stage {settings.project}, so it is left alone",
            seen=f"no mark {marks.OWNER}={marks.OWNER_VALUE} with {marks.PROJECT}={settings.project}",
            remedy=f"run `stagegbo destroy` without --pool, and `incus storage delete {name}` if nobody needs it",
        )
    others = foreign_users(pool, members)
    if others:
        raise NotOurs(
            f"pool {name} has something on it that is not the stage's, so it is left alone",
            seen=", ".join(others),
            remedy="move that elsewhere, then destroy again; `stagegbo destroy` without --pool removes the stage alone",
        )
    return name
