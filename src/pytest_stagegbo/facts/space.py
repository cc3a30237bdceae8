"""How much room a stage's pools have, and how much of it must stay free: the one place where either is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Instance, Pool, Reader
    from pytest_stagegbo.incus.localhost import Host, Quotas
    from pytest_stagegbo.settings import Settings

__all__ = ["Room", "Space", "floor_bytes", "look", "pool_names", "spaces"]


class Space(Struct, frozen=True):
    """Room in one place. Bytes."""

    where: str
    free: int
    """Less what is promised to writers and not on the disk yet, and what only metadata may use."""
    floor: int
    """What must stay free."""

    @property
    def margin(self) -> int:
        """What may still be used; below 0 when the floor is passed."""
        return self.free - self.floor

    def __str__(self) -> str:
        return f"{self.where}: {bytes_text(max(0, self.free))} free, {bytes_text(self.floor)} must stay free"


class Room(Struct, frozen=True):
    """How full a pool is, and the file system below it when the pool is a file. Bytes."""

    pool: Pool
    host_free: int | None
    """None: not loop-backed, or this process may not look."""
    unwritten: int = 0
    """Promised to writers and not on the disk yet."""
    metadata: int = 0
    """Free as the daemon counts, but kept for the file system's own metadata."""
    quotas: Quotas | None = None
    """None: not btrfs, or this process can't know."""

    @property
    def is_blind(self) -> bool:
        """Whether the pool is a file, and the room below it unknown: another host's, or this process is not root's."""
        return self.host_free is None and self.pool.source.endswith(".img")

    @property
    def free(self) -> int:
        """What may still be written to the pool."""
        return self.pool.free - self.unwritten - self.metadata

    def spaces(self, settings: Settings) -> list[Space]:
        """The room in the pool, and below it."""
        floor, name = floor_bytes(settings, self.pool), self.pool.name
        found = [Space(f"pool {name}", self.free, floor)]
        if self.host_free is not None:
            below = f"the host's file system that holds the file of pool {name}"
            found.append(Space(below, self.host_free - self.unwritten, floor))
        return found

    def tightest(self, settings: Settings) -> Space:
        return min(self.spaces(settings), key=lambda space: space.margin)


def look(reader: Reader, name: str, host: Host, known: Pool | None = None) -> Room:
    """How full a pool is now. Raises as `Reader.pool` does.

    Args:
        known: The pool at an earlier look: the daemon is not asked again where the host itself tells.
    """
    used = None if known is None else host.used_bytes(known)
    pool = replace(known, used=used) if known is not None and used is not None else reader.pool(name)
    below = host.free_bytes(pool.source) if pool.source.endswith(".img") else None
    return Room(pool, below, host.unwritten_bytes(pool), host.metadata_bytes(pool), host.quotas(pool))


def spaces(reader: Reader, name: str, settings: Settings, host: Host) -> list[Space]:
    """The room in a pool now, and below it."""
    return look(reader, name, host).spaces(settings)


def floor_bytes(settings: Settings, pool: Pool) -> int:
    """What must stay free of a pool, and of the file system below it: the larger of the two settings."""
    return max(parse_size(settings.disk_floor), int(settings.disk_floor_share * pool.total))


def pool_names(reader: Reader, settings: Settings, clones: Mapping[str, Instance] | None = None) -> list[str]:
    """The pools that the stage's containers live on; before there are any, those of production's.

    Args:
        clones: Instances of the stage's project, by name, where they are known.
    """
    found = reader.instances(settings.project) if clones is None else clones
    names = {found[name].pool for name in settings.containers if name in found}
    own = settings.storage.own
    if not names and own:
        names = {own} if reader.has_pool(own) else set()
    elif not names:
        sources = reader.instances(settings.source_project)
        names = {sources[c.source_name].pool for c in settings.containers.values() if c.source_name in sources}
    return sorted(filter(None, names))
