"""What containers use of their pools. The kernel says at once what takes the daemon a program for each volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.incus import Instance, Pool, Reader
    from pytest_stagegbo.incus.localhost import Host

__all__ = ["used_bytes", "volume_name"]

AT_ONCE = 3
"""Volumes that the daemon is asked about at once, at 5 to 10 ms of its time each."""


def used_bytes(
    reader: Reader, host: Host, pools: Mapping[str, Pool], instances: Iterable[Instance]
) -> dict[str, int | None]:
    """Return, by name, the bytes that each instance's volume has for itself, where its driver counts them. On btrfs
    what is shared with other volumes is left out.

    Args:
        pools: Those that are known, by name.
    """
    found: dict[str, int | None] = {}
    unseen: list[Instance] = []
    for each in instances:
        pool = pools.get(each.pool)
        size = None if pool is None else host.exclusive_bytes(pool, volume_name(each))
        found[each.name] = size
        if size is None:
            unseen.append(each)
    if unseen:
        with Workers(AT_ONCE, "stagegbo usage") as threads:
            sizes = threads.map(lambda each: reader.volume_usage(each.pool, each.project, each.name), unseen)
            found |= zip((each.name for each in unseen), sizes, strict=True)
    return found


def volume_name(instance: Instance) -> str:
    """Incus prefixes the volumes of instances outside project `default` with their project."""
    return instance.name if instance.project == "default" else f"{instance.project}_{instance.name}"
