"""What a test asks of the stage, told from its fixtures and markers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pytest_stagegbo.settings import Settings

__all__ = [
    "FIXTURES",
    "FRESH_STAGE",
    "MARKER",
    "PRODUCTION_ACCESS",
    "WHOLE_STAGE",
    "Demand",
    "asks_for_stage",
    "demand",
]

MARKER = "stage_reset"
PRODUCTION_ACCESS = "stage_production_access"
"""The marker of a test that may connect to production."""
WHOLE_STAGE = "stage_gbo"
FRESH_STAGE = "stage_fresh"
"""Stands for no container of the stage that a process shares: the test gets another stage."""
FIXTURES = {
    "stage_system": "system",
    "stage_tables": "tables",
    "stage_vault": "vault",
    "stage_cache": "cache",
    "stage_drive": "drive",
    "stage_llm": "llm",
}
"""Fixtures that stand for one container; the clients' fixtures build on them."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one test."""

    uses: frozenset[str]
    """Containers that it uses, those that are reset included."""
    resets: tuple[str, ...]
    """Containers that must be clean when it begins, and are its own until it ends."""


def asks_for_stage(fixtures: Collection[str], *, marked: bool) -> bool:
    """Whether a test has anything to do with the stage. Cheap: needs no settings."""
    return marked or WHOLE_STAGE in fixtures or any(name in fixtures for name in FIXTURES)


def demand(fixtures: Collection[str], marks: Sequence[Sequence[str]], settings: Settings) -> Demand:
    """The demand of a test.

    Args:
        fixtures: Names of all fixtures that it needs, directly or not.
        marks: Arguments of its `stage_reset` markers, the closest first. The closest one counts, over the settings.

    Raises:
        SettingsError: a marker names something that can't be reset.
    """
    if WHOLE_STAGE in fixtures:
        uses = set(settings.containers)
    else:
        uses = {name for fixture, name in FIXTURES.items() if fixture in fixtures}
    if marks:
        resets = _named(marks[0], settings)
        uses.update(resets)
    else:
        resets = [name for name in _named(settings.pytest.reset, settings) if name in uses]
    return Demand(frozenset(uses), tuple(resets))


def _named(words: Sequence[str], settings: Settings) -> list[str]:
    wiped = [name for name, container in settings.containers.items() if container.wipe]
    words = [name for word in words for name in (wiped if word == "all" else [word])]
    names = [name for name in dict.fromkeys(words) if name != "none"]
    resettable = [name for name, container in settings.containers.items() if container.resettable]
    wrong = [name for name in names if name not in resettable]
    if wrong:
        raise SettingsError(
            f"{MARKER} names what cannot be reset: {', '.join(map(str, wrong))}",
            seen="a container that the settings do not name, or whose data they do not wipe",
            remedy="choose from " + ", ".join([*resettable, "all", "none"]),
        )
    return names
