"""Whether this machine has a way to the clones of a daemon on another host.

Everything else goes through the daemon's API. The services themselves are asked from here, and the stage's subnet is
known to the daemon's host alone. That has to be told from a service that is still starting: a clone that listens, and
can't be reached from here, is waited for in vain.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import OperationFailed, ServerRefused
from pytest_stagegbo.services import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.services.answer import Probe
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["Reach", "how_to_reach", "listening"]

LOST_AFTER = 2.0
"""Seconds that a clone has to listen without being reached. A network that only comes up is shorter."""
PATIENCE = 0.5
"""For one answer."""
_LISTEN = "0A"
_LOOPBACK = ("127.", "::1")


class Reach:
    """The way to one clone, looked at now and then while it is waited for."""

    def __init__(
        self,
        writer: Writer,
        container: ContainerSettings,
        *,
        ask: Probe = ask,
        clock: Callable[[], float] = clocks.monotonic,
    ) -> None:
        self._writer = writer
        self._container = container
        self._ask = ask
        self._clock = clock
        self._since: float | None = None
        self.lost = False
        """There is no way."""

    def look(self) -> str | None:
        """Why there is no hope; None while there is."""
        if not self._is_cut_off():
            self._since = None
            return None
        now = self._clock()
        self._since = now if self._since is None else self._since
        self.lost = now - self._since >= LOST_AFTER
        ports = ", ".join(str(probe.port) for probe in self._container.probes)
        return f"it listens on {ports}, and this machine has no way there" if self.lost else None

    def _is_cut_off(self) -> bool:
        host, probes = str(self._container.address), self._container.probes
        if any(self._ask(probe, host, PATIENCE).state not in {"unreachable", "refused"} for probe in probes):
            return False
        try:
            tables = self._writer.execute(self._container.name, ["cat", "/proc/net/tcp", "/proc/net/tcp6"], timeout=10)
        except (OperationFailed, ServerRefused):
            return False  # it is only just starting
        return bool(probes) and {probe.port for probe in probes} <= listening(tables.stdout)


def listening(tables: str) -> set[int]:
    """TCP ports that listen on more than loopback, from the kernel's own tables (proc(5), /proc/net/tcp)."""
    return {port for address, port in _listeners(tables) if not address.startswith(_LOOPBACK)}


def _listeners(tables: str) -> Iterator[tuple[str, int]]:
    for line in tables.splitlines():
        words = line.split()
        if len(words) < 4 or words[3] != _LISTEN:
            continue
        address, _, port = words[1].partition(":")
        packed = b"".join(struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8))
        yield socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), int(port, 16)


def how_to_reach(settings: Settings, container: ContainerSettings, endpoint: str) -> str:
    """What to do on this machine about a container of a remote daemon that it is to reach directly."""
    host = urlsplit(endpoint).hostname or "HOST"
    address = container.address
    forwards = " ".join(f"-L {address}:{probe.port}:{address}:{probe.port}" for probe in container.probes)
    return (
        "leave network.reach out, so that the daemon carries connections; or "
        f"let the daemon's host make the connections, since the stage takes them from nobody else: `sshuttle -r {host} "
        f"{settings.network.subnet}` for all of them, or with ssh alone for this one: `ip address add {address}/32 dev "
        f"lo; ssh -N {forwards} {host}`. A route alone is not enough. Or run pytest on that host"
    )
