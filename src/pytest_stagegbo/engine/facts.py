"""The world as it is, read once. Nothing here writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.engine import shape
from pytest_stagegbo.errors import SourceMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Instance, Network, Pool, Project, Reader
    from pytest_stagegbo.incus.connection import Server
    from pytest_stagegbo.incus.hostview import HostView
    from pytest_stagegbo.settings import Settings

__all__ = ["Facts", "Room", "gather"]


@dataclass(frozen=True, slots=True)
class Room:
    """How full a pool is, and the file system below it when the pool is a file. Bytes."""

    pool: Pool
    host_free: int | None
    """None: not loop-backed, or this process may not look."""

    @property
    def is_blind(self) -> bool:
        """Whether the pool is a file, and the room below it unknown: another host's, or this process is not root's."""
        return self.host_free is None and self.pool.source.endswith(".img")


@dataclass(frozen=True, slots=True)
class Facts:
    """What planning needs to know."""

    server: Server
    projects: Mapping[str, Project]
    sources: Mapping[str, Instance]
    """Instances that are copied, by the name that the settings give the source: production's, or golden clones."""
    clones: Mapping[str, Instance]
    """Instances of the stage's project, by name."""
    networks: Mapping[str, Network]
    """Networks of the host, by name."""
    acl: Mapping[str, Any] | None
    profile: Mapping[str, Any] | None
    """The stage's default profile; None while the project is missing."""
    rooms: Mapping[str, Room]
    """By pool name, of the pools that the named sources live on."""
    full_copy_bytes: Mapping[str, int | None] = field(default_factory=dict)
    """By source name, for sources on pools without copy-on-write: the bytes of a full copy, where known."""
    golden: str = ""
    """The project that the sources are golden clones in; empty where they are production's own."""
    production: Mapping[str, Instance] = field(default_factory=dict)
    """Production's instances, where they are not the sources."""

    @property
    def production_networks(self) -> frozenset[str]:
        """Bridges that instances of the source project hang on."""
        names: set[str] = set()
        for instance in (self.production if self.golden else self.sources).values():
            for device in instance.expanded_devices.values():
                if device.get("type") == "nic":
                    names.update(filter(None, (device.get("network"), device.get("parent"))))
        return frozenset(names)


def gather(reader: Reader, host: HostView, settings: Settings, *, need_source: bool = True, golden: str = "") -> Facts:
    """Read the facts: about ten requests.

    Args:
        golden: Project to copy from instead of production's.
        need_source: Whether it is an error that the source project does not exist.

    Raises:
        SourceMissing: the source project does not exist.
    """
    projects = reader.projects()
    if need_source and settings.source_project not in projects:
        raise SourceMissing(
            f"there is no project {settings.source_project} to copy production from",
            seen="projects: " + ", ".join(sorted(projects)),
            remedy="name production's project with --source-project (source_project)",
        )
    production = reader.instances(settings.source_project)
    sources = production
    if golden:
        copied = reader.instances(golden)
        sources = {c.source_name: copied[c.name] for c in settings.containers.values() if c.name in copied}
    exists = settings.project in projects
    clones = reader.instances(settings.project) if exists else {}
    wanted = [sources[c.source_name] for c in settings.containers.values() if c.source_name in sources]
    rooms = {}
    for pool_name in sorted({instance.pool for instance in wanted if instance.pool}):
        pool = reader.pool(pool_name)
        rooms[pool_name] = Room(pool, host.free_bytes(pool.source) if pool.source.endswith(".img") else None)
    full_copies: dict[str, int | None] = {}
    for container in settings.containers.values():
        source = sources.get(container.source_name)
        if source is None or container.name in clones:
            continue
        pool = rooms[source.pool].pool
        if not pool.copy_on_write:
            folder = f"{pool.source}/containers/{_volume_name(source)}"
            full_copies[source.name] = host.tree_bytes(folder)
    return Facts(
        server=reader.server(),
        projects=projects,
        sources=sources,
        clones=clones,
        networks=reader.networks(),
        acl=reader.acls().get(shape.acl_name(settings)),
        profile=reader.profile(settings.project) if exists else None,
        rooms=rooms,
        full_copy_bytes=full_copies,
        golden=golden,
        production=production if golden else {},
    )


def _volume_name(instance: Instance) -> str:
    """Incus prefixes the volumes of instances outside project `default` with their project."""
    return instance.name if instance.project == "default" else f"{instance.project}_{instance.name}"
