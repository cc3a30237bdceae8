"""Finds reasons not to start a provisioning, before the first write. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks, objects, ownership
from pytest_stagegbo.desired.own_pool import clone_pool
from pytest_stagegbo.desired.versions import refuse_newer
from pytest_stagegbo.errors import (
    CapsuleMissing,
    MissingRequirement,
    NoRoom,
    NotOurs,
    ProductionProtected,
    SourceMissing,
)
from pytest_stagegbo.facts.space import floor_bytes
from pytest_stagegbo.facts.subnets import free_place
from pytest_stagegbo.plan.pool_objections import refuse_pool
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.facts.space import Room
    from pytest_stagegbo.incus import Network, Project
    from pytest_stagegbo.incus.hostnet import HostNetwork
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["costs", "refuse", "refuse_foreign", "refuse_other_stage", "shortage"]


def refuse(
    facts: Facts,
    settings: Settings,
    copying: Sequence[ContainerSettings],
    parent: str = "",
    freeing: Collection[str] = (),
) -> None:
    """Raise the error that keeps provisioning from starting, if there is one.

    Args:
        copying: The containers that would be copied.
        parent: The stage that this one is a slot or the golden copy of.
        freeing: Pools on which clones are removed before anything is copied: how much room that gives is seen then.

    Raises:
        ProductionProtected: the stage would use what production uses.
        MissingRequirement: a newer version made the stage, or its bridge can't be made while members of the cluster
            are offline.
        SourceMissing: a container that the settings name has no source.
        NotOurs: the stage's names are taken by something without this tool's mark, or by another stage.
        CapsuleMissing: it is an opened capsule that is not whole.
        NoRoom: the pool, or the file system under it, is too full.
    """
    refuse_newer(facts.projects.get(parent or settings.project))
    refuse_other_stage(facts.networks, facts.acl, facts.projects, settings, parent, facts.host)
    _refuse_production(facts, settings)
    refuse_pool(facts, settings)
    _refuse_missing_members(facts, settings)
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
    _refuse_capsule(facts, settings, copying)
    _refuse_neighbours(facts, settings, copying)
    for pool, cost in costs(facts, settings, copying).items():
        error = shortage(facts.rooms[pool], settings, cost)
        hopeless = floor_bytes(settings, facts.rooms[pool].pool) + cost > facts.rooms[pool].pool.total
        if error is not None and (hopeless or pool not in freeing):
            raise error


def _refuse_capsule(facts: Facts, settings: Settings, copying: Sequence[ContainerSettings]) -> None:
    """Raise `CapsuleMissing` when clones of an opened capsule would be copied from production, and not from clones."""
    held = [each for each in copying if each.held]
    missing = [each.name for each in held if not marks.is_ours(facts.sources[each.source_name].config)]
    if missing:
        raise CapsuleMissing(
            f"{settings.project} is an opened capsule that lacks {', '.join(missing)}",
            seen="opening it was interrupted, the settings have changed since, or there is no such capsule",
            remedy="`stagegbo capsule list` shows the capsules, and `stagegbo capsule open ID` opens one",
        )


def refuse_foreign(facts: Facts, settings: Settings) -> None:
    """Raise `NotOurs` when something that has one of the stage's names was not made by this tool."""
    found: list[str] = []
    project = facts.projects.get(settings.project)
    if project is not None and not ownership.is_stage(project):
        found.append(f"project {settings.project}")
    network = facts.networks.get(settings.network.name)
    if network is not None and not marks.is_ours(network.config):
        found.append(f"network {settings.network.name}")
    if facts.acl is not None and not marks.is_ours(facts.acl.get("config") or {}):
        found.append(f"access list {objects.acl_name(settings)}")
    found.extend(
        f"instance {name} in {settings.project}"
        for name, clone in sorted(facts.clones.items())
        if name in settings.containers and not marks.is_clone(clone, settings)
    )
    if found:
        raise NotOurs(
            ", ".join(found) + ": not made by pytest-stagegbo, so left alone",
            seen=f"no mark {marks.OWNER}={marks.OWNER_VALUE}, or one that was copied from something else",
            remedy="remove it yourself if it is a left-over of an earlier set-up, or choose other names with the "
            "settings project and network.name",
        )


def refuse_other_stage(
    networks: Mapping[str, Network],
    acl: Mapping[str, Any] | None,
    projects: Mapping[str, Project],
    settings: Settings,
    parent: str,
    host: Collection[HostNetwork] = (),
) -> None:
    """Raise `NotOurs` when the stage's bridge or access list was made for another stage.

    Args:
        networks: The bridge, if there is one, and others, by name.
        acl: The access list of that name.
        parent: The stage that this one is a slot or the golden copy of.
        host: What the host has besides, as far as it is known.
    """
    bridge = networks.get(settings.network.name)
    configs = {
        f"network {settings.network.name}": {} if bridge is None else bridge.config,
        f"access list {objects.acl_name(settings)}": (acl or {}).get("config") or {},
    }
    for what, config in configs.items():
        if not marks.is_ours(config) or ownership.is_free_for(config, settings, parent, projects):
            continue
        found = ownership.owners(config, settings.network.name, projects)
        others = sorted(name for name, of in found if (name, of) != (settings.project, parent))
        name, address = free_place(settings, networks, host)
        remedy = f'give stage {settings.project} a bridge and a subnet of its own: project = "{settings.project}", '
        remedy += f'network.name = "{name}", network.address = "{address}" in its settings file'
        if parent:
            remedy = f'name other bridges for the slots of {parent}: slots.network = "{name[:-1]}{{slot}}"'
        gone = [other for other in others if other not in projects]
        if (settings.project, parent) in found:
            remedy += f", or remove the other stage: `stagegbo --project {others[0]} destroy`"
        if gone:
            remedy += f". It is what a run that was killed left of {gone[0]}: "
            remedy += f"`stagegbo --project {gone[0]} destroy` removes it"
        raise NotOurs(
            f"{what} belongs to stage {' and '.join(others)}, so stage {settings.project} can't have it",
            seen=f"the bridge is {settings.network.name}, its address {settings.network.address}",
            remedy=remedy,
        )


def _refuse_neighbours(facts: Facts, settings: Settings, copying: Sequence[ContainerSettings]) -> None:
    """Raise `NotOurs` when somebody's instance on the bridge would lose its network, or has a clone's address."""
    if facts.neighbours:
        raise NotOurs(
            f"network {settings.network.name} can't get the address {settings.network.address}: "
            f"{', '.join(facts.neighbours)} would lose its network",
            seen=f"it has {facts.networks[settings.network.name].config.get('ipv4.address')}",
            remedy="set network.address back, take them off the bridge, or name another bridge with network.name",
        )
    wanted = {str(c.address): c for c in settings.containers.values()}
    for name, other in sorted(facts.clones.items()):
        if marks.is_clone(other, settings):
            continue
        for device in other.expanded_devices.values():
            container = wanted.get(device.get("ipv4.address", ""))
            # Incus refuses a second NIC with that address where it knows both to be on the bridge.
            if container is not None and (other.is_running or ("network" in device and container in copying)):
                raise NotOurs(
                    f"instance {name} in {settings.project} has the address of {container.name}, {container.address}; "
                    "pytest-stagegbo did not make it, so it is left alone",
                    seen=f"{name} is {other.status.lower()}",
                    remedy=f"`incus stop {name} --project {settings.project}`, or give it another address: "
                    f"`incus config device set {name} eth0 ipv4.address=ADDRESS --project {settings.project}`",
                )


def _refuse_missing_members(facts: Facts, settings: Settings) -> None:
    """Raise `MissingRequirement` when the bridge can't be made: a cluster makes it on all of its members, or not at
    all."""
    bridge = facts.networks.get(settings.network.name)
    missing = [each.name for each in facts.members if each.is_missing]
    if missing and (bridge is None or bridge.is_half_made):
        raise MissingRequirement(
            f"bridge {settings.network.name} can't be made while {', '.join(missing)} is offline: Incus makes it on "
            "all members of the cluster, or not at all",
            seen=", ".join(f"{each.name} is {each.status.lower()}" for each in facts.members),
            remedy="bring it back; or, if it is gone for good, `incus cluster remove --force "
            f"{missing[0]}`, then `stagegbo provision`",
        )


def _refuse_production(facts: Facts, settings: Settings) -> None:
    if settings.network.name in facts.production_networks:
        raise ProductionProtected(
            f"network {settings.network.name} is used by production",
            seen="production's containers use " + ", ".join(sorted(facts.production_networks)),
            remedy="set another `network.name` for the stage",
        )


def costs(facts: Facts, settings: Settings, copying: Iterable[ContainerSettings]) -> dict[str, int]:
    """Return, for each existing pool, the bytes that copies take at once: 0 if they share all blocks with their
    source."""
    found: dict[str, int] = {}
    for container in copying:
        source = facts.sources[container.source_name]
        pool = clone_pool(source, settings)
        if pool in facts.rooms:
            found[pool] = found.get(pool, 0) + (facts.full_copy_bytes.get(source.name) or 0)
    return found


def shortage(room: Room, settings: Settings, cost: int) -> NoRoom | None:
    """Return the error if the pool has too little room for copies, or None."""
    space, pool = room.tightest(settings), room.pool
    if space.margin >= cost:
        return None
    return NoRoom(
        f"too little room on {space}" + (f", {bytes_text(cost)} to copy" if cost else ""),
        seen=f"pool {pool.name} ({pool.driver}) uses {bytes_text(pool.used)} of {bytes_text(pool.total)}",
        remedy="free some space, enlarge the pool, or lower disk_floor and disk_floor_share if you know that "
        "production won't need it",
    )
