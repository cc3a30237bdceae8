"""Log lines of a container since a moment: of its journal, and of the files in its log folders.

The journal knows when each line was written. A file's lines are judged by the time that they begin with, in the
forms that the services of a General Bots production write; a line without one goes with the line before it, and
counts as new when there is none: of the evidence of a failure, rather too much than too little.
"""

from __future__ import annotations

import re
import shlex
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["moment", "script", "since_moment", "written"]

_FILE = "\x1efile "
_ZONE = "\x1ezone "
"""Begin with a character that no log line does (a record separator)."""

_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?"
_TIMES = (
    # BotServer, Vault, PostgreSQL, rclone: 2026-01-31T12:00:00.123Z, 2026-01-31 12:00:00.123 UTC, 2026/01/31 12:00:00
    re.compile(
        rf"\W{{0,3}}(?P<year>\d{{4}})[-/](?P<month>\d\d)[-/](?P<day>\d\d)[T ]{_CLOCK}"
        r"\s?(?P<zone>Z\b|UTC\b|GMT\b|[+-]\d\d:?\d\d\b)?"
    ),
    # Valkey: 123:M 31 Jan 2026 12:00:00.123 *
    re.compile(rf"\d+:[A-Z] (?P<day>\d\d) (?P<month>[A-Z][a-z]{{2}}) (?P<year>\d{{4}}) {_CLOCK}(?P<zone>)"),
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def moment(since: datetime | float) -> float:
    """Seconds since the epoch. A `datetime` without a time zone is local time, as everywhere in Python."""
    return since.timestamp() if isinstance(since, datetime) else float(since)


def script(container: ContainerSettings, lines: int, since: float | None) -> str:
    """POSIX shell that prints the last `lines` of the journal and of each file written to since then.

    Args:
        since: Seconds since the epoch; None: from the start.
    """
    parts = ["export LC_ALL=C SYSTEMD_COLORS=0 PAGER=cat", f"printf '{_escaped(_ZONE)}%s\\n' \"$(date +%z)\""]
    if container.units:
        units = " ".join(f"-u {shlex.quote(unit)}" for unit in container.units)
        after = f" --since=@{since:.6f}" if since is not None else ""
        parts.append(f"journalctl --no-pager -q -n {lines} -o short-iso-precise{after} {units} 2>&1 || true")
    if container.logs:
        folders = " ".join(map(shlex.quote, container.logs))
        newer = f" -newermt @{since:.6f}" if since is not None else ""
        parts.append(
            f"find {folders} -type f{newer} 2>/dev/null | sort | while IFS= read -r file; do "
            f'printf \'{_escaped(_FILE)}%s\\n\' "$file"; tail -n {lines} "$file"; echo; done'
        )
    return "\n".join(parts)


def _escaped(marker: str) -> str:
    return marker.replace("\x1e", "\\036")


def written(output: str, since: float | None) -> str:
    """What `script` printed, without the lines of files that are older, and without files that have no other."""
    return "\n".join(_lines(output, since))


def _lines(output: str, since: float | None) -> Iterator[str]:
    zone = timezone.utc
    heading, fresh, in_file = "", True, False
    for line in output.split("\n"):  # splitlines knows more ends of lines, the record separator among them
        if line.startswith(_ZONE):
            zone = _zone(line.removeprefix(_ZONE)) or timezone.utc
        elif line.startswith(_FILE):
            heading, fresh, in_file = f"file {line.removeprefix(_FILE)}:", True, True
        elif line.strip():
            if in_file and since is not None and (at := since_moment(line, since, zone)) is not None:
                fresh = at
            if fresh:
                if heading:
                    yield heading
                    heading = ""
                yield line.rstrip("\r")


def since_moment(line: str, since: float, zone: timezone = timezone.utc) -> bool | None:
    """Whether a log line was written at `since` or later; None when it doesn't begin with a time.

    Args:
        zone: Of times that name none.
    """
    for pattern in _TIMES:
        if match := pattern.match(line):
            break
    else:
        return None
    month = match["month"]
    fraction = match["fraction"]
    try:
        at = datetime(
            int(match["year"]),
            int(month) if month.isdigit() else _MONTHS.index(month) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            int(match["second"]),
            int((fraction or "0")[:6].ljust(6, "0")),
            tzinfo=_zone(match["zone"]) or zone,
        ).timestamp()
    except ValueError:
        return None
    # A time that is cut to so many digits stands for all that begin with them.
    precision = 10.0 ** -min(6, len(fraction or ""))
    return at + precision > since


def _zone(text: str | None) -> timezone | None:
    match = re.fullmatch(r"([+-])(\d\d):?(\d\d)", text or "")
    if match is None:
        return timezone.utc if text in {"Z", "UTC", "GMT"} else None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-offset if match[1] == "-" else offset)
