"""Whose a project, a bridge or an access list is: which stage it was made for, not only which tool made it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import NotOurs, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pytest_stagegbo.incus import Network, Project
    from pytest_stagegbo.settings import Settings

__all__ = ["belongs", "is_free_for", "is_stage", "owners", "refuse_relation", "with_marks"]


def is_stage(project: Project) -> bool:
    """Whether a project was made as a stage, a slot or a golden copy under the name that it has. One that was renamed
    is somebody else's."""
    return marks.is_ours(project.config) and project.config.get(marks.PROJECT, project.name) == project.name


def owners(config: Mapping[str, str], bridge: str, projects: Mapping[str, Project]) -> frozenset[tuple[str, str]]:
    """The stages that a bridge, or its access list, may have been made for, each as project and family.

    One that names its stage has one owner, whether that stage's project is still there or not. One without such a mark
    was made by an earlier version: every project of this tool that may use the bridge may be its owner.

    Args:
        config: Of the bridge or the access list.
        bridge: The bridge's name.
        projects: All projects, by name.
    """
    if marks.PROJECT in config:
        return frozenset({(config[marks.PROJECT], config.get(marks.FAMILY, ""))})
    return frozenset(
        (name, project.config.get(marks.FAMILY, ""))
        for name, project in projects.items()
        if marks.is_ours(project.config) and project.config.get("restricted.networks.access") == bridge
    )


def belongs(config: Mapping[str, str], settings: Settings, parent: str, projects: Mapping[str, Project]) -> bool:
    """Whether the stage's bridge or access list was made for this stage, and for no other."""
    return marks.is_ours(config) and owners(config, settings.network.name, projects) == {(settings.project, parent)}


def is_free_for(config: Mapping[str, str], settings: Settings, parent: str, projects: Mapping[str, Project]) -> bool:
    """Whether the stage may use this bridge or access list: it belongs to it, or it is an earlier version's and no
    stage uses it."""
    found = owners(config, settings.network.name, projects)
    return marks.is_ours(config) and found <= {(settings.project, parent)}


def with_marks(network: Network, acl: Mapping[str, Any] | None) -> Network:
    """A bridge of a cluster that nobody has made on its members yet, with the marks of the access list that is made
    before it: until then it has no configuration that could say whose it is."""
    if network.config or not network.is_half_made or acl is None:
        return network
    config = acl.get("config") or {}
    return replace(
        network, config={key: config[key] for key in (marks.OWNER, marks.PROJECT, marks.FAMILY) if key in config}
    )


def refuse_relation(project: Project | None, parent: str) -> None:
    """Raise an error if the project is a stage of its own, and the settings mean a slot or a golden copy, or vice
    versa. The two have different addresses.

    Args:
        parent: The stage whose slot or golden copy the settings mean. Empty: they mean a stage of its own.

    Raises:
        SettingsError: the project is a slot, or the golden copy, of another stage.
        NotOurs: it is a stage of its own.
    """
    if project is None or not marks.is_ours(project.config):
        return
    found = project.config.get(marks.FAMILY, "")
    if parent and not found:
        raise NotOurs(
            f"project {project.name} is a stage of its own, and no slot or golden copy of {parent}",
            seen=f"it has no mark {marks.FAMILY}={parent}",
            remedy=f"give one of the two another name (the setting project): the slots of {parent} are {parent}-1, "
            f"{parent}-2 and so on, its golden copy is {parent}-GOLDEN. `stagegbo --project {project.name} destroy` "
            "removes that stage",
        )
    if found != parent:
        raise SettingsError(
            f"project {project.name} is a slot of stage {found}, or its golden copy",
            seen=f"its mark {marks.FAMILY}={found}",
            remedy=f'set project = "{found}", and choose its slot with --slot N; pytest chooses slots itself',
        )
