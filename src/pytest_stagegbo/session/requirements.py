"""Finds out from a test's fixtures and markers which containers it uses and which have to be reset for it. Pure.

A marker may be written in ways that mean nothing (`stage_reset` without a name), and Python accepts any of them.
Each is an error that says what to write: a test that asked for a reset and silently got none would prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any, Protocol

    from pytest_stagegbo.settings import Settings

    class Mark(Protocol):
        """A marker as somebody wrote it; pytest's own fits."""

        @property
        def args(self) -> tuple[Any, ...]: ...

        @property
        def kwargs(self) -> Mapping[str, Any]: ...


__all__ = [
    "BASELINE",
    "FIXTURES",
    "FRESH_STAGE",
    "MARKER",
    "PRODUCTION_ACCESS",
    "QUIET",
    "WHOLE_STAGE",
    "Requirements",
    "asks_for_stage",
    "baseline_of",
    "check_production_access",
    "check_quiet",
    "demand",
]

MARKER = "stage_reset"
BASELINE = "stage_baseline"
"""The marker of a test that begins with a baseline."""
PRODUCTION_ACCESS = "stage_production_access"
"""The marker of a test that may connect to production."""
QUIET = "stage_quiet"
"""The marker of a test that wants nobody to write to what it uses."""
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
class Requirements:
    """The containers that one test needs reserved and reset."""

    uses: frozenset[str]
    """Containers that it uses, those that are reset included."""
    resets: tuple[str, ...]
    """Containers that must be clean when it begins, and are its own until it ends."""
    quiet: frozenset[str] = frozenset()
    """Containers that are frozen while it runs, since they may write to those that it uses."""
    baseline: str = ""
    """The name of the baseline that is the clean state of those of `resets` that it has."""


def asks_for_stage(fixtures: Collection[str], *, marked: bool) -> bool:
    """Whether a test uses the stage. This is cheap, and needs no settings."""
    return marked or WHOLE_STAGE in fixtures or any(name in fixtures for name in FIXTURES)


def demand(
    fixtures: Collection[str], marks: Sequence[Mark], settings: Settings, *, quiet: bool = False, baseline: str = ""
) -> Requirements:
    """Return what a test requires of the stage.

    Args:
        fixtures: Names of all fixtures that it needs, directly or not.
        marks: Its `stage_reset` markers, the closest first. The closest one counts, over the settings.
        quiet: Whether it is marked with `stage_quiet`.
        baseline: What its closest `stage_baseline` marker names. All containers that a baseline may have are reset.

    Raises:
        SettingsError: a marker is not written as it should be, or names something that can't be reset.
    """
    marked = [_marked(mark, settings) for mark in marks]
    if WHOLE_STAGE in fixtures:
        uses = set(settings.containers)
    else:
        uses = {name for fixture, name in FIXTURES.items() if fixture in fixtures}
    if marked:
        resets = marked[0]
        uses.update(resets)
    else:
        resets = [name for name in _named(settings.pytest.reset, settings) if name in uses]
    if baseline:
        from pytest_stagegbo.plan.baselines import chosen

        resets = list(dict.fromkeys([*(each.name for each in chosen(settings, ())), *resets]))
        uses.update(resets)
    noisy = {
        name for name, each in settings.containers.items() if name not in uses and uses.intersection(each.writes_to)
    }
    wants_quiet = quiet or settings.pytest.quiet
    return Requirements(frozenset(uses), tuple(resets), frozenset(noisy if wants_quiet else ()), baseline)


def _marked(mark: Mark, settings: Settings) -> list[str]:
    """The containers that a `stage_reset` marker names."""
    known = [*settings.containers, "all", "none"]
    words = list(_texts([*mark.args, *mark.kwargs.values()]))
    meant = [word for word in dict.fromkeys(words) if word in known]
    shown = ", ".join(f'"{word}"' for word in (meant or ["cache"]))
    remedy = f"write @pytest.mark.{MARKER}({shown}); choose from {_choice(settings)}"
    if not (mark.args or mark.kwargs):
        raise SettingsError(f"{MARKER} names no container, so it would do nothing", remedy=remedy)
    if mark.kwargs:
        raise SettingsError(f"{MARKER} takes names without a keyword, and got {', '.join(mark.kwargs)}=", remedy=remedy)
    wrong = [repr(arg) for arg in mark.args if not isinstance(arg, str)]
    if wrong:
        raise SettingsError(f"{MARKER} takes each name as a text of its own, and got {', '.join(wrong)}", remedy=remedy)
    if "none" in mark.args and len(set(mark.args)) > 1:
        raise SettingsError(f"{MARKER}: none goes with no other name", seen=f"got {', '.join(words)}", remedy=remedy)
    if any(name not in known for name in mark.args) and all(word in known for word in words):
        raise SettingsError(f"{MARKER} takes each name as a text of its own, and got {mark.args!r}", remedy=remedy)
    return _named(mark.args, settings)


def _texts(values: Iterable[Any]) -> Iterable[str]:
    """Return the names that the author of a wrong marker may have meant: in a list, or in a text with commas."""
    for value in values:
        if isinstance(value, str):
            yield from (word.strip() for word in value.split(","))
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from _texts(value)


def _choice(settings: Settings) -> str:
    resettable = [name for name, container in settings.containers.items() if container.resettable]
    return ", ".join([*resettable, "all", "none"])


def _named(words: Sequence[str], settings: Settings) -> list[str]:
    wiped = [name for name, container in settings.containers.items() if container.wipe]
    words = [name for word in words for name in (wiped if word == "all" else [word])]
    names = [name for name in dict.fromkeys(words) if name != "none"]
    wrong = [name for name in names if name not in settings.containers or not settings.containers[name].resettable]
    if wrong:
        raise SettingsError(
            f"{MARKER} names what cannot be reset: {', '.join(name or repr(name) for name in wrong)}"
            + did_you_mean(wrong, (name for name, each in settings.containers.items() if each.resettable)),
            seen="a container that the settings do not name, or whose data they do not wipe",
            remedy=f"choose from {_choice(settings)}",
        )
    return names


def check_production_access(mark: Mark) -> None:
    """Raise `SettingsError` unless a `stage_production_access` marker says why, in one text."""
    given = [*mark.args, *mark.kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], str) or not given[0].strip() or not mark.kwargs.keys() <= {"reason"}:
        raise SettingsError(
            f"{PRODUCTION_ACCESS} says why in one text, and got {', '.join(map(repr, given)) or 'none'}",
            remedy=f'write @pytest.mark.{PRODUCTION_ACCESS}(reason="...")',
        )


def check_quiet(mark: Mark) -> None:
    """Raise `SettingsError` unless a `stage_quiet` marker is written without arguments."""
    if mark.args or mark.kwargs:
        given = [*map(repr, mark.args), *(f"{name}=" for name in mark.kwargs)]
        raise SettingsError(
            f"{QUIET} takes no arguments, and got {', '.join(given)}",
            remedy=f"write @pytest.mark.{QUIET}; containers.<name>.writes_to says what is frozen",
        )


def baseline_of(mark: Mark | None) -> str:
    """The name that a `stage_baseline` marker has; empty: there is no marker. Raises `SettingsError`."""
    if mark is None:
        return ""
    from pytest_stagegbo.plan.baselines import check_name

    if len(mark.args) != 1 or mark.kwargs or not isinstance(mark.args[0], str):
        given = [*map(repr, mark.args), *(f"{name}=" for name in mark.kwargs)]
        raise SettingsError(
            f"{BASELINE} takes one name, and got {', '.join(given) or 'none'}",
            remedy=f'write @pytest.mark.{BASELINE}("demo-data")',
        )
    check_name(mark.args[0])
    return mark.args[0]
