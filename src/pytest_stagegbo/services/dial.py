"""How this machine connects to a service of the stage: directly, or by a way that somebody has made to it.

Whoever speaks to a service asks here, so that a machine without a route to the stage's network needs nothing else. A
way is known by the address that it leads to: no two stages of a host share one.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Way", "is_on_host", "lead", "way_to"]


class Way(Protocol):
    """Leads to the services of one stage."""

    @property
    def is_direct(self) -> bool:
        """Whether this machine connects to the clones' addresses."""

    def prepare(self, host: str) -> None:
        """Do what takes time before the first connection, so that no service is blamed for it."""

    def connect(self, host: str, port: int, timeout: float) -> tuple[socket.socket, int]:
        """A connected socket, which need not be one of TCP, and the port from which the service sees it. Raises
        `OSError` as a connection of TCP does."""


_ways: dict[str, Way] = {}


def lead(way: Way, hosts: Iterable[str]) -> None:
    """From now on, this is the way to these addresses."""
    for host in hosts:
        _ways[host] = way


def way_to(host: str) -> Way | None:
    """The way to an address; None: it is connected to directly."""
    found = _ways.get(host)
    return None if found is None or found.is_direct else found


def is_on_host(bridge: str) -> bool:
    """Whether this process has the interface of a bridge, which only the host of its daemon has."""
    try:
        socket.if_nametoindex(bridge)
    except OSError:
        return False
    return True
