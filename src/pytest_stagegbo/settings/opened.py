"""Settings of an opened capsule: a stage of its own, which is named after the stage that the capsule is of. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Interface
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo.settings.derived import derive, moved
from pytest_stagegbo.settings.model import SlotSettings, StorageSettings

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ContainerSettings, Settings

__all__ = ["MOST_OPENED", "as_opened", "opened_number", "opened_project", "opened_settings"]

MOST_OPENED = 20
"""Capsules that may be open at once."""
PLACE = 149
"""The subnet of the first opened capsule comes so many and one after the stage's."""


def opened_project(project: str, number: int) -> str:
    """Return the project of an opened capsule of a stage."""
    return f"{project}-CAPSULE-{number}"


def opened_number(stage: str, project: str) -> int | None:
    """Return the number of the opened capsule of this stage that has this project; None: it is none of this stage's."""
    found = re.fullmatch(re.escape(stage) + r"-CAPSULE-([1-9][0-9]?)", project)
    return int(found[1]) if found and int(found[1]) <= MOST_OPENED else None


def as_opened(settings: Settings) -> Settings:
    """Return the settings, as those of an opened capsule if that is what their project names.

    Raises:
        SettingsError: its names or addresses are not possible.
    """
    stage = settings.project.rpartition("-CAPSULE-")[0]
    number = opened_number(stage, settings.project) if stage else None
    return opened_settings(structs.replace(settings, project=stage), number) if number else settings


def opened_settings(settings: Settings, number: int) -> Settings:
    """Return the settings of opened capsule `number` of a stage.

    Services start when they are asked for. Hooks have done their work, and secrets were replaced, before the capsule
    was kept. What a reset by restore would go back to is not there.

    Raises:
        SettingsError: its names or addresses are not possible.
    """
    bridge = settings.network.name.rstrip("0123456789") + f"c{number}"
    first = IPv4Interface(settings.capsules.address) if settings.capsules.address else None
    address = moved(first, number - 1) if first else moved(settings.network.address, PLACE + number)
    project = opened_project(settings.project, number)
    derived = derive(settings, project, bridge, address, f"opened capsule {number}")
    return structs.replace(
        derived,
        slots=SlotSettings(),
        storage=StorageSettings(),
        secrets=MappingProxyType({}),
        pytest=structs.replace(settings.pytest, deploy=()),
        containers=MappingProxyType({name: _held(each) for name, each in derived.containers.items()}),
    )


def _held(container: ContainerSettings) -> ContainerSettings:
    reset = "restart" if container.reset == "restore" else container.reset
    return structs.replace(container, held=True, hooks=(), boot="units", reset=reset)
