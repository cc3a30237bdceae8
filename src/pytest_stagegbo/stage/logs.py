"""Log lines of a container since a moment: of its journal, and of the files in its log folders.

The journal knows when each line was written. A file's lines are judged by the time that they begin with, in the
forms that the services of a General Bots production write; a line without one goes with the line before it, and
counts as new when there is none: of the evidence of a failure, rather too much than too little.
"""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.guest.stamps import UTC, is_new, parse_zones, stamp, zones_script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["moment", "script", "written"]

_FILE = "\x1efile "
_ZONE = "\x1ezone "
"""Begin with a character that no log line does (a record separator)."""


def moment(since: datetime | float) -> float:
    """Seconds since the epoch. A `datetime` without a time zone is local time, as everywhere in Python."""
    return since.timestamp() if isinstance(since, datetime) else float(since)


def script(container: ContainerSettings, lines: int, since: float | None) -> str:
    """POSIX shell that prints the last `lines` of the journal and of each file written to since then.

    Args:
        since: Seconds since the epoch; None: from the start.
    """
    parts = [
        "export LC_ALL=C SYSTEMD_COLORS=0 PAGER=cat",
        f"printf '{_escaped(_ZONE)}%s\\n' \"$({zones_script(container)})\"",
    ]
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
    zones, now = UTC, clocks.now()
    heading, fresh, in_file = "", True, False
    for line in output.split("\n"):  # splitlines knows more ends of lines, the record separator among them
        if line.startswith(_ZONE):
            zones = parse_zones(line.removeprefix(_ZONE))
        elif line.startswith(_FILE):
            heading, fresh, in_file = f"file {line.removeprefix(_FILE)}:", True, True
        elif line.strip():
            if in_file and since is not None and (at := stamp(line, now, zones)) is not None:
                fresh = is_new(at, since)
            if fresh:
                if heading:
                    yield heading
                    heading = ""
                yield line.rstrip("\r")
