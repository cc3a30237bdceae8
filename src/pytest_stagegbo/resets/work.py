"""A work folder, emptied while the service that works in it runs: BotServer's.

BotServer can't be told that its folder was emptied, and what it has in memory of it differs from version to version.
So this way is taken only as long as its memory can't know of anything: since its last restart nobody has connected
to the container, and the service has written nothing to the folder by itself. Otherwise it is restarted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_stagegbo.resets.listing import written_script
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.services import ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.resets.listing import Entry, Inspection
    from pytest_stagegbo.resets.target import ResetTarget

__all__ = ["HotWork"]

SECONDS = 1.0
"""For one answer."""


class HotWork:
    """For containers whose first probe is HTTP."""

    def untouched(self, target: ResetTarget) -> bool:
        return target.unchanged(accepted=True) is not None

    def clean(self, target: ResetTarget) -> bool:
        inspection = target.inspection()
        if target.mark == _state(inspection):
            target.settle(_state(inspection), inspection, idle=True)
            return False  # nobody connected, and nothing in the folder changed
        target.mark = None
        note = target.read_note(inspection)
        if inspection.accepted != note["accepted"]:
            raise NeedsRestart(f"somebody spoke to {target.name} since its restart")
        entries = inspection.entries if inspection.complete else target.inspect_paths(note["kept"])
        kept = _preserved(entries, note["kept"])
        theirs = set(note["users"])
        known = {entry.path for entry in kept}
        roots = {f"{folder}/" for folder in target.container.wipe}
        for entry in inspection.entries:
            if entry.user in theirs and entry.path not in known and entry.path not in roots:
                raise NeedsRestart(f"{target.name}'s service wrote {entry.path}, and may remember it")
        if not inspection.complete and (path := _written(target, kept, theirs)):
            raise NeedsRestart(f"{target.name}'s service wrote {path}, and may remember it")
        expected = inspection.accepted + len(target.container.probes)
        remembered = target.note_script({**note, "accepted": expected}, inspection.processes)
        target.run_checked(f"{target.removal(kept, many=not inspection.complete)}{remembered}")
        for probe in target.container.probes:
            answer = ask(probe, target.host, SECONDS)
            if not answer.ready:
                raise NeedsRestart(f"{target.name} answers: {answer}")
        after = target.inspection()
        for entry in after.entries:
            if entry.path not in known and entry.path not in roots:
                raise NeedsRestart(f"{entry.path} is still there")
        if not after.complete:
            raise NeedsRestart("more is there than can be looked at")
        if after.processes != inspection.processes or after.accepted != expected:
            raise NeedsRestart(f"somebody spoke to {target.name} during its reset")
        target.settle(_state(after), after)
        return True

    def settle(self, target: ResetTarget) -> None:
        inspection = target.inspection()
        target.settle(_state(inspection), inspection, idle=True)

    def note(self, target: ResetTarget, inspection: Inspection) -> dict[str, Any]:
        roots = {f"{folder}/" for folder in target.container.wipe}
        kept = {entry.path: _identity(entry) for entry in inspection.entries if entry.path not in roots}
        return {"accepted": inspection.accepted, "users": _users(target, inspection), "kept": kept}


def _users(target: ResetTarget, inspection: Inspection) -> list[int]:
    """Whom the service's processes run as."""
    pids = " ".join(str(each.pid) for each in inspection.processes)
    script = f'for pid in {pids}; do while read -r word user rest; do [ "$word" != Uid: ] || echo $user; done'
    output = target.run_checked(f"{script} </proc/$pid/status; done")
    return sorted({int(user) for user in output.split()})


def _state(inspection: Inspection) -> object:
    return inspection.processes, inspection.accepted, inspection.entries, inspection.complete


def _written(target: ResetTarget, kept: Sequence[Entry], users: set[int]) -> str:
    """A path that the service wrote since its start, looked for in the container; empty: there is none."""
    found = target.run_checked(written_script(target.container.wipe, kept, users)) if users else b""
    return found.decode("utf-8", "surrogateescape").rstrip("\n")


def _identity(entry: Entry) -> list[str]:
    if entry.kind == "d":  # its times change with what tests put into it
        return [entry.place, entry.kind]
    return [entry.place, entry.kind, str(entry.size), entry.changed]


def _preserved(entries: Sequence[Entry], kept: Mapping[str, list[str]]) -> list[Entry]:
    """What the service put there at its start. Raises `NeedsRestart` when that is not as it was."""
    found = {entry.path: entry for entry in entries if entry.path in kept}
    for path, identity in kept.items():
        if path not in found or _identity(found[path]) != identity:
            raise NeedsRestart(f"{path} is not as the service made it at its start")
    return list(found.values())
