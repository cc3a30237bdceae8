"""Which projects a stage's slots and golden copy have, and the bridge of each, by the marks on what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Reader

__all__ = ["bridges_of_slots", "is_of"]


def bridges_of_slots(reader: Reader, parent: str) -> dict[str, str]:
    """Return, by project, the name of its bridge. A project whose making or removal was broken off may be gone, and its
    bridge or access list still there.

    Args:
        parent: The stage's project.
    """
    with Workers(2, "stagegbo slots") as threads:  # Incus takes its time over what uses networks and access lists
        lists, networks = threads.submit(reader.acls), threads.submit(reader.networks)
        projects = reader.projects()
        found: dict[str, str] = {}
        for list_name, acl in lists.result().items():
            config = acl.get("config") or {}
            if is_of(config, parent):
                found[config.get(marks.PROJECT, "")] = list_name.removesuffix("-isolation")
        for name, network in networks.result().items():
            if is_of(network.config, parent):
                found[network.config.get(marks.PROJECT, "")] = name
    for name, project in projects.items():
        if is_of(project.config, parent):
            found[name] = project.config.get("restricted.networks.access") or found.get(name, "")
    return found


def is_of(config: Mapping[str, str], parent: str) -> bool:
    """Whether something was made for a slot, or the golden copy, of a stage."""
    return marks.is_ours(config) and config.get(marks.FAMILY) == parent
