"""A work folder, emptied while the service that works in it runs: BotServer's.

BotServer can't be told that its folder was emptied, and what it has in memory of it differs from version to version.
So this way is taken only as long as its memory can't know of anything: since its last restart nobody has connected
to the container, and the service has written nothing to the folder by itself. Otherwise it is restarted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_stagegbo.resets.strategy import Doubt
from pytest_stagegbo.services import ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.resets.listing import Entry, Look
    from pytest_stagegbo.resets.strategy import Place

__all__ = ["HotWork"]

SECONDS = 1.0
"""For one answer."""


class HotWork:
    """For containers whose first probe is HTTP."""

    def untouched(self, place: Place) -> bool:
        return place.unchanged(accepted=True) is not None

    def clean(self, place: Place) -> bool:
        look = place.look()
        if place.mark == _state(look):
            place.settle(_state(look), look, idle=True)
            return False  # nobody connected, and nothing in the folder changed
        place.mark = None
        note = place.read_note(look)
        if look.accepted != note["accepted"]:
            raise Doubt(f"somebody spoke to {place.name} since its restart")
        kept = _furniture(look.entries, note["kept"])
        theirs = set(note["users"])
        known = {entry.path for entry in kept}
        roots = {f"{folder}/" for folder in place.container.wipe}
        for entry in look.entries:
            if entry.user in theirs and entry.path not in known and entry.path not in roots:
                raise Doubt(f"{place.name}'s service wrote {entry.path}, and may remember it")
        expected = look.accepted + len(place.container.probes)
        remembered = place.note_script({**note, "accepted": expected}, look.processes)
        place.run_checked(f"{place.removal(kept)}{remembered}")
        for probe in place.container.probes:
            answer = ask(probe, place.host, SECONDS)
            if not answer.ready:
                raise Doubt(f"{place.name} answers: {answer}")
        after = place.look()
        for entry in after.entries:
            if entry.path not in known and entry.path not in roots:
                raise Doubt(f"{entry.path} is still there")
        if after.processes != look.processes or after.accepted != expected:
            raise Doubt(f"somebody spoke to {place.name} during its reset")
        place.settle(_state(after), after)
        return True

    def note(self, place: Place, look: Look) -> dict[str, Any]:
        roots = {f"{folder}/" for folder in place.container.wipe}
        kept = {entry.path: _identity(entry) for entry in look.entries if entry.path not in roots}
        return {"accepted": look.accepted, "users": _users(place, look), "kept": kept}


def _users(place: Place, look: Look) -> list[int]:
    """Whom the service's processes run as."""
    pids = " ".join(str(each.pid) for each in look.processes)
    script = f'for pid in {pids}; do while read -r word user rest; do [ "$word" != Uid: ] || echo $user; done'
    output = place.run_checked(f"{script} </proc/$pid/status; done")
    return sorted({int(user) for user in output.split()})


def _state(look: Look) -> object:
    return look.processes, look.accepted, look.entries


def _identity(entry: Entry) -> list[str]:
    if entry.kind == "d":  # its times change with what tests put into it
        return [entry.place, entry.kind]
    return [entry.place, entry.kind, str(entry.size), entry.changed]


def _furniture(entries: Sequence[Entry], kept: Mapping[str, list[str]]) -> list[Entry]:
    """What the service put there at its start. Raises `Doubt` when that is not as it was."""
    found = {entry.path: entry for entry in entries if entry.path in kept}
    for path, identity in kept.items():
        if path not in found or _identity(found[path]) != identity:
            raise Doubt(f"{path} is not as the service made it at its start")
    return list(found.values())
