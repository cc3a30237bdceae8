"""What a container says of itself when something went wrong."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.guest.files import FOLDER
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader, Writer
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["LINES", "evidence", "script"]

LINES = 20


def evidence(reader: Reader, writer: Writer, project: str, container: ContainerSettings, lines: int = LINES) -> str:
    """The units' states and their last log lines, secrets masked; of a stopped container the first boot's log."""
    clone = reader.instance(project, container.name)
    if clone is None or not clone.is_running:
        log = reader.file(project, container.name, f"{FOLDER}/prepare.log") if clone is not None else None
        said = (log or b"").decode("utf-8", "replace").strip()
        return f"the first boot said: {mask(said)}" if said else "a stopped container keeps no journal"
    result = writer.execute(container.name, ["sh", "-c", script(container, lines)], timeout=30)
    return mask(result.stdout.strip())


def script(container: ContainerSettings, lines: int) -> str:
    """POSIX shell that prints states and log lines: of the journal, and of the newest files in the log folders."""
    units = " ".join(shlex.quote(unit) for unit in container.units)
    folders = " ".join(shlex.quote(folder) for folder in container.logs)
    parts = ["export LC_ALL=C SYSTEMD_COLORS=0 PAGER=cat"]
    if units:
        parts.append(
            f"for unit in {units}; do "
            'state=$(systemctl show -p LoadState -p ActiveState -p SubState -p Result --value "$unit" | tr "\\n" " "); '
            'echo "unit $unit: $state"; done'
        )
        chosen = " ".join(f"-u {shlex.quote(unit)}" for unit in container.units)
        parts.append(f"journalctl --no-pager -q -n {lines} -o short-iso {chosen} 2>&1 || true")
    if folders:
        parts.append(
            f"find {folders} -type f -mmin -60 -printf '%T@ %p\\n' 2>/dev/null | sort -rn | head -n 3 | cut -d' ' -f2- | "
            f'while IFS= read -r file; do echo "file $file:"; tail -n {lines} "$file"; done'
        )
    return "\n".join(parts)
