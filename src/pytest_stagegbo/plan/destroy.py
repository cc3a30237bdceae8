"""Plans the removal of a stage: everything that was made for this stage, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks, objects, ownership
from pytest_stagegbo.desired.versions import refuse_newer
from pytest_stagegbo.facts.former import look_for_former
from pytest_stagegbo.plan import foreign
from pytest_stagegbo.plan.former import foreign_on, removal
from pytest_stagegbo.plan.steps import RemoveAcl, RemoveClone, RemoveForward, RemoveNetwork, RemoveProject, Step

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.plan.foreign import Foreign
    from pytest_stagegbo.settings import Settings

__all__ = ["plan_destroy", "refuse_foreign"]


def plan_destroy(reader: Reader, settings: Settings, parent: str = "") -> tuple[Step, ...]:
    """Return the steps that remove the stage. There are none when there is no stage. It reads, and does not write.

    Args:
        parent: The stage that this one is a slot or the golden copy of.

    Raises:
        MissingRequirement: a newer version made the stage.
        NotOurs: something that this tool did not make would go with the stage, or keeps it from going.
    """
    steps: list[Step] = []
    found: list[Foreign] = []
    projects = reader.projects()
    project = projects.get(settings.project)
    refuse_newer(projects.get(parent or settings.project))
    is_ours = project is not None and ownership.is_stage(project)
    if project is not None and is_ours:
        clones = reader.instances(settings.project)
        found += foreign.in_project(project, settings, clones)
        own = [name for name, clone in clones.items() if marks.is_clone(clone, settings)]
        found += foreign.in_clones(reader, settings, own)
        steps.extend(RemoveClone(subject=name) for name in own)
        after = frozenset(step.key for step in steps)
        steps.append(RemoveProject(subject=settings.project, after=after))
    network, acl = reader.network(settings.network.name), reader.acl(objects.acl_name(settings))
    network = None if network is None else ownership.with_marks(network, acl)
    if network is not None and ownership.belongs(network.config, settings, parent, projects):
        found += foreign.on_bridge(reader, network, settings, is_ours=is_ours)
        exposed, others = foreign.forwards(reader, settings)
        found += others
        steps.extend(RemoveForward(subject=listen) for listen in exposed)
        after = frozenset(step.key for step in steps)
        steps.append(RemoveNetwork(subject=network.name, after=after))
    if acl is not None and ownership.belongs(acl.get("config") or {}, settings, parent, projects):
        found += foreign.uses_acl(acl, settings, is_ours=is_ours)
        after = frozenset(step.key for step in steps)
        steps.append(RemoveAcl(subject=acl["name"], after=after))
    former = look_for_former(reader, settings, parent, projects)
    found += foreign_on(reader, settings, former)
    steps += removal(former, frozenset(step.key for step in steps))
    foreign.refuse(found, f"stage {settings.project} can't be destroyed", "then destroy again")
    return tuple(steps)


def refuse_foreign(reader: Reader, settings: Settings) -> None:
    """Raise `NotOurs` when the stage's project has something that this tool did not make."""
    project = reader.projects().get(settings.project)
    if project is not None:
        found = foreign.in_project(project, settings, reader.instances(settings.project))
        foreign.refuse(found, f"project {settings.project} can't be removed", "then destroy again")
