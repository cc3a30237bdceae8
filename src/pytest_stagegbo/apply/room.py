"""Waiting for the room that deleted clones give back: btrfs cleans up behind, up to a minute with ordinary quotas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.facts.space import look
from pytest_stagegbo.plan.objections import shortage
from pytest_stagegbo.progress import task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.errors import NoRoom
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.incus.localhost import Host
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Settings

__all__ = ["await_room", "await_rooms"]

POLL = 0.2
UNSEEN = 5.0
"""Seconds to wait for room to come back where nobody can see whether btrfs is cleaning up."""
SETTLED = 0.5
"""Seconds until what the last deleted subvolume had counts as free."""
COMMIT = 35.0
"""Seconds without more room after which no more is expected: btrfs writes at least every 30 s what became free."""


def await_room(reader: Reader, host: Host, settings: Settings, pool: str, cost: int, *, removed: bool) -> NoRoom | None:
    """Wait while more room comes back, until there is enough; None, or what is still missing then.

    Args:
        cost: Bytes that are needed beyond what must stay free.
        removed: Whether something was deleted just now.
    """
    began = grown = clocks.monotonic()
    most, cleaned, hurried = -1, None, False
    while True:
        room = look(reader, pool, host)
        error = shortage(room, settings, cost)
        if error is None:
            return None
        now, free = clocks.monotonic(), room.tightest(settings).free
        if free > most:
            if most >= 0:
                removed = True
            most, grown = free, now
        left = host.uncleaned(room.pool)
        patience = COMMIT if removed or left else UNSEEN
        # Where the subvolumes can be counted, the last one's space is free soon after it is gone from the count. Before
        # that, a commit has btrfs begin to clean up, which it otherwise does every 30 s.
        if (left == 0 and cleaned is None) or (left and not hurried):
            host.commit(room.pool)
            hurried = True
        cleaned = None if left != 0 else cleaned or now
        if (cleaned and now - cleaned > SETTLED) or now - grown > patience or now - began > settings.timeouts.ready:
            return error
        clocks.sleep(POLL)  # a poll with a deadline: btrfs announces nothing


def await_rooms(reader: Reader, settings: Settings, pools: Iterable[str], progress: Progress, short: NoRoom) -> None:
    """Wait until there is more than the floor on each pool; raise what is said of too little room if there won't be.

    Args:
        short: What a plan said of the room that there was.
    """
    host = reader.host()
    for pool in pools:
        with task(progress, f"room:{pool}", f"wait for room on pool {pool}"):
            if await_room(reader, host, settings, pool, 0, removed=False) is not None:
                raise short
