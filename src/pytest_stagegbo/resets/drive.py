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
from pytest_stagegbo.resets.strategy import Doubt
from pytest_stagegbo.services.buckets import Buckets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.resets.listing import Connection, Entry, Look
    from pytest_stagegbo.resets.strategy import Place

__all__ = ["HotDrive"]

SECONDS = 5.0
"""For one answer."""
OWN = ".minio.sys"
"""The folder that MinIO keeps for itself."""
CONFIGURATION = ("config", "format.json", "pool.bin")
"""What of it is configuration: users, policies, the identity of the disk. The rest is work in progress."""


class HotDrive:
    """For containers whose first probe speaks S3."""

    def untouched(self, place: Place) -> bool:
        seen = place.unchanged(accepted=True)
        return seen is not None and not seen.established

    def clean(self, place: Place) -> bool:
        look = place.look()
        if place.mark == _state(look) and not look.established:
            place.settle(_state(look), look, idle=True)
            return False  # nobody connected to the server, and nothing in its folder changed
        place.mark = None
        note = place.read_note(look)
        furniture = _furniture(place, look.entries, note["kept"])
        secret = place.secret()
        if not secret.access_key or not secret.secret_key:
            raise Doubt("no keys for S3")
        probe = place.probe
        with Buckets(
            place.host, probe.port, SECONDS, str(secret.access_key), str(secret.secret_key), tls=probe.tls
        ) as server:
            names = server.names()
            if look.established and (strangers := _strangers(place, server.own_port)):
                place.run_checked(_cut_off(strangers))
            for name in names:
                server.abort_uploads(name)
                server.delete(name, server.keys(name))
                server.remove(name)
            after = place.clear(furniture)
            if left := server.names():
                raise Doubt(f"S3 still lists {len(left)} buckets")
            if after.established > 1 and _strangers(place, server.own_port):
                raise Doubt("somebody stays connected to S3")
        kept = {entry.path for entry in furniture}
        folders = {f"{folder}/" for folder in place.container.wipe}
        for entry in after.entries:
            if entry.path not in kept and entry.path not in folders:
                raise Doubt(f"{entry.path} is still there")
        if after.processes != look.processes:
            raise Doubt("the S3 server ended")
        place.settle(_state(after), after)
        return True

    def note(self, place: Place, look: Look) -> dict[str, Any]:
        return {"kept": {entry.path: _identity(place, entry) for entry in look.entries if _is_own(place, entry)}}


def _state(look: Look) -> object:
    return look.processes, look.accepted, look.entries


def _strangers(place: Place, own_port: int) -> list[Connection]:
    """Connections to the server, but for this process's own and those of the stage's other containers."""
    ports = {probe.port for probe in place.container.probes}
    return [
        each
        for each in parse_connections(place.run_checked(CONNECTIONS))
        if each.own_port in ports and each.address not in place.others and each.port != own_port
    ]


def _cut_off(strangers: Sequence[Connection]) -> str:
    """POSIX shell that ends connections: what their other ends were sending is over, as with a server that stops."""
    ends = [f"dst {f'[{each.address}]' if ':' in each.address else each.address}:{each.port}" for each in strangers]
    return f"ss -K -tn state established {shlex.quote('( ' + ' or '.join(ends) + ' )')}\n"


def _is_own(place: Place, entry: Entry) -> bool:
    tops = [f"{folder}/{OWN}" for folder in place.container.wipe]
    return any(entry.path == top or entry.path.startswith(f"{top}/") for top in tops)


def _identity(place: Place, entry: Entry) -> list[str]:
    """Configuration must be what it was; of the rest, that it is there is enough."""
    for folder in place.container.wipe:
        below = entry.path.removeprefix(f"{folder}/{OWN}/")
        if below.partition("/")[0] in CONFIGURATION:
            return [entry.place, entry.kind, str(entry.size), entry.changed]
    return [entry.place, entry.kind]


def _furniture(place: Place, entries: Sequence[Entry], kept: Mapping[str, list[str]]) -> list[Entry]:
    """What stays. Raises `Doubt` when the server's own configuration is not what it was."""
    own = {entry.path: entry for entry in entries if _is_own(place, entry)}
    for path, identity in kept.items():
        if path not in own or _identity(place, own[path])[: len(identity)] != identity:
            raise Doubt(f"{path} is not as it was at the server's start")
    for path, entry in own.items():
        if path not in kept and len(_identity(place, entry)) > 2:
            raise Doubt(f"{path} was not there at the server's start")
    return [entry for path, entry in own.items() if path in kept]
