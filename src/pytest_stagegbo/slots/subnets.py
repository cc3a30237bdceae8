"""Whether the subnets of slots that are yet to be made are free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.facts.subnets import refuse_taken
from pytest_stagegbo.slots.layout import slot_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.incus.seen_networks import SeenNetworks
    from pytest_stagegbo.settings import Settings

__all__ = ["refuse_taken_subnets"]


def refuse_taken_subnets(
    reader: Reader, settings: Settings, golden: Settings, numbers: Iterable[int], seen: SeenNetworks
) -> None:
    """Look at the subnets of slots, and of the golden copy, that are yet to be made: before the first of them is.

    Args:
        settings: Of the stage.
        golden: Of its golden copy.
        seen: Gets what is seen of networks.

    Raises:
        ProductionProtected: somebody has one of them.
    """
    there = reader.projects()
    missing = [slot_settings(settings, number) for number in numbers]
    missing = [each for each in (golden, *missing) if each.project not in there]
    if not missing:
        return
    networks, host = seen.all(reader), reader.host().networks()
    known = reader.host_networks() if host is None else host
    for each in missing:
        parent = "" if each.project == settings.project else settings.project
        refuse_taken(each, networks, known, parent=parent)
