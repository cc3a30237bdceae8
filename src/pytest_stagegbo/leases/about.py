"""What a lease says of its holder, for people, and of the stage, for the next holder."""

from __future__ import annotations

import os
import pwd
import socket
import time
from typing import TYPE_CHECKING

import msgspec

from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.leases.protocol import Entry

__all__ = ["About", "holder_text"]

LONGEST = 200
"""Characters of what somebody does."""


class About(msgspec.Struct, frozen=True):
    """Times are the holder's own, in seconds since the epoch."""

    user: str = ""
    host: str = ""
    doing: str = ""
    since: float = 0.0
    until: float = 0.0
    left: tuple[str, ...] = ()
    """Containers whose resets failed or were interrupted, of a lease that was given up."""

    @classmethod
    def of(cls, doing: str, *, since: float, until: float, left: Sequence[str] = ()) -> About:
        """Of this process."""
        process = f"process {os.getpid()}" + (f" ({doing[:LONGEST]})" if doing else "")
        return cls(_user(), socket.gethostname(), process, since, until, tuple(left))

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def read(cls, text: str) -> About:
        """An empty one for what nobody can read."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            return cls()


def holder_text(entry: Entry) -> str:
    """Return who has a lease, where, for what, since when and until when, unless it is renewed."""
    about = About.read(entry.about)
    since, until = (time.strftime("%H:%M:%S", time.localtime(each)) for each in (about.since, about.until))
    who = f"{about.user or 'somebody'} on {about.host or 'an unknown host'}"
    what = f", {about.doing}," if about.doing else ""
    return printable(f"{who}{what} since {since}, until {until} unless it is renewed")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
