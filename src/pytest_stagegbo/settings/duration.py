"""Parses durations as people write them: `90s`, `30m`, `2h`, `1d`."""

from __future__ import annotations

import re

__all__ = ["parse_duration"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> int:
    """Return a duration in seconds. Raises `ValueError`, whose message completes "this is ..."."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip().lower())
    if found is None or not int(found[1]):
        raise ValueError("not a length of time such as 30m, 2h or 1d")
    return int(found[1]) * UNITS[found[2]]
