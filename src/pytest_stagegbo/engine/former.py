"""Bridges and access lists that the stage had under another `network.name`. They are found by their marks.

The stage's project names the bridge that it may use. Provisioning changes that once the former bridge is gone, so the
next run finds what a killed one has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo.engine import desired, foreign, marks, ownership
from pytest_stagegbo.engine.steps import RemoveAcl, RemoveNetwork

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.engine.facts import Facts
    from pytest_stagegbo.engine.foreign import Foreign
    from pytest_stagegbo.engine.steps import Step
    from pytest_stagegbo.incus import Network, Project, Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["Former", "changes_bridge", "find_former", "foreign_on", "left_by_others", "look_for_former", "removal"]


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
        and each.config.get("security.acls") == desired.acl_of(name)
    ]
    lists = [
        name
        for name, each in acls.items()
        if name != desired.acl_name(settings)
        and (bridge := desired.bridge_of(name))
        and (bridge in found or bridge not in networks)
        and is_own(each.get("config") or {}, bridge)
    ]
    return Former(tuple(sorted(found)), tuple(sorted(lists)))


def look_for_former(reader: Reader, settings: Settings, parent: str, projects: Mapping[str, Project]) -> Former:
    """As `find_former`, of all that the host has now."""
    return find_former(reader.networks(), reader.acls(), settings, parent, projects)


def removal(former: Former, after: frozenset[str]) -> list[Step]:
    """Steps that remove it. The forwards of a bridge go with it. Pure."""
    networks = [RemoveNetwork(subject=name, after=after) for name in former.networks]
    gone = after | {step.key for step in networks}
    return [*networks, *(RemoveAcl(subject=name, after=gone) for name in former.acls)]


def foreign_on(reader: Reader, settings: Settings, former: Former) -> list[Foreign]:
    """What somebody else has on these bridges, or what else uses these access lists."""
    found = []
    for name in former.networks:
        there = replace(settings, network=replace(settings.network, name=name))
        network = reader.network(name)
        if network is not None:
            found += foreign.on_bridge(reader, network, there, in_stage=True)
            found += foreign.forwards(reader, there)[1]
    for name in former.acls:
        acl = reader.acl(name)
        bridge = replace(settings.network, name=desired.bridge_of(name))
        if acl is not None:
            found += foreign.uses_acl(acl, replace(settings, network=bridge))
    return found


def left_by_others(facts: Facts, settings: Settings, parent: str) -> Iterable[str]:
    """Notes for a stage that is new: the others of this host, in case it is only a setting that has changed."""
    if parent or settings.project in facts.projects:
        return
    for name, project in sorted(facts.projects.items()):
        if ownership.is_stage(project) and not project.config.get(marks.FAMILY):
            yield (
                f"this host has stage {name} as well. If it is only the name in the settings that has changed, "
                f"`stagegbo --project {name} destroy` removes the former one"
            )
    for name, network in sorted(facts.networks.items()):
        owner = network.config.get(marks.PROJECT, "")
        if marks.is_ours(network.config) and owner and owner not in {*facts.projects, settings.project}:
            yield (
                f"bridge {name} is left of stage {owner}, whose project is gone: `stagegbo --project {owner} destroy` "
                "removes it"
            )
