"""When a line of a log says that it was written."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

__all__ = ["stamp"]

_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}
_MONTH = f"(?P<name>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?"
_ZONE = r"(?:\s?(?P<zone>Z\b|(?:UTC|GMT)(?![+-])|[+-]\d\d(?::?\d\d)?(?!\d|-)))?"
_ISO = rf"(?P<year>\d{{4}})(?P<between>[-/])(?P<month>\d\d)(?P=between)(?P<day>\d\d)[T ]{_TIME}{_ZONE}"
_FORMS = tuple(
    re.compile(form)
    for form in (
        # ISO 8601 and its relatives of PostgreSQL, Go and Rust: perhaps in brackets, perhaps behind a level
        rf"(?i:\W{{0,3}}(?:[A-Z]{{3,8}}\W{{1,4}})?){_ISO}",
        # Valkey and Redis: pid, role, day
        rf"\d+:[A-Z] (?P<day>\d\d?) {_MONTH} (?P<year>\d{{4}}) {_TIME}",
        # syslog, which knows no year
        rf"(?:<\d+>)?{_MONTH} +(?P<day>\d\d?) {_TIME}",
        # JSON with a field for the time anywhere in the beginning
        rf".{{0,200}}?\"(?:time|timestamp|@timestamp|ts|date)\"\s*:\s*\"{_ISO}",
        # an access log's
        rf".{{0,200}}?\[(?P<day>\d\d)/{_MONTH}/(?P<year>\d{{4}}):{_TIME}{_ZONE}\]",
    )
)


def stamp(line: str, now: float, offset: float) -> tuple[float, float] | None:
    """The time in a line's beginning, in epoch seconds, and how exact it is, in seconds; None: there is none.

    Args:
        now: Epoch seconds. A line without a year is of the past year.
        offset: Seconds east of UTC that a time without a zone is in.
    """
    for form in _FORMS:
        if found := form.match(line):
            return _epoch(found.groupdict(), now, offset)
    return None


def _epoch(parts: dict[str, str | None], now: float, offset: float) -> tuple[float, float] | None:
    name, fraction = parts.get("name"), parts.get("fraction") or ""
    month = _MONTHS[name] if name else int(parts.get("month") or 1)
    day, hour, minute, second = (int(parts[key] or 0) for key in ("day", "hour", "minute", "second"))
    zone = timezone(timedelta(seconds=_seconds_east(parts.get("zone"), offset)))
    this_year = datetime.fromtimestamp(now, zone).year
    try:
        year = int(parts.get("year") or this_year)
        when = datetime(year, month, day, hour, minute, second, tzinfo=zone).timestamp()
        if "year" not in parts and when > now + 86400:
            when = datetime(year - 1, month, day, hour, minute, second, tzinfo=zone).timestamp()
    except ValueError:  # looks like a time, and is none
        return None
    return when + (float(f"0.{fraction}") if fraction else 0.0), 10.0 ** -len(fraction)


def _seconds_east(zone: str | None, offset: float) -> float:
    if not zone:
        return offset
    if zone[0] not in "+-":
        return 0.0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return seconds if zone[0] == "+" else -seconds
