"""What changed in several containers, read at once from what each of them is known to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo.changes.database import read_database
from pytest_stagegbo.changes.files import AT_BASELINE, baseline_test, read_files
from pytest_stagegbo.changes.keys import read_keys
from pytest_stagegbo.changes.records import Changes, ContainerChanges
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.services.answer import NoAnswer

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pytest_stagegbo.resets.resetter import Resetter
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["read_changes"]

SECONDS = 5.0
"""For one look into a container."""


def read_changes(resetter: Resetter, containers: Sequence[ContainerSettings], cleaned: Collection[str] = ()) -> Changes:
    """What changed in containers since each was clean. Those that run may go on; the caller shares their locks.

    Never raises for what a container or a service does: of such a one it can't be told.

    Args:
        cleaned: Names of those that the caller has had reset, so that it is known when they were clean.
    """

    def read(target: ResetTarget) -> ContainerChanges:
        try:
            found = _read(resetter, target)
        except (StageGboError, NoAnswer, NeedsRestart, ValueError, LookupError, TypeError) as error:
            return ContainerChanges(target.name, unknown=_reason(error))
        if found.since is None and not found.unknown and target.name in cleaned:
            return replace(found, since=resetter.cleaned.get(target.name))
        return found

    return Changes(tuple(resetter.on_targets(containers, read)) if containers else ())


def _reason(error: Exception) -> str:
    if isinstance(error, (LookupError, TypeError)):  # by itself, its text says nothing: "list index out of range"
        return f"what the container said can't be understood ({type(error).__name__}: {error})"
    return str(error).partition("\n")[0] or type(error).__name__


def _read(resetter: Resetter, target: ResetTarget) -> ContainerChanges:
    container = target.container
    protocol = target.probe.protocol if container.probes else ""
    if container.data and protocol == "postgresql":
        return read_database(target)
    if not container.wipe:
        return ContainerChanges(target.name, unknown="no reset empties it, so nothing says what it was like")
    if protocol == "valkey":
        is_at_baseline = target.run(baseline_test(target.name), SECONDS)[0] == 0
        return ContainerChanges(target.name, unknown=AT_BASELINE) if is_at_baseline else read_keys(target)
    # What the last reset left is there still, and so are the service's processes. A baseline has others.
    if not resetter.is_at_baseline(target.name) and target.unchanged(accepted=False) is not None:
        return ContainerChanges(target.name)
    return read_files(target)
