"""The staging guide's reset: stop the service, clear its data, start it. For every container with folders to wipe."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import CommandFailed, Residue, StageGboError
from pytest_stagegbo.guest import baselines, clearing, removal
from pytest_stagegbo.resets.listing import NOTES
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["SHOWN", "restart", "restart_script"]

PATIENCE = 2
"""Seconds for a service to stop by itself: some wait for the clients that are connected, and its data goes anyway."""
SHOWN = 5
"""Residues that an error names."""


def restart_script(container: ContainerSettings, baseline: str = "", *, many: bool = False) -> str:
    """POSIX shell to run in the clone: units that it lacks are passed over.

    The daemon runs it to its end even when who asked for it was killed, so the next one waits for that.

    Args:
        baseline: The folders get what is kept for this baseline. The services are killed then: what they would still
            write would be deleted.
        many: It is known that there are very many files.
    """
    content = baselines.put_back(container.wipe, baseline) if baseline else ""
    patience = f"timeout {PATIENCE} systemctl stop $known" if not baseline else "false"
    units = " ".join(shlex.quote(unit) for unit in container.units)
    return f"""set -eu
export LC_ALL=C
exec 9>/run/stagegbo-reset
if command -v flock >/dev/null; then flock 9; fi
rm -f {NOTES}/{container.name} {NOTES}/{container.name}.pids
known=
for unit in {units}; do
    if systemctl cat "$unit" >/dev/null 2>&1; then known="$known $unit"; fi
done
if [ -n "$known" ] && ! {patience}; then
    systemctl kill -s KILL $known || true
    systemctl stop $known
fi
# A unit with KillMode=process leaves its other processes behind.
[ -z "$known" ] || systemctl kill -s KILL $known 2>/dev/null || true
{clearing.functions(many=many)}
{clearing.empty_folders(container.wipe)}
{content}
{removal.delete_aside(container.wipe)}
if [ -n "$known" ]; then systemctl reset-failed $known || true; systemctl start --no-block $known; fi
"""


def restart(writer: Writer, target: ResetTarget, left_by: str, baseline: str = "") -> None:
    """Stop, clear, start in a running clone; the caller waits for the answer.

    Args:
        left_by: The test that used the container last, if anybody knows.
        baseline: What is put into the folders; see `restart_script`.

    Raises:
        Residue: something could not be cleared; says what.
        CommandFailed: the service could not be stopped or started.
    """
    script = restart_script(target.container, baseline, many=target.is_full)
    target.forget()
    result = writer.execute(target.name, ["sh", "-c", script])
    if result.status == 0:
        return
    seen = mask((result.stderr or result.stdout).strip()[-1000:])
    remedy = f"look inside with `stagegbo shell {target.name}`, or replace the clone with "
    remedy += "`stagegbo provision --recreate`"
    if seen.startswith("baseline: "):
        raise CommandFailed(
            f"{target.name} can't be brought to a baseline", seen=seen, remedy="delete that baseline, and save it again"
        )
    left = _left(target)
    if left:
        raise Residue.of(target.name, left[:SHOWN], left_by, seen=seen, remedy=remedy)
    raise CommandFailed(
        f"resetting {target.name} failed with status {result.status}",
        seen=seen,
        remedy=remedy,
    )


def _left(target: ResetTarget) -> list[str]:
    """What is in the folders that should be empty."""
    try:
        entries = target.inspection().entries
    except (NeedsRestart, StageGboError):
        return []
    roots = {f"{folder}/" for folder in target.container.wipe}
    return [entry.path for entry in entries if entry.path not in roots]
