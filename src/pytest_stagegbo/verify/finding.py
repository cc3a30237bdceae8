"""The types for checks: a check, its result, and its line of the certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_stagegbo.verify.context import VerifyContext

__all__ = ["Check", "Finding", "Result", "Sight", "Skipped", "State", "Unseen", "sight"]

State = Literal["green", "red", "skipped"]


class Skipped(Exception):
    """Raised by a check that does not apply to these settings, or can't be made from here. The text says why."""


class Unseen(Exception):
    """Raised by a check that applies and saw nothing. Its line is red. The text says why."""


class Sight(NamedTuple):
    """How many things of one kind a check had to look at, and how many it did look at."""

    expected: int
    looked: int


def sight(expected: Iterable[str], looked: Iterable[str]) -> Mapping[str, Sight]:
    """Return, for things that are looked at one by one, which of them were looked at."""
    found = set(looked)
    return {name: Sight(1, int(name in found)) for name in expected}


@dataclass(frozen=True, slots=True)
class Result:
    """What a check saw."""

    bad: tuple[str, ...]
    """Everything that must not be. None: the line is green."""
    seen: str
    """What was tried, with numbers, and what else is worth knowing."""
    sight: Mapping[str, Sight]
    """By what had to be looked at (a clone, a network): whether all of it was. A check that has seen less than that
    proves nothing, whatever it found in the rest: its line is red."""
    why: str = ""
    """What kept the check from looking, where it knows: what a command printed on standard error."""

    @property
    def unseen(self) -> tuple[str, ...]:
        """Everything that was not looked at; empty when all was."""
        why = f" ({self.why})" if self.why else ""
        if not any(each.looked for each in self.sight.values()):
            return (f"nothing was looked at{why}",)
        return tuple(
            f"{name}: {'not' if not each.looked else f'only {each.looked} of {each.expected}'} looked at{why}"
            for name, each in self.sight.items()
            if each.looked < each.expected
        )


@dataclass(frozen=True, slots=True)
class Check:
    """A line of the certificate."""

    id: str
    title: str
    """What holds when it is green."""
    means: str
    """What it means when it does not."""
    remedy: str
    look: Callable[[VerifyContext], Result]
    """May raise `Skipped`; and `Unseen` or `StageGboError`, which make the line red: what can't be proven is not
    proven."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the certificate, filled in."""

    id: str
    title: str
    state: State
    evidence: tuple[str, ...]
    """What was seen: for a red line each fault, for a green one what was tried, for a skipped one why."""
    means: str = ""
    """What a red line means for its reader."""
    remedy: str = ""
    """The command that mends a red line."""
