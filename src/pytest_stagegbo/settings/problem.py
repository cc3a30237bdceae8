"""A problem in settings, as errors list it."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Problem"]


class Problem(Struct, frozen=True):
    """Something that must be corrected before anything is done."""

    text: str
    keys: tuple[str, ...]
    """The dotted keys that take part in it, the one to look at first in front."""
    part: str = ""
    """Which part of the first key's value: `[0].port`. Empty: all of it."""
