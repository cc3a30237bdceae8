"""The host's managed networks, each read once where several looks follow each other.

Incus works out what uses a network by reading every instance of every project, for each network of a list. On a host
with eight slots that is most of what the daemon does while a slot is made.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_stagegbo.incus import Network, Reader

__all__ = ["SeenNetworks"]


class SeenNetworks:
    """The networks that looks of one run have read. Any thread may use it.

    It knows which networks exist now, since a list of names costs nothing, and how each was when this run read it
    first. So callers read what they change themselves, such as the stage's own bridge, from the daemon.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Network] = {}
        self._lock = threading.Lock()

    def all(self, reader: Reader) -> Mapping[str, Network]:
        """All networks, by name."""
        with self._lock:
            if not self._seen:
                return self._keep(reader.networks())
            return self._read(reader, reader.network_names())

    def named(self, reader: Reader, names: Collection[str]) -> Mapping[str, Network]:
        """Those of these names that exist, by name."""
        with self._lock:
            return self._read(reader, names)

    def _read(self, reader: Reader, names: Collection[str]) -> dict[str, Network]:
        found = {name: self._seen.get(name) or reader.network(name) for name in names}
        return self._keep({name: network for name, network in found.items() if network is not None})

    def _keep(self, found: Mapping[str, Network]) -> dict[str, Network]:
        # One that a cluster has not made on every member yet is about to change.
        self._seen.update((name, network) for name, network in found.items() if not network.is_half_made)
        return dict(found)
