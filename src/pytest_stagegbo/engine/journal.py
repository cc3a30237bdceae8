"""What a container says of itself when something went wrong."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import OperationFailed, ServerRefused
from pytest_stagegbo.guest.units import FOLDER, UNIT_FOLDER
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.incus import Reader, Writer
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["LINES", "NO_CONTROLS", "evidence", "follow_script", "script"]

NO_CONTROLS = r"LC_ALL=C sed -u 's/\xc2[\x80-\x9f]/?/g; s/[\x01-\x08\x0b-\x1f\x7f]/?/g'"
"""Whoever can write to a log must not write to the terminal of whoever reads it."""
LINES = 20
FAILED_AND_WAITING = """systemctl list-units --failed --plain --no-legend --no-pager | while read -r unit rest; do
    echo "failed unit: $unit"
done
systemctl list-jobs --plain --no-legend --no-pager | while read -r number unit type state; do
    echo "$state job: $type $unit"
done"""
"""POSIX shell that names what else is wrong with a boot."""
SETTLING = 5.0
"""Seconds for a container to be either running or stopped."""


def evidence(reader: Reader, writer: Writer, project: str, container: ContainerSettings, lines: int = LINES) -> str:
    """The units' states and their last log lines, secrets masked; of a stopped container the first boot's log."""
    if _is_running(reader, project, container.name):
        try:
            command = ["sh", "-c", f"{script(container, lines)}\n{FAILED_AND_WAITING}"]
            result = writer.execute(container.name, command, timeout=30)
        except (OperationFailed, ServerRefused):
            if not _stops(reader, project, container.name):
                raise
        else:
            return mask(result.stdout.strip())
    log = reader.file(project, container.name, f"{FOLDER}/prepare.log")
    said = (log or b"").decode("utf-8", "replace").strip()
    return f"the first boot said: {mask(said)}" if said else "a stopped container keeps no journal"


def _stops(reader: Reader, project: str, name: str) -> bool:
    """Whether a container in which nothing could be run is on its way down: Incus calls it running for a while yet."""
    deadline = clocks.monotonic() + SETTLING
    while running := _is_running(reader, project, name):
        if clocks.monotonic() > deadline:
            break
    return not running


def _is_running(reader: Reader, project: str, name: str) -> bool:
    """Whether two looks in a row say so: while a container powers off, Incus says both within milliseconds."""
    deadline = clocks.monotonic() + SETTLING
    before: bool | None = None
    while True:
        clone = reader.instance(project, name)
        now = clone is not None and clone.is_running
        if now == before or clocks.monotonic() > deadline:
            return now
        before = now
        clocks.sleep(0.1)  # a poll with a deadline: a container that ends by itself makes no operation to wait for


def script(container: ContainerSettings, lines: int) -> str:
    """POSIX shell that prints states and log lines: of the journal, and of the newest files in the log folders."""
    parts = ["export LC_ALL=C SYSTEMD_COLORS=0 PAGER=cat", f"cat {UNIT_FOLDER}/.missing 2>/dev/null || true"]
    if container.units:
        parts.append(
            f"for unit in {_quoted(container.units)}; do "
            'state=$(systemctl show -p LoadState -p ActiveState -p SubState -p Result --value "$unit" | tr "\\n" " "); '
            # One that ends again and again is running, between two ends.
            'echo "unit $unit: ${state}restarts: $(systemctl show -p NRestarts --value "$unit")"; done'
        )
        parts.append(f"journalctl --no-pager -q -n {lines} -o short-iso {_journal_units(container)} 2>&1 || true")
    if container.logs:
        newest = "sort -rn | head -n 3 | cut -d' ' -f2-"
        parts.append(
            f"find {_quoted(container.logs)} -type f -mmin -60 -printf '%T@ %p\\n' 2>/dev/null | {newest} | "
            f'while IFS= read -r file; do echo "file $file:"; tail -n {lines} "$file"; done'
        )
    return "\n".join(parts)


def follow_script(container: ContainerSettings, lines: int) -> str:
    """POSIX shell that prints log lines as they are written, until it is ended."""
    return (
        f"{{ journalctl -q -f -n {lines} -o short-iso {_journal_units(container)} & "
        f"find {_quoted(container.logs)} -type f -exec tail -n {lines} -F {{}} + & wait; }} | {NO_CONTROLS}"
    )


def _quoted(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _journal_units(container: ContainerSettings) -> str:
    return " ".join(f"-u {shlex.quote(unit)}" for unit in container.units)
