"""Plans which member of a cluster each slot is on. Pure."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = ["Site", "choose_numbers", "place"]


class Site(Struct, frozen=True):
    """A member of the cluster, as slots see it."""

    name: str
    easy: int
    """How many slots its memory, disk and processor take in all, those included that are there."""
    most: int
    """How many its memory and disk take: slots may share the processor."""
    distance: int = 0
    """0: the golden copy is there. 1: a copy of it is. 2: every byte of it has to be moved there first."""


def choose_numbers(count: int, possible: Iterable[int], away: Collection[int]) -> tuple[int, ...]:
    """Return the numbers of the slots to use: the lowest, but for those that are away with their member. There may be
    fewer than `count`.

    Args:
        possible: Numbers that a slot can have now, ascending.
        away: Numbers of slots that can't be reached, and that have their names until they are back.
    """
    return tuple(islice((number for number in possible if number not in away), count))


def place(numbers: Iterable[int], there: Mapping[int, str], sites: Iterable[Site]) -> dict[int, str]:
    """Return the member of each slot. Slots that nothing has room for are left out.

    A slot that exists stays where it is. Each further one goes to a member that still has room for it: the nearest to a
    golden copy first, and of those as near the one with the most room, so that few members need a golden copy. When all
    processors have enough, memory and disk alone decide: the emptiest member is next.

    Args:
        numbers: Of the slots, in the order in which they choose.
        there: By number, the members of all slots that exist, whether they are among `numbers` or not.
    """
    used = Counter(there.values())
    nearest = sorted(sites, key=lambda site: (site.distance, used[site.name] - site.easy, site.name))
    places = {}
    for number in numbers:
        member = there.get(number)
        if member is None:
            easy = [site for site in nearest if used[site.name] < site.easy]
            open_ = sorted(nearest, key=lambda site: used[site.name] - site.most)
            found = next(iter([*easy, *(site for site in open_ if used[site.name] < site.most)]), None)
            if found is None:
                continue
            member = found.name
            used[member] += 1
        places[number] = member
    return places
