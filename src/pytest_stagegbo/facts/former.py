"""Bridges and access lists that the stage had under another `network.name`. They are found by their marks.

The stage's project names the bridge that it may use. Provisioning changes that once the former bridge is gone, so the
next run finds what a killed one has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pytest_stagegbo.desired import marks, objects, ownership
from pytest_stagegbo.incus.seen_networks import SeenNetworks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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
    acls: Iterable[str],
    settings: Settings,
    parent: str,
    projects: Mapping[str, Project],
    find_acl: Callable[[str], Mapping[str, Any] | None],
) -> Former:
    """What was made for this very stage and has another name than it should.

    A bridge that somebody renamed still names the access list of its old name: it is somebody else's by now.

    Args:
        networks: All of the host's, by name.
        acls: The names of all access lists.
        parent: The stage that this one is a slot or the golden copy of.
        find_acl: Returns the access list of a name. Called for those that may be the stage's.
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
        for name in acls
        if name != objects.acl_name(settings)
        and (bridge := objects.bridge_of(name))
        and (bridge in found or bridge not in networks)
        and is_own((find_acl(name) or {}).get("config") or {}, bridge)
    ]
    return Former(tuple(sorted(found)), tuple(sorted(lists)))


def look_for_former(
    reader: Reader,
    settings: Settings,
    parent: str,
    projects: Mapping[str, Project],
    networks: SeenNetworks | None = None,
) -> Former:
    """As `find_former`, of all that the host has now.

    Args:
        networks: What was seen of networks in this run; None: nothing.
    """
    found = (networks or SeenNetworks()).all(reader)
    return find_former(found, reader.acl_names(), settings, parent, projects, reader.acl)
