"""What a check is, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.verify.scene import Scene

__all__ = ["Check", "Finding", "Result", "Skipped", "State"]

State = Literal["green", "red", "skipped"]


class Skipped(Exception):
    """A check can't be made here; the text says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a check saw."""

    bad: tuple[str, ...]
    """Everything that must not be. None: the line is green."""
    seen: str
    """What was tried, with numbers, and what else is worth knowing."""


@dataclass(frozen=True, slots=True)
class Check:
    """A line of the certificate."""

    id: str
    title: str
    """What holds when it is green."""
    means: str
    """What it means when it does not."""
    remedy: str
    look: Callable[[Scene], Result]
    """May raise `Skipped`, and `StageGboError`, which makes the line red: what can't be proven is not proven."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the certificate, filled in."""

    id: str
    title: str
    state: State
    evidence: tuple[str, ...]
    """What was seen: for a red line each fault, for a green one what was tried, for a skipped one why."""
    means: str = ""
    """Of a red line."""
    remedy: str = ""
    """Of a red line."""
