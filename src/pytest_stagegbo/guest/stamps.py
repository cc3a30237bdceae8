"""Reads from a log line when it was written.

Most servers write no zone and mean the container's. PostgreSQL writes the abbreviation of a zone of its own
(`log_timezone`): EST means nothing without the name of that zone, and its times go back an hour each autumn.
"""

from __future__ import annotations

import re
import shlex
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["UTC", "Zones", "is_new", "parse_zones", "stamp", "zones_script"]

_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}
_MONTH = f"(?P<name>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?"
_ZONE = r"(?:\s?(?P<zone>Z\b|(?:UTC|GMT)(?![+-])|[A-Z]{3,5}\b(?![+-])|[+-]\d\d(?::?\d\d)?(?!\d|-)))?"
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


class Zones(Struct, frozen=True):
    """The time zones of a container's logs."""

    own: tzinfo = timezone.utc
    """The container's time zone, for times that name none."""
    server: tzinfo | None = None
    """The time zone of PostgreSQL's log, where it is another one."""


UTC = Zones()


def zones_script(container: ContainerSettings) -> str:
    """POSIX shell that prints one line, which `parse_zones` reads: offset and name of the container's zone, and the
    name of its PostgreSQL's. The server tells, or its configuration where it is down."""
    own = "$(date +%z) $(readlink -f /etc/localtime 2>/dev/null | sed -n 's,.*/zoneinfo/,,p')"
    if not any(probe.protocol == "postgresql" for probe in container.probes):
        return f'echo "{own}"'
    port = next(probe.port for probe in container.probes if probe.protocol == "postgresql")
    data = shlex.quote(container.data or "/")
    asked = (
        f"cd /; timeout 2 runuser -u postgres -- psql -XAtq -p {port} -d postgres -c 'SHOW log_timezone' 2>/dev/null"
    )
    read = r"s/^[[:space:]]*log_timezone[[:space:]]*=\{0,1\}[[:space:]]*'\{0,1\}\([A-Za-z0-9_+/-]*\).*/\1/p"
    return f"""server=$({asked})
[ -n "$server" ] || server=$(sed -n {shlex.quote(read)} {data}/postgresql.conf {data}/postgresql.auto.conf 2>/dev/null |
    tail -n 1)
echo "{own}|$server\""""


def parse_zones(text: str) -> Zones:
    """Parse what `zones_script` printed. Anything else gives UTC."""
    own, _, server = text.strip().partition("|")
    offset, _, name = own.partition(" ")
    found = re.fullmatch(r"([+-])(\d\d)(\d\d)", offset)
    fixed = timezone.utc if found is None else timezone(timedelta(seconds=_seconds_east(offset)))
    return Zones(_named(name) or fixed, _named(server))


def _named(name: str) -> tzinfo | None:
    """Return a zone of this machine's database, or None if it has no zone of that name."""
    try:
        return ZoneInfo(name.strip()) if name.strip() else None
    except (OSError, ValueError, KeyError):  # that it is not found is a KeyError
        return None


def stamp(line: str, now: float, zones: Zones) -> tuple[float, float] | None:
    """Return the time at the beginning of a line, in epoch seconds, and how exact it is, in seconds. None: it has none.

    Args:
        now: Epoch seconds. A line without a year is of the past year.
    """
    for form in _FORMS:
        if found := form.match(line):
            return _epoch(found.groupdict(), now, zones)
    return None


def is_new(found: tuple[float, float], since: float) -> bool:
    """Whether a time is of that moment or later. A time such as 12:48:17 may be any moment within that second."""
    return found[0] + found[1] > since


def _epoch(parts: dict[str, str | None], now: float, zones: Zones) -> tuple[float, float] | None:
    name, fraction = parts.get("name"), parts.get("fraction") or ""
    month = _MONTHS[name] if name else int(parts.get("month") or 1)
    day, hour, minute, second = (int(parts[key] or 0) for key in ("day", "hour", "minute", "second"))
    named = parts.get("zone")
    this_year = datetime.fromtimestamp(now, zones.own).year
    try:
        year = int(parts.get("year") or this_year)
        when = _in_zone(datetime(year, month, day, hour, minute, second), named, zones)
        if "year" not in parts and when > now + 86400:
            when = _in_zone(datetime(year - 1, month, day, hour, minute, second), named, zones)
    except ValueError:  # looks like a time, and is none
        return None
    return when + (float(f"0.{fraction}") if fraction else 0.0), 10.0 ** -len(fraction)


def _in_zone(when: datetime, named: str | None, zones: Zones) -> float:
    """Return the epoch seconds of a time in a zone. If the zone has that hour twice, the abbreviation decides."""
    if named and named[0] in "+-":
        return when.replace(tzinfo=timezone(timedelta(seconds=_seconds_east(named)))).timestamp()
    if named in {"Z", "UTC", "GMT"}:
        return when.replace(tzinfo=timezone.utc).timestamp()
    candidates: Sequence[tzinfo | None] = (zones.server, zones.own) if named else ()
    for zone in candidates:
        for fold in (0, 1):
            at = when.replace(tzinfo=zone, fold=fold)
            if zone is not None and at.tzname() == named:
                return at.timestamp()
    return when.replace(tzinfo=zones.own).timestamp()


def _seconds_east(zone: str) -> float:
    digits = zone[1:].replace(":", "").ljust(4, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return seconds if zone[0] == "+" else -seconds
