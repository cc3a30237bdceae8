"""What the stage's containers logged while a test ran, for the report of its failure.

Passing tests pay nothing: containers are asked when a test has failed, once each. What was written since a moment
is told by the times that lines begin with; a line without one belongs to the line before. Files whose lines carry no
times at all are told by their sizes, which the container notes when the session begins (`logsizes`) and again with each
failed test. Container and host share the kernel's clock.
"""

from __future__ import annotations

import re
import secrets as random
import shlex
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.engine.reset import our_clone
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.guest.stamps import UTC, Zones, is_new, parse_zones, stamp, zones_script
from pytest_stagegbo.services.masking import Masker
from pytest_stagegbo.services.postgresql import is_noise
from pytest_stagegbo.session import logsizes
from pytest_stagegbo.session.together import together
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance, Writer
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["fetch_script", "read_fetched", "sections"]

SECONDS = 5.0
"""For all containers together."""
LINES = 200
"""Of one container: the last ones."""
FILES = 10
"""Of one container: those written to last."""
TAIL_BYTES = 64 * 1024
"""Of one file."""
SOME_LINES = 20
"""Of a file of which it is not known what is new."""
LONGEST_LINE = 1000
"""Characters."""


def sections(engine: StageEngine, names: Sequence[str], since: float, secrets: Iterable[str]) -> list[tuple[str, str]]:
    """A title and the log lines of each container, for the report of a failed test. Never raises.

    Args:
        names: Of the containers that the test used.
        since: When the test began, in epoch seconds.
        secrets: To be masked wherever they stand, beside what has the shape of a secret.
    """
    titles = {name: f"stage container {name}: logged since the test began" for name in names}
    began = clocks.monotonic()
    try:
        masker = Masker(secrets)
        clones, writer = engine.reader.instances(engine.settings.project), engine.clone_writer()
        calls = {name: _fetching(engine, writer, clones.get(name), name, since, masker) for name in names}
        left = max(0.5, SECONDS - (clocks.monotonic() - began))
        found: Mapping[str, str | Exception] = together(calls, left)
    except Exception as error:  # whatever it is, the test's own failure must be reported
        found = dict.fromkeys(names, error)
    shown = {name: text if isinstance(text, str) else _sorry(text) for name, text in found.items()}
    return [(titles[name], printable(text)) for name, text in shown.items()]


def _fetching(
    engine: StageEngine, writer: Writer, clone: Instance | None, name: str, since: float, masker: Masker
) -> Callable[[], str]:
    def fetch() -> str:
        our_clone(clone, engine.settings, name)
        if clone is None or not clone.is_running:
            return (
                f"{name} is {clone.status.lower() if clone else 'gone'}: a container that is not running tells nothing"
            )
        container = engine.settings.containers[name]
        token = random.token_hex(8)
        command = ["timeout", f"{SECONDS:g}", "sh", "-c", fetch_script(container, since, token)]
        result = writer.execute(name, command, timeout=SECONDS)
        text = read_fetched(result.stdout, token, since, clocks.now(), masker, noisy=_is_postgresql(container))
        if result.status != 0:
            text += (
                f"\n(fetching the logs ended with status {result.status}: {masker.mask(result.stderr.strip()[-300:])})"
            )
        return text.strip() or "nothing"

    return fetch


def _sorry(error: Exception) -> str:
    message = error.message if isinstance(error, StageGboError) else str(error) or type(error).__name__
    return f"(the logs could not be fetched: {message})"


def _is_postgresql(container: ContainerSettings) -> bool:
    return any(probe.protocol == "postgresql" for probe in container.probes)


# In the container ------------------------------------------------------------------------------------------------


def fetch_script(container: ContainerSettings, since: float, token: str) -> str:
    """POSIX shell that prints what was logged since a time, in parts with a head each, and notes sizes anew.

    Heads begin with `token`, which no log can know: `zone`, `sizes`, `journal`, and `file` with time, inode, size and
    path.
    """
    parts = [
        "export LC_ALL=C SYSTEMD_COLORS=0 PAGER=cat",
        f"echo '{token} zone' $({zones_script(container)})",
        f"echo '{token} sizes'",
        f"awk '$1 <= {since:.3f} {{ size[$2] = $3; when[$2] = $1 }} "
        f"END {{ for (i in size) print i, size[i], when[i] }}' {logsizes.SIZES} 2>/dev/null",
    ]
    if container.units:
        units = " ".join(f"-u {shlex.quote(unit)}" for unit in container.units)
        parts.append(f"echo '{token} journal'")
        parts.append(f"journalctl --no-pager -q -n {LINES + 1} --since @{since:.3f} -o short-iso-precise {units} 2>&1")
    if container.logs:
        folders = " ".join(shlex.quote(f"{folder}/") for folder in container.logs)
        parts.append(
            f"find {folders} -type f -newermt @{since - 0.02:.3f} ! -name '*.gz' ! -name '*.xz' ! -name '*.zst' "
            f"-printf '%T@ %i %s %p\\n' 2>/dev/null | sort -rn | head -n {FILES} | "
            f'while read -r when inode size file; do echo; echo "{token} file $when $inode $size $file"; '
            f'tail -c {TAIL_BYTES} "$file"; done'
        )
        parts.append(f"echo; {logsizes.remember_script(container)}")
    parts.append("exit 0")
    return "\n".join(parts)


# What came back --------------------------------------------------------------------------------------------------


_NOTE = re.compile(r"^(?P<inode>\d+) (?P<size>\d+) (?P<when>\d+(?:\.\d+)?)$", re.M)
_FILE = re.compile(r"[\d.]+ (\d+) (\d+) (.+)")


@dataclass(slots=True)
class _Part:
    title: str
    lines: list[str]
    note: str = ""


def read_fetched(printed: str, token: str, since: float, now: float, masker: Masker, *, noisy: bool = False) -> str:
    """The log lines since a time out of what `fetch_script` printed, masked.

    Args:
        now: Epoch seconds.
        noisy: Leave out the lines that probes of a starting PostgreSQL leave in its log.
    """
    zones = UTC
    sizes: dict[str, tuple[int, float]] = {}
    parts: list[_Part] = []
    for chunk in ("\n" + printed).split(f"\n{token} ")[1:]:
        head, _, body = chunk.partition("\n")
        kind, _, rest = head.partition(" ")
        if kind == "zone":
            zones = parse_zones(rest)
        elif kind == "sizes":
            sizes = {m["inode"]: (int(m["size"]), float(m["when"])) for m in _NOTE.finditer(body)}
        elif kind == "journal":
            parts.append(_Part("journal", masker.mask(body).splitlines()))
        elif kind == "file" and (found := _FILE.fullmatch(rest)):
            inode, size, path = found.groups()
            content = body.removesuffix("\n")
            parts.append(
                _file(path, content, int(size), sizes.get(inode) or _unknown(sizes), since, now, zones, masker)
            )
    for part in parts:
        part.lines = [_short(line) for line in part.lines if line.strip() and not (noisy and is_noise(line))]
    parts = [part for part in parts if part.lines]
    shares = _shares([len(part.lines) for part in parts], LINES)
    shown = []
    for part, share in zip(parts, shares, strict=True):
        left_out = len(part.lines) - share
        head = part.title + (f", {part.note}" if part.note else "") + (f", the last {share} lines" if left_out else "")
        shown.append("\n".join([f"{head}:", *(part.lines[-share:] if share else [])]))
    return "\n\n".join(shown)


def _file(
    path: str,
    content: str,
    size: int,
    noted: tuple[int, float] | None,
    since: float,
    now: float,
    zones: Zones,
    masker: Masker,
) -> _Part:
    whole = size <= TAIL_BYTES
    lines = masker.mask(content).splitlines()
    if not whole:
        lines = lines[1:]  # the tail begins within a line
    written = _since(lines, since, now, zones, whole=whole)
    if written is not None:
        return _Part(path, written)
    if noted is None:
        return _Part(path, lines[-SOME_LINES:], "whose lines carry no times, so some may be older")
    offset, when = noted
    start = 0 if whole else size - TAIL_BYTES
    skipped = max(0, offset - start) if offset <= size else 0
    added = content.encode("utf-8", "replace")[skipped:].decode("utf-8", "replace")
    return _Part(
        path, masker.mask(added).splitlines(), f"whose lines carry no times: what was added since {_clock(when, zones)}"
    )


def _unknown(sizes: Mapping[str, tuple[int, float]]) -> tuple[int, float] | None:
    """Of a file that was not there when sizes were noted: the script notes inode 0 each time."""
    return sizes.get("0")


def _since(lines: Sequence[str], since: float, now: float, zones: Zones, *, whole: bool) -> list[str] | None:
    """The lines written since then; those without a time go with the one before. None: no line has a time."""
    chosen: list[str] = []
    before_first: list[str] = []
    fresh: bool | None = None
    for line in lines:
        found = stamp(line, now, zones)
        if found is not None:
            if fresh is None and is_new(found, since) and whole:
                chosen.extend(before_first)
            fresh = is_new(found, since)
        if fresh:
            chosen.append(line)
        elif fresh is None:
            before_first.append(line)
    return None if fresh is None else chosen


def _clock(when: float, zones: Zones) -> str:
    return datetime.fromtimestamp(when, zones.own).strftime("%H:%M:%S")


def _short(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ... ({len(line)} characters)"


def _shares(wanted: Sequence[int], limit: int) -> list[int]:
    """How many lines each part may show: as many as it has, or an equal part of what the smaller ones leave."""
    shares = [0] * len(wanted)
    left = limit
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for position, index in enumerate(order):
        shares[index] = min(wanted[index], left // (len(order) - position))
        left -= shares[index]
    return shares
