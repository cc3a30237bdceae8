"""Plans the golden copy of one more member of a cluster: a copy of the golden copy that is never started. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks, objects
from pytest_stagegbo.desired.allowlist import disk_limit
from pytest_stagegbo.desired.own_pool import clone_pool, shares_blocks
from pytest_stagegbo.plan.notes import own_networks
from pytest_stagegbo.plan.objections import costs, refuse_foreign, shortage
from pytest_stagegbo.plan.steps import CopyClone, RemoveClone, SetProject, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["foundations", "plan_member_copy", "unfit"]


def unfit(
    clones: Mapping[str, Instance], golden: Mapping[str, Instance], settings: Settings, member: str
) -> list[ContainerSettings]:
    """Return the containers whose copies are missing, unfinished, on another member or of another generation."""

    def fits(clone: Instance | None, source: Instance | None) -> bool:
        if clone is None or source is None or not marks.is_clone(clone, settings) or clone.location != member:
            return False
        own = clone.config.get(marks.GENERATION, "")
        generation = own if source.is_unknown else source.config.get(marks.GENERATION, "")
        whole = clone.config.get(marks.STATE) == marks.PREPARED and clone.status == "Stopped"
        return whole and bool(generation) and own == generation

    return [each for name, each in settings.containers.items() if not fits(clones.get(name), golden.get(name))]


def foundations(facts: Facts, settings: Settings, parent: str) -> list[Step]:
    """Return the step for the copy's project, if it is missing or different."""
    project = facts.projects.get(settings.project)
    wanted = objects.project(settings, own_networks=own_networks(facts, settings), parent=parent)
    if (
        project is None
        or any(project.config.get(key) != value for key, value in wanted.items())
        or objects.lifted(project.config)
    ):
        return [SetProject(subject=settings.project, create=project is None)]
    return []


def plan_member_copy(facts: Facts, settings: Settings, parent: str) -> tuple[Step, ...]:
    """Return the steps that bring the golden copy to the member of these facts, as far as it is not there.

    Args:
        settings: Of the copy; see `slots.layout.member_copy_settings`.
        parent: The stage that this is a golden copy of.

    Raises:
        NotOurs: something that this tool did not make is in the way.
        NoRoom: the member's pool is too full.
    """
    refuse_foreign(facts, settings)
    golden = {name: facts.sources[each.source_name] for name, each in settings.containers.items()}
    copying = unfit(facts.clones, golden, settings, facts.member)
    for pool, cost in costs(facts, settings, copying).items():
        error = shortage(facts.rooms[pool], settings, cost)
        if error is not None:
            raise error
    founded = foundations(facts, settings, parent)
    after = frozenset(step.key for step in founded)
    own = {name for name, clone in facts.clones.items() if marks.is_clone(clone, settings)}
    leaving = sorted(own - settings.containers.keys() | own & {each.name for each in copying})
    removals = [
        RemoveClone(subject=name, reason="it is unfinished, or of an older golden copy", after=after)
        for name in leaving
    ]
    return (*founded, *removals, *(_copy(facts, settings, each, after) for each in copying))


def _copy(facts: Facts, settings: Settings, container: ContainerSettings, after: frozenset[str]) -> CopyClone:
    source = facts.sources[container.source_name]
    pool = clone_pool(source, settings)
    return CopyClone(
        subject=container.name,
        container=container,
        pool=pool,
        limit=disk_limit(container, settings, golden=False),
        location=facts.member,
        in_full=not shares_blocks(source, pool, facts.member),
        dropped=(),
        at_rest=True,
        after=after | {f"remove:{container.name}"},
    )
