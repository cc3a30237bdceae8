"""The check `limits.disk`: each clone's disk limit is set and enforced, and what the clone writes is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.facts.quotas import blindness, remedy
from pytest_stagegbo.facts.space import look
from pytest_stagegbo.incus.localhost import Quotas
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text
from pytest_stagegbo.verify.finding import Result, sight

if TYPE_CHECKING:
    from pytest_stagegbo.facts.space import Room
    from pytest_stagegbo.verify.context import VerifyContext

__all__ = ["limits"]

BEYOND = 16 << 20
"""Bytes past a limit that are asked for."""
PROBE = 8 << 20
"""Bytes that each clone writes, to see whether they are counted."""
PROBE_FILE = "/var/tmp/.stagegbo-counted"
TRIES = 3
"""A service may delete as much at the same moment."""


def limits(context: VerifyContext) -> Result:
    """Check that what each clone writes is counted, and that a file beyond the limit is refused.

    What the API reports as a limit is the configuration of the device, and proves nothing.
    """
    rooms = {
        name: look(context.reader, name, context.host) for name in {context.clones[n].pool for n in context.running}
    }
    bad = [
        f"disk limits on pool {name} do not hold now: {room.quotas}; {remedy(room.pool, room.quotas)}"
        for name, room in sorted(rooms.items())
        if room.quotas is not None and not room.quotas.hold
    ]
    names = [
        name for name in context.running if not _refuse_to_try(context, rooms[context.clones[name].pool], name, bad)
    ]
    counted = _counted(context, names, bad)
    for pool in sorted({context.clones[name].pool for name in names if name not in counted}):
        if blindness(rooms[pool]):
            advice = remedy(rooms[pool].pool, Quotas("qgroup", inconsistent=True))
            bad.append(f"what clones write to pool {pool} is not counted; {advice}")
    refused: list[str] = []
    crowded: list[str] = []
    allowed: list[str] = []
    for name in names:
        room, (size, limit) = rooms[context.clones[name].pool], _limit(context, name)
        used = context.reader.volume_usage(room.pool.name, context.settings.project, name) or 0
        wanted = max(BEYOND, size - used + BEYOND)
        tight = look(context.reader, room.pool.name, context.host).tightest(context.settings).margin < wanted
        # More than the whole pool has can't be given, should the limit not hold; btrfs looks at the limit first.
        length = max(wanted, room.pool.total + BEYOND) if tight else wanted
        said = _take(context, name, length)
        if "ALLOWED" in said:
            allowed.append(name)
            bad.append(f"{name}: {bytes_text(length)} more could be taken, past its limit of {limit}")
        elif "quota" in said or ("No space left" in said and not tight and room.pool.driver != "btrfs"):
            (crowded if tight else refused).append(name)
        elif name not in counted or room.pool.driver == "btrfs":
            bad.append(
                f"{name}: its limit of {limit} did not refuse {bytes_text(length)}: {said or 'nothing was said'}"
            )
        in_force = context.host.limit(room.pool, f"{context.settings.project}_{name}")
        if in_force is not None and abs(in_force - size) > 4096:
            bad.append(
                f"{name}: {limit} is set, and the limit in force is {bytes_text(in_force) if in_force else 'none'}"
            )
    parts = [text for room in rooms.values() if (text := blindness(room))]
    if refused:
        parts.append(f"refused to write past the limit: {', '.join(refused)}")
    if crowded:
        parts.append(
            f"refused to take more than the pool holds, which has too little room to try the limit itself: "
            f"{', '.join(crowded)}"
        )
    if counted:
        parts.append(f"{bytes_text(PROBE)} written in each were counted: {', '.join(counted)}")
    seen = [name for name in context.running if name in {*counted, *refused, *crowded, *allowed}]
    return Result(tuple(bad), "; ".join(parts), sight(context.names, seen), context.idle)


def _limit(context: VerifyContext, name: str) -> tuple[int, str]:
    text = context.settings.containers[name].disk_limit or context.settings.disk_limit
    return parse_size(text), text


def _refuse_to_try(context: VerifyContext, room: Room, name: str, bad: list[str]) -> bool:
    """Raise an error if the pool has no room for what the check would write."""
    space = room.tightest(context.settings)
    full = space.margin < PROBE * len(context.running)
    if full:
        bad.append(f"{name}: its limit was not tried: {space}")
    return full


def _counted(context: VerifyContext, names: list[str], bad: list[str]) -> list[str]:
    """Return the clones whose storage driver counts what they write. It counts data once it is on the disk (syncfs)."""
    project, pools = context.settings.project, {name: context.clones[name].pool for name in names}

    def usage(name: str) -> int | None:
        return context.reader.volume_usage(pools[name], project, name)

    left, found = list(names), []
    grown: dict[str, int] = {}
    try:
        for _ in range(TRIES):
            context.in_each({n: ["sh", "-c", f"rm -f {PROBE_FILE}; sync -f /var/tmp"] for n in left})
            before = {name: usage(name) for name in left}
            left = [name for name in left if before[name] is not None]  # the others' drivers count nothing
            script = f"head -c {PROBE} /dev/urandom >{PROBE_FILE} && sync -f {PROBE_FILE}"
            done = context.in_each({name: ["sh", "-c", script] for name in left})
            for name in left:
                grown[name] = (usage(name) or 0) - (before[name] or 0)
            found += [name for name in left if done[name].status == 0 and grown[name] >= PROBE * 3 // 4]
            left = [name for name in left if name not in found]
            if not left:
                break
    finally:
        context.in_each({name: ["rm", "-f", PROBE_FILE] for name in names})
    bad += [
        f"{name}: it wrote {bytes_text(PROBE)} and {bytes_text(max(0, grown[name]))} were counted, so its limit does "
        "not hold"
        for name in left
    ]
    return found


def _take(context: VerifyContext, name: str, length: int) -> str:
    """Reserve space in a file without a name, which is gone whatever happens, and return what the clone said."""
    script = (
        "f=/var/tmp/.stagegbo-limit.$$; exec 3>$f; rm -f $f; "
        f"LC_ALL=C fallocate -l {length} /proc/$$/fd/3 2>&1 && echo ALLOWED"
    )
    return context.execute(name, ["sh", "-c", script]).stdout.strip()
