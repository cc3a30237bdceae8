"""Plans to remove bridges and access lists that the stage had before `network.name` changed (`facts/former.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo.desired import marks, objects, ownership
from pytest_stagegbo.plan import foreign
from pytest_stagegbo.plan.steps import RemoveAcl, RemoveNetwork

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.facts.former import Former
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.plan.foreign import Foreign
    from pytest_stagegbo.plan.steps import Step
    from pytest_stagegbo.settings import Settings

__all__ = ["foreign_on", "left_by_others", "removal"]


def removal(former: Former, after: frozenset[str]) -> list[Step]:
    """Return the steps that remove a former bridge and its access list. Its forwards go with it. Pure."""
    networks = [RemoveNetwork(subject=name, after=after) for name in former.networks]
    gone = after | {step.key for step in networks}
    return [*networks, *(RemoveAcl(subject=name, after=gone) for name in former.acls)]


def foreign_on(reader: Reader, settings: Settings, former: Former) -> list[Foreign]:
    """Return what others have on these bridges, and what else uses these access lists."""
    found = []
    for name in former.networks:
        there = replace(settings, network=replace(settings.network, name=name))
        network = reader.network(name)
        if network is not None:
            found += foreign.on_bridge(reader, network, there, in_stage=True)
            found += foreign.forwards(reader, there)[1]
    for name in former.acls:
        acl = reader.acl(name)
        bridge = replace(settings.network, name=objects.bridge_of(name))
        if acl is not None:
            found += foreign.uses_acl(acl, replace(settings, network=bridge))
    return found


def left_by_others(facts: Facts, settings: Settings, parent: str) -> Iterable[str]:
    """Return notes about other stages of this host, for a new stage: perhaps only a setting has changed."""
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
