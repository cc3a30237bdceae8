"""Bridges and access lists that the stage had under another `network.name`. They are found by their marks.

The stage's project names the bridge that it may use. Provisioning changes that once the former bridge is gone, so the
next run finds what a killed one has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pytest_stagegbo.desired import marks, objects, ownership

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Network, Project, Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["Former", "changes_bridge", "find_former", "look_for_former"]


class Former(Struct, frozen=True):
    """Names of what the stage does not use any more."""

    networks: tuple[str, ...] = ()
    acls: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.networks or self.acls)


def changes_bridge(project: Project | None, settings: Settings) -> bool:
    """Whether the stage's project is on another bridge than the settings say. Pure."""
    named = "" if project is None else project.config.get("restricted.networks.access", "")
    return named not in {"", settings.network.name}


def find_former(
    networks: Mapping[str, Network],
    acls: Mapping[str, Mapping[str, Any]],
    settings: Settings,
    parent: str,
    projects: Mapping[str, Project],
) -> Former:
    """What was made for this very stage and has another name than it should. Pure.

    A bridge that somebody renamed still names the access list of its old name: it is somebody else's by now.

    Args:
        networks: All of the host's, by name.
        acls: All access lists, by name.
        parent: The stage that this one is a slot or the golden copy of.
    """
    owner = {(settings.project, parent)}

    def is_own(config: Mapping[str, str], bridge: str) -> bool:
        return marks.is_ours(config) and ownership.owners(config, bridge, projects) == owner

    found = [
        name
        for name, each in networks.items()
        if name != settings.network.name
        and is_own(each.config, name)
        and each.config.get("security.acls") == objects.acl_of(name)
    ]
    lists = [
        name
        for name, each in acls.items()
        if name != objects.acl_name(settings)
        and (bridge := objects.bridge_of(name))
        and (bridge in found or bridge not in networks)
        and is_own(each.get("config") or {}, bridge)
    ]
    return Former(tuple(sorted(found)), tuple(sorted(lists)))


def look_for_former(reader: Reader, settings: Settings, parent: str, projects: Mapping[str, Project]) -> Former:
    """As `find_former`, of all that the host has now."""
    return find_former(reader.networks(), reader.acls(), settings, parent, projects)
