"""The settings of each slot and of the golden copy, as a pure function of the settings of the stage."""

from __future__ import annotations

import re
from hashlib import sha256
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo.settings.checks import MOST_SLOTS
from pytest_stagegbo.settings.derived import derive, moved

if TYPE_CHECKING:
    from pytest_stagegbo.settings import Settings

__all__ = ["GOLDEN", "golden_settings", "is_member_copy", "member_copy_settings", "number_of", "slot_settings"]

GOLDEN = "GOLDEN"
"""Ends the name of the golden copy's project."""
GOLDEN_PLACE = 100
"""The golden copy's subnet comes so many after the stage's."""


def slot_settings(settings: Settings, number: int) -> Settings:
    """Return the settings of slot `number`. Slot 0 is the stage itself.

    A slot always has the same names and addresses. A subnet that something else has is refused when the slot is
    provisioned, and not passed over: addresses that depend on what else there is would be a riddle in every log.

    Raises:
        SettingsError: its names or addresses can't be had.
    """
    if number == 0:
        return settings
    slots = settings.slots
    bridge = slots.network.replace("{slot}", str(number)) if slots.network else _bridge(settings, str(number))
    first = IPv4Interface(slots.address) if slots.address else moved(settings.network.address, 1)
    return derive(settings, f"{settings.project}-{number}", bridge, moved(first, number - 1), f"slot {number}")


def golden_settings(settings: Settings) -> Settings:
    """Return the settings of the golden copy. Raises `SettingsError` if its names or addresses are not possible."""
    bridge = settings.slots.network.replace("{slot}", "g") if settings.slots.network else _bridge(settings, "g")
    place = settings.slots.golden_address
    address = IPv4Interface(place) if place else moved(settings.network.address, GOLDEN_PLACE)
    return derive(settings, f"{settings.project}-{GOLDEN}", bridge, address, "the golden copy")


def member_copy_settings(golden: Settings, member: str) -> Settings:
    """Return the settings of the golden copy's copy on another member of a cluster. Nothing of it is on a network.

    A project's name has no `_`, which a member's may have: `a_b` must not get the project of a member `a-b`.
    """
    word = member.replace("_", "-")
    if word != member:
        word += f"-{sha256(member.encode()).hexdigest()[:8]}"
    return structs.replace(golden, project=f"{golden.project}-{word}")


def is_member_copy(settings: Settings, project: str) -> bool:
    """Whether a project of this stage has this name as the golden copy's copy on another member."""
    return project.startswith(f"{settings.project}-{GOLDEN}-")


def number_of(settings: Settings, project: str) -> int | None:
    """Return the number of the slot whose project has this name. -1: the golden copy; None: no slot of this stage."""
    if project == settings.project:
        return 0
    if project == f"{settings.project}-{GOLDEN}":
        return -1
    found = re.fullmatch(re.escape(settings.project) + r"-([1-9]\d?)", project)
    return int(found[1]) if found and int(found[1]) < MOST_SLOTS else None


def _bridge(settings: Settings, suffix: str) -> str:
    return settings.network.name.rstrip("0123456789") + suffix
