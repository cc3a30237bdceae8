"""Which member of a cluster a stage is on. A stage is whole on one: its bridge does not span members."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_stagegbo.incus.away import SILENT, member_away

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_stagegbo.incus import Instance, Reader
    from pytest_stagegbo.incus.records import Member
    from pytest_stagegbo.settings import Settings

__all__ = ["away", "choose_member", "locator", "refuse_away"]


def choose_member(
    settings: Settings, clones: Mapping[str, Instance], sources: Mapping[str, Instance], here: str, place: str = ""
) -> str:
    """The member that the stage is on; before it is on any, the one that was chosen for it, or else the one with most
    of its sources. Pure.

    Args:
        clones: Instances of the stage's project, by name.
        sources: Instances that are copied, by the name that the settings give the source.
        here: The member that answers: where nothing tells, it is as good as any.
        place: The member that was chosen; empty: none was.
    """
    there = [clones[name].location for name in settings.containers if name in clones]
    if not there and place:
        return place
    if not there:
        there = [sources[c.source_name].location for c in settings.containers.values() if c.source_name in sources]
    count = Counter(filter(None, there))
    return max(count, key=lambda name: (count[name], name == here, name), default=here)


def locator(settings: Settings) -> Callable[[Reader], str]:
    """For `Reader`: what finds the member that the stage of these settings is on."""

    def locate(reader: Reader) -> str:
        clones = reader.instances(settings.project)
        sources = {} if clones or reader.place else reader.instances(settings.source_project)
        return choose_member(settings, clones, sources, reader.server().name, reader.place)

    return locate


def away(reader: Reader) -> Member | None:
    """The stage's member, if it is offline or evacuated."""
    return next((each for each in reader.members() if each.name == reader.member and not each.is_usable), None)


def refuse_away(reader: Reader, project: str, clones: Iterable[Instance] = ()) -> None:
    """Raise `MemberAway` if the member that a project's instances are on is away.

    Args:
        clones: Instances of the project. Of those on a member that does not answer, nothing is known but the name.
    """
    member = away(reader)
    state = f"is {member.status.lower()}" if member is not None else ""
    if not state and any(each.is_unknown for each in clones):
        state = SILENT
    if state:
        seen = ", ".join(f"{each.name} is {each.status.lower()}" for each in reader.members())
        raise member_away(reader.member, state, project, seen=seen)
