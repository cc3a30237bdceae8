"""S3, emptied while its server runs: over S3 what the server knows of, in its folder whatever else is there.

A server remembers what it has listed, uploads that were begun and connections on which something is still being
sent. So objects, uploads and buckets go the server's own way, connections of others are cut off in the kernel, and
only then is the folder swept, and the server asked whether it still lists anything.

What a server keeps for itself in the folder (MinIO's `.minio.sys`) stays as long as its configuration there is what
it was at the server's start; left-overs of uploads in it go.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.resets.listing import CONNECTIONS, parse_connections
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.services.buckets import Buckets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.resets.listing import Connection, Entry, Inspection
    from pytest_stagegbo.resets.target import ResetTarget

__all__ = ["HotDrive"]

SECONDS = 5.0
"""For one answer."""
MOST_ENTRIES = 1000
"""That are deleted one by one, which takes a server half a millisecond each. A restart takes as long as these."""
TOO_MANY = f"a restart takes less time than deleting more than {MOST_ENTRIES} files over S3"
OWN = ".minio.sys"
"""The folder that MinIO keeps for itself."""
CONFIGURATION = ("config", "format.json", "pool.bin")
"""What of it is configuration: users, policies, the identity of the disk. The rest is work in progress."""


class HotDrive:
    """For containers whose first probe speaks S3."""

    def untouched(self, target: ResetTarget) -> bool:
        seen = target.unchanged(accepted=True)
        return seen is not None and not seen.established

    def clean(self, target: ResetTarget) -> bool:
        if target.look_full():  # to list very many from inside takes as long as to clear them
            raise NeedsRestart(TOO_MANY)
        inspection = target.inspection()
        if target.mark == _state(inspection) and not inspection.established:
            target.settle(_state(inspection), inspection, idle=True)
            return False  # nobody connected to the server, and nothing in its folder changed
        target.mark = None
        if not inspection.complete or len(inspection.entries) > MOST_ENTRIES:
            target.is_full = True
            raise NeedsRestart(TOO_MANY)
        note = target.read_note(inspection)
        preserved = _preserved(target, inspection.entries, note["kept"])
        secret = target.secret()
        if not secret.access_key or not secret.secret_key:
            raise NeedsRestart("no keys for S3")
        probe = target.probe
        with Buckets(
            target.host, probe.port, SECONDS, str(secret.access_key), str(secret.secret_key), tls=probe.tls
        ) as server:
            names = server.names()
            if inspection.established and (foreign_clients := _foreign_clients(target, server.own_port)):
                target.run_checked(_cut_off(foreign_clients))
            for name in names:
                server.abort_uploads(name)
                server.delete(name, server.keys(name))
                server.remove(name)
            after = target.clear(preserved)
            if left := server.names():
                raise NeedsRestart(f"S3 still lists {len(left)} buckets")
            if after.established > 1 and _foreign_clients(target, server.own_port):
                raise NeedsRestart("somebody stays connected to S3")
        if not after.complete:
            raise NeedsRestart("more is there than can be looked at")
        kept = {entry.path for entry in preserved}
        folders = {f"{folder}/" for folder in target.container.wipe}
        for entry in after.entries:
            if entry.path not in kept and entry.path not in folders:
                raise NeedsRestart(f"{entry.path} is still there")
        if after.processes != inspection.processes:
            raise NeedsRestart("the S3 server ended")
        target.settle(_state(after), after)
        return True

    def settle(self, target: ResetTarget) -> None:
        inspection = target.inspection()
        if not inspection.established:
            target.settle(_state(inspection), inspection, idle=True)

    def note(self, target: ResetTarget, inspection: Inspection) -> dict[str, Any]:
        return {
            "kept": {entry.path: _identity(target, entry) for entry in inspection.entries if _is_own(target, entry)}
        }


def _state(inspection: Inspection) -> object:
    return inspection.processes, inspection.accepted, inspection.entries, inspection.complete


def _foreign_clients(target: ResetTarget, own_port: int) -> list[Connection]:
    """Connections to the server, but for this process's own and those of the stage's other containers."""
    ports = {probe.port for probe in target.container.probes}
    return [
        each
        for each in parse_connections(target.run_checked(CONNECTIONS))
        if each.own_port in ports and each.address not in target.others and each.port != own_port
    ]


def _cut_off(foreign_clients: Sequence[Connection]) -> str:
    """POSIX shell that ends connections: what their other ends were sending is over, as with a server that stops."""
    ends = [
        f"dst {f'[{each.address}]' if ':' in each.address else each.address}:{each.port}" for each in foreign_clients
    ]
    return f"ss -K -tn state established {shlex.quote('( ' + ' or '.join(ends) + ' )')}\n"


def _is_own(target: ResetTarget, entry: Entry) -> bool:
    tops = [f"{folder}/{OWN}" for folder in target.container.wipe]
    return any(entry.path == top or entry.path.startswith(f"{top}/") for top in tops)


def _identity(target: ResetTarget, entry: Entry) -> list[str]:
    """Configuration must be what it was; of the rest, that it is there is enough."""
    for folder in target.container.wipe:
        below = entry.path.removeprefix(f"{folder}/{OWN}/")
        if below.partition("/")[0] in CONFIGURATION:
            return [entry.place, entry.kind, str(entry.size), entry.changed]
    return [entry.place, entry.kind]


def _preserved(target: ResetTarget, entries: Sequence[Entry], kept: Mapping[str, list[str]]) -> list[Entry]:
    """What stays. Raises `NeedsRestart` when the server's own configuration is not what it was."""
    own = {entry.path: entry for entry in entries if _is_own(target, entry)}
    for path, identity in kept.items():
        if path not in own or _identity(target, own[path])[: len(identity)] != identity:
            raise NeedsRestart(f"{path} is not as it was at the server's start")
    for path, entry in own.items():
        if path not in kept and len(_identity(target, entry)) > 2:
            raise NeedsRestart(f"{path} was not there at the server's start")
    return [entry for path, entry in own.items() if path in kept]
