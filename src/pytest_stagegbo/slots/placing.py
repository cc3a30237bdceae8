"""Where the slots of a stage are in a cluster, and where there is room for more."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.incus import Reader
from pytest_stagegbo.plan.placement import Site, choose_numbers, place
from pytest_stagegbo.settings.checks import MOST_SLOTS
from pytest_stagegbo.slots.capacity import Capacity, capacity, fit
from pytest_stagegbo.slots.host import measure
from pytest_stagegbo.slots.layout import is_member_copy, number_of, slot_settings
from pytest_stagegbo.text import count_text
from pytest_stagegbo.workers import at_once

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.records import Member
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.slots.capacity import Host

__all__ = ["Placing", "locations"]


def locations(instances: Iterable[Instance], settings: Settings) -> dict[int, str]:
    """Return the members of a stage's slots by number, and of its golden copy (-1): where most of the clones are.
    Pure."""
    found: dict[int, Counter[str]] = {}
    for each in instances:
        number = number_of(settings, each.project)
        # Of an instance whose member is offline, the list has its name and its place, and no configuration.
        if number is not None and each.name in settings.containers and (marks.is_ours(each.config) or each.is_unknown):
            found.setdefault(number, Counter())[each.location] += 1
    return {number: max(count, key=lambda member: (count[member], member)) for number, count in found.items()}


class Placing:
    """Places the slots of one stage on the members of a cluster, as it is at this moment.

    Raises:
        SettingsError: `slots.members` names what is no member.
    """

    def __init__(self, settings: Settings, connection: Connection, reader: Reader) -> None:
        self._settings = settings
        self._connection = connection
        self._reader = reader
        self._members = reader.members()
        self._instances = reader.instances_of_all_projects()
        found = locations(self._instances, settings)
        self.there = {number: member for number, member in found.items() if number >= 0}
        """By number, the members of the slots that exist."""
        self._home = found.get(-1) or reader.member
        gone = {each.name for each in self._members if not each.is_usable}
        self.away = {number: member for number, member in sorted(self.there.items()) if member in gone}
        """Of those, the slots whose member is offline or evacuated."""

    def capacity(self, workers: int) -> Capacity:
        """As `capacity.capacity`, with the member of each slot. While members are away: as many as fit on the others.

        Raises:
            NoRoom: the settings name a number, and fewer fit.
        """
        hosts, possible = self._hosts(), self._possible()
        reachable = [number for number in possible if number not in self.away]
        lenient = not all(each.is_usable for each in self._members)
        found = capacity(self._settings, hosts, workers, possible=len(reachable), lenient=lenient)
        members = self._places(choose_numbers(found.count, possible, self.away), hosts)
        count = Counter(filter(None, members.values()))
        lines = ["members: " + ", ".join(f"{count[name]} on {name}" for name in sorted(count)), *self._away_lines()]
        explanation = (*found.explanation, *lines)
        return structs.replace(found, count=max(1, len(members)), members=members, explanation=explanation)

    def places(self, count: int) -> dict[int, str]:
        """The members of the first `count` slots, whatever number the settings want, but for those that are away."""
        numbers = [number for number in range(count) if number not in self.away]
        return self._places(numbers, [] if set(numbers) <= self.there.keys() else self._hosts())

    def _places(self, numbers: Iterable[int], hosts: Sequence[Host]) -> dict[int, str]:
        """Empty: nothing has room, so production's member is as good as any."""
        numbers = tuple(numbers)
        found = place(numbers, self.there, self._sites(hosts))
        return {number: found.get(number, "") for number in numbers}

    def _possible(self) -> list[int]:
        """Numbers that a slot can have now. Incus makes no bridge while a member is offline, and finishes none."""
        numbers = list(range(MOST_SLOTS))
        if not any(each.is_missing for each in self._members):
            return numbers
        bridges = {name for name, each in self._reader.networks().items() if not each.is_half_made}
        return [number for number in numbers if slot_settings(self._settings, number).network.name in bridges]

    def _away_lines(self) -> list[str]:
        """Which slots are away, and how there can be others."""
        lines = []
        for member in (each for each in self._members if not each.is_usable):
            slots = [number for number, name in self.away.items() if name == member.name]
            if not slots:
                continue
            text = f"{member.name} is {member.status.lower()}, and {count_text(len(slots), 'slot')} with it "
            text += f"({', '.join(map(str, slots))})"
            if member.is_missing:
                text += (
                    f". If it is gone for good: `incus cluster remove --force {member.name}`, then `stagegbo provision`"
                )
            lines.append(text)
        return lines

    def _hosts(self) -> list[Host]:
        """What each member has that is there."""
        wanted, members = self._settings.slots.members, self._members
        unknown = set(wanted) - {each.name for each in members}
        if unknown:
            raise SettingsError(
                f"slots.members names what is no member of the cluster: {', '.join(sorted(unknown))}",
                seen="members: " + ", ".join(each.name for each in members),
                remedy="name some of them, or leave slots.members out",
            )
        usable = [each for each in members if each.is_usable]
        count = Counter(self.there.values())

        def look(member: Member) -> Host:
            reader = Reader(self._connection, lambda _: member.name)
            closed = bool(wanted) and member.name not in wanted
            return measure(reader, self._settings, count[member.name], closed=closed)

        return at_once(look, usable, "stagegbo members")

    def _sites(self, hosts: Sequence[Host]) -> list[Site]:
        copies = {each.location for each in self._instances if is_member_copy(self._settings, each.project)}
        copies.add(self._home)
        found = [(host.name, fit(self._settings, host)) for host in hosts]
        return [Site(name, fits.easy, fits.most, 2 - (name in copies) - (name == self._home)) for name, fits in found]
