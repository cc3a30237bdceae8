"""A clone made again what it was copied from, on its own volume: nothing is deleted, so nobody waits for that.

The daemon copies what differs (`source.refresh`, by rsync), and takes a file for the same if size and time of change
are. A program can leave both as they were. It can't choose the kernel's time of the last change to the inode, so each
file that was changed at all since the clone was copied gets the present as its time of change, and is copied.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import StageGboError

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Instance, Writer

__all__ = ["note_changes"]

log = logging.getLogger(__name__)

SHIFT = "volatile.last_state.idmap"
SLACK = 0.05
"""Seconds by which times of inodes may be behind."""


def note_changes(writer: Writer, clone: Instance, origin: Instance) -> bool:
    """Prepare a running clone for a refresh from what it was copied from; whether it is. Its processes are stopped.

    It is marked as unfinished first, so a run that is killed leaves a clone that provisioning replaces.

    Args:
        origin: Its snapshot, or the golden clone, which has not changed since.
    """
    # Owners are copied as they are on the disk, so both must have them shifted alike.
    if not clone.is_running or (clone.config.get(SHIFT) or "[]") != (origin.config.get(SHIFT) or "[]"):
        return False
    try:
        since = _seconds(clone.config.get(marks.BOOTED) or clone.created_at)
        writer.set_instance_config(clone.name, {marks.STATE: marks.BUILDING})
        result = writer.execute(clone.name, ["sh", "-c", _script(since - SLACK)])
    except (StageGboError, ValueError) as error:
        log.debug("%s: what has changed in it can't be told: %s", clone.name, error)
        return False
    if result.status:
        log.debug("%s: what has changed in it can't be told: %s", clone.name, result.stderr.strip()[-500:])
    return result.status == 0


def _seconds(text: str) -> float:
    """Seconds since the epoch, from the daemon's timestamp, which has nanoseconds."""
    return datetime.fromisoformat(text[:19] + "+00:00").timestamp() + float("0" + text[19:].rstrip("Z"))


def _script(since: float) -> str:
    """POSIX shell. Nothing else runs meanwhile and until the clone is stopped: `kill` spares the shell itself, and
    systemd starts nothing again that is only stopped."""
    return f"""set -eu
export LC_ALL=C
kill -s STOP -- -1 || true
find / -xdev -type f -newerct @{since:.3f} -exec touch -cm -- {{}} +
"""
