"""What whoever writes to a stage that is there has to know of production: what it must not touch. Two requests.

`facts.gather` reads that and everything else that a plan is made of. A command in a clone, or a reset, plans nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.desired import ownership
from pytest_stagegbo.errors import SourceMissing
from pytest_stagegbo.facts.former import Former
from pytest_stagegbo.facts.placement import refuse_away

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pytest_stagegbo.incus import Instance, Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["Surroundings", "bridges_of", "look_around", "pools_of", "refuse_no_source"]


class Surroundings(Struct, frozen=True):
    """The part of `Facts` that a writer's scope is made of."""

    production_networks: frozenset[str]
    """Bridges that instances of the source project hang on."""
    production_pools: frozenset[str]
    """Storage pools that they are on."""
    member: str = ""
    """The cluster member that the stage is on; empty: the server is no cluster."""
    golden: str = ""
    """The project of the golden clones that the stage is copied from; empty: it is copied from production."""
    former: Former = Former()


def look_around(reader: Reader, settings: Settings, golden: str = "", parent: str = "") -> Surroundings:
    """Read them.

    Args:
        golden: See `Surroundings`.
        parent: The stage that this one is a slot or the golden copy of.

    Raises:
        SourceMissing: the source project does not exist.
        SettingsError, NotOurs: see `refuse_relation`.
        MissingRequirement: the stage's member of the cluster is away.
    """
    projects = reader.projects()
    refuse_no_source(settings, projects)
    ownership.refuse_relation(projects.get(settings.project), parent)
    production = reader.instances(settings.source_project).values()
    if reader.server().clustered:
        refuse_away(reader, settings.project)
    return Surroundings(bridges_of(production), pools_of(production), reader.member, golden)


def refuse_no_source(settings: Settings, projects: Collection[str]) -> None:
    """Raise `SourceMissing` if production's project does not exist."""
    if settings.source_project not in projects:
        raise SourceMissing(
            f"there is no project {settings.source_project} to copy production from",
            seen="projects: " + ", ".join(sorted(projects)),
            remedy="name production's project with the setting source_project",
        )


def bridges_of(instances: Iterable[Instance]) -> frozenset[str]:
    """Names of what instances' network devices hang on."""
    names: set[str] = set()
    for instance in instances:
        for device in instance.expanded_devices.values():
            if device.get("type") == "nic":
                names.update(filter(None, (device.get("network"), device.get("parent"))))
    return frozenset(names)


def pools_of(instances: Iterable[Instance]) -> frozenset[str]:
    """Names of the storage pools that instances are on."""
    return frozenset(each.pool for each in instances if each.pool)
