"""Reads a container's logs: its units' journal, and the files in its log folders. No other module reads logs.

The journal knows when each line was written. A file's lines are judged by the time that they begin with, in the zone
that the container or its server has; a line without one goes with the line before it. Files whose lines carry no times
at all are judged by their sizes, which the container notes (`remember_script`). Container and host share the kernel's
clock. One command fetches everything, in parts whose heads begin with a token that no log can know.
"""

from __future__ import annotations

import re
import secrets
import shlex
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct, field

from pytest_stagegbo import clocks
from pytest_stagegbo.guest.units import UNIT_FOLDER
from pytest_stagegbo.incus.channel import MARK
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.services.postgresql import is_noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_stagegbo.guest.stamps import Zones
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["Log", "Wanted", "fetch_script", "follow_command", "moment", "parse", "remember_script", "show", "token"]

SIZES = "/run/stagegbo-log-sizes"
"""In a container: when, inode and size, a line for each file and time that sizes were noted. Gone with a reboot."""
SIZES_KEPT = 2000
"""Lines."""
NO_CONTROLS = r"LC_ALL=C sed -u 's/\xc2[\x80-\x9f]/?/g; s/[\x01-\x08\x0b-\x1f\x7f]/?/g'"
"""Whoever can write to a log must not write to the terminal of whoever reads it."""
COMPRESSED = "! -name '*.gz' ! -name '*.xz' ! -name '*.zst'"


class Wanted(Struct, frozen=True):
    """Which log lines to fetch."""

    lines: int = 200
    """How many lines are read of each log: the last ones."""
    since: float | None = None
    """Epoch seconds; None: from the start."""
    pattern: re.Pattern[str] | None = None
    """Lines that match."""
    units: bool = False
    """The states of the units, too, and what else failed or waits in the container."""
    quiet: bool = False
    """Without the lines that probes of a starting PostgreSQL leave in its log."""
    untimed: int | None = None
    """How many lines of a file of which it is not known what is new; None: all that are wanted."""
    files: int = 10
    """Those written to last."""
    size: int = 64 * 1024
    """Bytes of each log: its end."""


class Log(Struct, frozen=True):
    """The lines of one log."""

    title: str
    """`units`, `journal` or `file PATH`."""
    lines: Sequence[str]
    note: str = ""
    """Why these lines, where it is not their times."""


class _Fetched(Struct):
    """What the container knows beside the lines."""

    zones: Zones
    sizes: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """By inode; 0 for a file that was not there when sizes were noted: the container notes that each time."""


def token() -> str:
    return secrets.token_hex(8)


def moment(since: datetime | float) -> float:
    """Seconds since the epoch. A `datetime` without a time zone is local time, as everywhere in Python."""
    return since.timestamp() if isinstance(since, datetime) else float(since)


# In the container ------------------------------------------------------------------------------------------------


def fetch_script(container: ContainerSettings, token: str, wanted: Wanted) -> str:
    """POSIX shell that prints what `parse` reads: parts `zone`, `sizes`, `units`, `journal`, and `file` with its inode,
    size and path."""
    from pytest_stagegbo.guest.stamps import zones_script

    since, end = wanted.since, f"tail -c {wanted.size}"
    parts = ["export LC_ALL=C SYSTEMD_COLORS=0 PAGER=cat", f"echo '{token} zone' $({zones_script(container)})"]
    if since is not None:
        parts += [
            f"echo '{token} sizes'",
            f"awk '$1 <= {since:.6f} {{ size[$2] = $3; when[$2] = $1 }} "
            f"END {{ for (i in size) print i, size[i], when[i] }}' {SIZES} 2>/dev/null",
        ]
    if wanted.units:
        parts += [f"echo '{token} units'", _units_script(container)]
    if container.units:
        most = f"-n {wanted.lines + 1}" if wanted.pattern is None else ""
        after = f"--since=@{since:.6f}" if since is not None else ""
        journal = f"journalctl --no-pager -q -o short-iso-precise {most} {after} {_journal_units(container)}"
        parts += [f"echo '{token} journal'", f"{journal} 2>&1 | {end}"]
    if container.logs:
        # A file's time of change is up to a tick of the kernel's older than what was written.
        newer = f"-newermt @{since - 0.02:.6f} " if since is not None else ""
        parts.append(
            f"find {_folders(container)} -type f {newer}{COMPRESSED} -printf '%T@ %i %s %p\\n' 2>/dev/null | "
            f"sort -rn | head -n {wanted.files} | "
            f'while read -r when inode size file; do echo; echo "{token} file $inode $size $file"; {end} "$file"; done'
        )
    return "\n".join([*parts, "exit 0"])


def _units_script(container: ContainerSettings) -> str:
    parts = [f"cat {UNIT_FOLDER}/.missing 2>/dev/null || true"]
    if container.units:
        parts.append(
            f"for unit in {_quoted(container.units)}; do "
            'state=$(systemctl show -p LoadState -p ActiveState -p SubState -p Result --value "$unit" | tr "\\n" " "); '
            # One that ends again and again is running, between two ends.
            'echo "unit $unit: ${state}restarts: $(systemctl show -p NRestarts --value "$unit")"; done'
        )
    return (
        "\n".join(parts)
        + """
systemctl list-units --failed --plain --no-legend --no-pager | head -n 20 | while read -r unit rest; do
    echo "failed unit: $unit"
done
systemctl list-jobs --plain --no-legend --no-pager | head -n 20 | while read -r number unit type state; do
    echo "$state job: $type $unit"
done"""
    )


def follow_command(container: ContainerSettings, lines: int) -> list[str]:
    """Return a command that prints log lines as they are written, until it is ended. Resets don't end it."""
    script = (
        f"{{ journalctl -q -f -n {lines} -o short-iso {_journal_units(container)} & "
        f"find {_folders(container)} -type f {COMPRESSED} -exec tail -n {lines} -F {{}} + & wait; }} | {NO_CONTROLS}"
    )
    return ["sh", "-c", f"{MARK}=1 exec sh -c {shlex.quote(script)}"]


def remember_script(container: ContainerSettings) -> str:
    """POSIX shell that notes the time and every log file's inode and size, and keeps notes of earlier times."""
    if not container.logs:
        return ":"
    return f"""umask 077
{{ tail -n {SIZES_KEPT} {SIZES} 2>/dev/null; now=$(date +%s.%N); \
find {_folders(container)} -type f -printf "$now %i %s\\n" 2>/dev/null; echo "$now 0 0"; }} >{SIZES}.$$ && \
mv {SIZES}.$$ {SIZES}
"""


def _quoted(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _folders(container: ContainerSettings) -> str:
    return _quoted(f"{folder}/" for folder in container.logs) or "/nonexistent"


def _journal_units(container: ContainerSettings) -> str:
    return " ".join(f"-u {shlex.quote(unit)}" for unit in container.units)


# What came back --------------------------------------------------------------------------------------------------

_NOTE = re.compile(r"^(?P<inode>\d+) (?P<size>\d+) (?P<when>\d+(?:\.\d+)?)$", re.M)
_FILE = re.compile(r"(\d+) (\d+) (.+)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def parse(printed: str, token: str, wanted: Wanted, hide: Callable[[str], str] = mask) -> list[Log]:
    """Return the logs that have wanted lines: the journal first, then files by their names.

    Args:
        printed: By `fetch_script`.
        hide: Takes secrets out of text.
    """
    from pytest_stagegbo.guest.stamps import UTC, parse_zones

    known, found = _Fetched(UTC), list[Log]()
    for chunk in ("\n" + printed).split(f"\n{token} ")[1:]:
        head, _, body = chunk.partition("\n")
        kind, _, rest = head.partition(" ")
        if kind == "zone":
            known.zones = parse_zones(rest)
        elif kind == "sizes":
            known.sizes = {m["inode"]: (int(m["size"]), float(m["when"])) for m in _NOTE.finditer(body)}
        elif kind in {"units", "journal"}:
            cut = len(body.encode()) >= wanted.size  # then it begins within a line
            found.append(Log(kind, _lines(hide(body))[cut:]))
        elif kind == "file" and (named := _FILE.fullmatch(rest)):
            inode, size, path = named.groups()
            found.append(_file(path, inode, int(size), body.removesuffix("\n"), wanted, known, hide))
    found.sort(key=lambda log: log.title if log.title.startswith("file ") else "")
    chosen = [Log(log.title, _chosen(log.lines, wanted), log.note) for log in found]
    return [log for log in chosen if log.lines]


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r") for line in text.split("\n")]


def _chosen(lines: Sequence[str], wanted: Wanted) -> Sequence[str]:
    chosen = [
        line
        for line in lines
        if line.strip()
        and not (wanted.quiet and is_noise(line))
        and (wanted.pattern is None or wanted.pattern.search(line))
    ]
    return chosen[-wanted.lines :] if wanted.lines else []


def _file(
    path: str, inode: str, size: int, content: str, wanted: Wanted, known: _Fetched, hide: Callable[[str], str]
) -> Log:
    title, whole = f"file {path}", size <= wanted.size
    lines = _lines(hide(content.rstrip("\n")))[not whole :]  # what was cut begins within a line
    if wanted.since is None:
        return Log(title, lines)
    written = _since(lines, wanted.since, known.zones, whole=whole)
    if written is not None:
        return Log(title, written)
    noted = known.sizes.get(inode) or known.sizes.get("0")
    if noted is None:
        return Log(title, lines[-(wanted.untimed or 0) :], "whose lines carry no times, so some may be older")
    offset, when = noted
    start = 0 if whole else size - wanted.size
    skipped = max(0, offset - start) if offset <= size else 0
    # Each byte that is no UTF-8 has become one character.
    added = content.replace("\ufffd", "?").encode("utf-8", "replace")[skipped:].decode("utf-8", "replace")
    clock = datetime.fromtimestamp(when, known.zones.own).strftime("%H:%M:%S")
    return Log(title, _lines(hide(added)), f"whose lines carry no times: what was added since {clock}")


def _since(lines: Sequence[str], since: float, zones: Zones, *, whole: bool) -> list[str] | None:
    """Return the lines written since a moment. A line without a time belongs to the line before. None: no line has
    one."""
    from pytest_stagegbo.guest.stamps import is_new, stamp

    now = clocks.now()
    chosen: list[str] = []
    before_first: list[str] = []
    fresh: bool | None = None
    for line in lines:
        found = stamp(_COLOURS.sub("", line), now, zones)
        if found is not None:
            if fresh is None and is_new(found, since) and whole:
                chosen.extend(before_first)
            fresh = is_new(found, since)
        if fresh:
            chosen.append(line)
        elif fresh is None:
            before_first.append(line)
    return None if fresh is None else chosen


# How it is shown -------------------------------------------------------------------------------------------------


def show(logs: Sequence[Log], most: int | None = None, longest: int | None = None) -> str:
    """Return the text of all logs: a title, and below it the lines of the log.

    Args:
        most: Lines of all logs together, shared out among them.
        longest: Characters of a line.
    """
    wanted = [len(log.lines) for log in logs]
    shares = wanted if most is None else _shares(wanted, most)
    shown = []
    for log, share in zip(logs, shares, strict=True):
        note = (f", {log.note}" if log.note else "") + (f", the last {share} lines" if share < len(log.lines) else "")
        lines = log.lines[len(log.lines) - share :]
        shown.append("\n".join([f"{log.title}{note}:", *(_short(line, longest) for line in lines)]))
    return "\n\n".join(shown)


def _short(line: str, longest: int | None) -> str:
    return line if longest is None or len(line) <= longest else f"{line[:longest]} ... ({len(line)} characters)"


def _shares(wanted: Sequence[int], limit: int) -> list[int]:
    """Return how many lines each log may show: all of its lines, or an equal share of what smaller logs leave."""
    shares = [0] * len(wanted)
    left = limit
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for position, index in enumerate(order):
        shares[index] = min(wanted[index], left // (len(order) - position))
        left -= shares[index]
    return shares
