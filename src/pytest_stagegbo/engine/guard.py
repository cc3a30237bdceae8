"""What stands in the way of a plan: every reason not to start, found before the first write. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.engine import marks, shape
from pytest_stagegbo.errors import NoRoom, NotOurs, ProductionProtected, SettingsError, SourceMissing
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.engine.facts import Facts
    from pytest_stagegbo.incus import Project
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["refuse", "refuse_foreign", "refuse_relation"]


def refuse(facts: Facts, settings: Settings, copying: Sequence[ContainerSettings]) -> None:
    """Raise the error that keeps provisioning from starting, if there is one.

    Args:
        copying: The containers that would be copied.

    Raises:
        ProductionProtected: the stage would use what production uses.
        SourceMissing: a container that the settings name has no source.
        NotOurs: the stage's names are taken by something without this tool's mark.
        NoRoom: the pool, or the file system under it, is too full.
    """
    _refuse_production(facts, settings)
    missing = [c for c in settings.containers.values() if c.source_name not in facts.sources]
    if missing:
        where = facts.golden or settings.source_project
        raise SourceMissing(
            f"project {where} has no container " + ", ".join(c.source_name for c in missing),
            seen="it has " + (", ".join(sorted(facts.sources)) or "none"),
            remedy="name production's project with source_project, give another `containers.NAME.source`, or leave "
            "one out with `containers.NAME = false`",
        )
    refuse_foreign(facts, settings)
    if copying:
        _refuse_full(facts, settings, copying)


def refuse_relation(project: Project | None, family: str) -> None:
    """Raise `SettingsError` when a project is a slot of another stage than is meant: its addresses are others, too.

    Args:
        family: The stage that a slot or a golden copy is meant of; empty: neither is meant.
    """
    found = project.config.get(marks.FAMILY, "") if project is not None and marks.is_ours(project.config) else ""
    if project is not None and found and found != family:
        raise SettingsError(
            f"project {project.name} is a slot of stage {found}, or its golden copy",
            seen=f"its mark {marks.FAMILY}={found}",
            remedy=f"name the stage with --project {found}, and the slot with --slot N",
        )


def refuse_foreign(facts: Facts, settings: Settings) -> None:
    """Raise `NotOurs` when something that has one of the stage's names was not made by this tool."""
    found: list[str] = []
    project = facts.projects.get(settings.project)
    if project is not None and not marks.is_ours(project.config):
        found.append(f"project {settings.project}")
    network = facts.networks.get(settings.network.name)
    if network is not None and not marks.is_ours(network.config):
        found.append(f"network {settings.network.name}")
    if facts.acl is not None and not marks.is_ours(facts.acl.get("config") or {}):
        found.append(f"access list {shape.acl_name(settings)}")
    found.extend(
        f"instance {name} in {settings.project}"
        for name, clone in sorted(facts.clones.items())
        if name in settings.containers and not marks.is_ours(clone.config)
    )
    if found:
        raise NotOurs(
            ", ".join(found) + ": not made by pytest-stagegbo, so left alone",
            seen=f"no mark {marks.OWNER}={marks.OWNER_VALUE}",
            remedy="remove it yourself if it is a left-over of an earlier set-up, or choose other names with --project "
            "and --network",
        )


def _refuse_production(facts: Facts, settings: Settings) -> None:
    if settings.network.name in facts.production_networks:
        raise ProductionProtected(
            f"network {settings.network.name} is used by production",
            seen="production's containers use " + ", ".join(sorted(facts.production_networks)),
            remedy="set another `network.name` for the stage",
        )


def _refuse_full(facts: Facts, settings: Settings, copying: Sequence[ContainerSettings]) -> None:
    floor = parse_size(settings.disk_floor)
    costs: dict[str, int] = {}
    for container in copying:
        source = facts.sources[container.source_name]
        costs[source.pool] = costs.get(source.pool, 0) + (facts.full_copy_bytes.get(source.name) or 0)
    for pool_name, cost in costs.items():
        room = facts.rooms[pool_name]
        for where, free in ((f"pool {pool_name}", room.pool.free), (_below(pool_name), room.host_free)):
            if free is not None and free < floor + cost:
                need = f"{bytes_text(floor)} must stay free" + (f", {bytes_text(cost)} to copy" if cost else "")
                raise NoRoom(
                    f"too little room on {where}: {bytes_text(free)} free, {need}",
                    seen=f"pool {pool_name} ({room.pool.driver}) uses {bytes_text(room.pool.used)} "
                    f"of {bytes_text(room.pool.total)}",
                    remedy="free some, enlarge the pool, or lower disk_floor if you know that production won't need it",
                )


def _below(pool_name: str) -> str:
    return f"the host's file system that holds the file of pool {pool_name}"
