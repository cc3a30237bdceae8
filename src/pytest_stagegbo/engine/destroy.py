"""Taking the stage away again: everything that carries this tool's mark, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pytest_stagegbo.engine import marks, shape
from pytest_stagegbo.engine.exposure import read_forward
from pytest_stagegbo.engine.steps import RemoveClone, Step
from pytest_stagegbo.errors import NotOurs

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Instance, Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["RemoveAcl", "RemoveForward", "RemoveNetwork", "RemoveProject", "plan_destroy"]


@dataclass(frozen=True, kw_only=True)
class RemoveProject(Step):
    verb: ClassVar[str] = "remove-project"

    @property
    def text(self) -> str:
        return f"remove project {self.subject}"


@dataclass(frozen=True, kw_only=True)
class RemoveForward(Step):
    verb: ClassVar[str] = "remove-forward"

    @property
    def text(self) -> str:
        return f"close what is exposed at {self.subject}"


@dataclass(frozen=True, kw_only=True)
class RemoveNetwork(Step):
    verb: ClassVar[str] = "remove-network"

    @property
    def text(self) -> str:
        return f"remove network {self.subject}"


@dataclass(frozen=True, kw_only=True)
class RemoveAcl(Step):
    verb: ClassVar[str] = "remove-access-list"

    @property
    def text(self) -> str:
        return f"remove access list {self.subject}"


def plan_destroy(reader: Reader, settings: Settings) -> tuple[Step, ...]:
    """The steps that remove the stage; none when there is none. Reads, and does not write.

    Raises:
        NotOurs: the project has instances that this tool did not make, or the bridge is used by somebody else.
    """
    steps: list[Step] = []
    project = reader.projects().get(settings.project)
    clones: dict[str, Instance] = {}
    if project is not None and marks.is_ours(project.config):
        clones = reader.instances(settings.project)
        foreign = [name for name, clone in clones.items() if not marks.is_ours(clone.config)]
        if foreign:
            raise NotOurs(
                f"project {settings.project} has instances that pytest-stagegbo did not make: {', '.join(foreign)}",
                seen="nothing was removed",
                remedy=f"remove them yourself (`incus delete --project {settings.project} NAME`), then destroy again",
            )
        steps.extend(RemoveClone(subject=name, reason="the stage is destroyed") for name in clones)
        after = frozenset(step.key for step in steps)
        steps.append(RemoveProject(subject=settings.project, after=after))
    network = reader.network(settings.network.name)
    if network is not None and marks.is_ours(network.config):
        steps.extend(RemoveForward(subject=listen) for listen in _forwards(reader, settings))
        after = frozenset(step.key for step in steps)
        steps.append(RemoveNetwork(subject=network.name, after=after))
    acl = reader.acl(shape.acl_name(settings))
    if acl is not None and marks.is_ours(acl.get("config") or {}):
        after = frozenset(step.key for step in steps)
        steps.append(RemoveAcl(subject=acl["name"], after=after))
    return tuple(steps)


def _forwards(reader: Reader, settings: Settings) -> list[str]:
    """Listen addresses of the bridge's forwards, which would go with it.

    Raises:
        NotOurs: this tool did not make one of them.
    """
    found = reader.forwards(settings.network.name)
    foreign = [each["listen_address"] for each in found if read_forward(each) is None]
    if foreign:
        raise NotOurs(
            f"network {settings.network.name} has forwards that pytest-stagegbo did not make: {', '.join(foreign)}",
            seen="nothing was removed",
            remedy=f"remove them yourself (`incus network forward delete {settings.network.name} ADDRESS`), then "
            "destroy again",
        )
    return [each["listen_address"] for each in found]
