"""Whether this machine has a direct way to a stage's services, and the one through the daemon if it has not."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import MissingRequirement, StageGboError
from pytest_stagegbo.incus.hostview import HostView
from pytest_stagegbo.services.dial import is_on_host

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from pytest_stagegbo.forward.forwarder import Forwarder
    from pytest_stagegbo.incus.message_socket import MessageSocket
    from pytest_stagegbo.settings import Settings

__all__ = ["StageWay"]


class StageWay:
    """The way to the services of one stage.

    The bridge is a network interface of the daemon's host and of no other machine: who has it reaches the clones. A
    subnet of the same numbers elsewhere is somebody else's, so nothing is tried there.

    Args:
        endpoint: Of the daemon.
        run: Runs a command in the clone of that name; its standard streams.
        is_here: Whether the stage is on the host of the daemon that answers: each member of a cluster has a bridge of
            that name, with the same address.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        run: Callable[[str, list[str]], tuple[MessageSocket, ...]],
        is_here: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._is_here = is_here
        self._endpoint = endpoint
        self._run = run
        self._stage = endpoint, settings.project
        self._names = {str(each.address): each.name for each in settings.containers.values()}
        self._forwarder: Forwarder | None = None
        self._borrowed: Mapping[tuple[str, int], int] | None = None
        self._forwarded = self._near = False
        """What is known already."""

    @property
    def is_direct(self) -> bool:
        reach = self._settings.network.reach
        if reach != "auto":
            return reach == "direct"
        if self._forwarded or self._endpoint.startswith("https://"):
            return False
        if not self._near:  # a bridge that is nowhere yet, or not any more, leaves the network that the daemon is in
            self._near = is_on_host(self._settings.network.name) or HostView(self._endpoint).shares_network
        try:
            return self._near and self._is_here()
        except StageGboError:
            return True  # the daemon does not answer, so it carries nothing

    def forwarder(self, trouble: Callable[[str], None] | None = None) -> Forwarder:
        """What carries connections; made when it is wanted.

        Args:
            trouble: Called with a text for people when something goes wrong.
        """
        with _lock:
            if self._forwarder is None:
                from pytest_stagegbo.forward.forwarder import Forwarder

                self._forwarder, users = _shared.setdefault(self._stage, (Forwarder(self._start, trouble), set()))
                users.add(id(self))
            return self._forwarder

    def _start(self, name: str) -> tuple[MessageSocket, ...]:
        from pytest_stagegbo.forward.relay import command

        return self._run(name, command([str(self._settings.containers[name].address), "127.0.0.1"]))

    def prepare(self, host: str) -> None:
        """Do what takes time before the first connection."""
        self._forwarded = True
        self.forwarder().prepare(self._names[host])

    def connect(self, host: str, port: int, timeout: float) -> tuple[socket.socket, int]:
        self._forwarded = True
        return self.forwarder().connect(self._names[host], port, timeout)

    def borrow(self, ports: Mapping[tuple[str, int], int]) -> None:
        """Have `place` tell ports that another process keeps open, which this one will not outlive."""
        self._borrowed = ports

    def place(self, host: str, port: int) -> tuple[str, int]:
        """Address and port at which programs of this machine find a service."""
        if self.is_direct:
            return host, port
        from pytest_stagegbo.forward.forwarder import LOOPBACK

        name = self._names[host]
        if self._borrowed is None:
            self._forwarded = True
            return LOOPBACK, self.forwarder().listen(name, port)
        if (name, port) not in self._borrowed:
            raise MissingRequirement(
                f"this machine has no direct way to port {port} of {name}, and nobody forwards it",
                remedy="run `stagegbo forward` in another terminal, and leave it running",
            )
        return LOOPBACK, self._borrowed[name, port]

    def close(self) -> None:
        """End what is carried, unless another object for the same stage uses it. This one may be used again."""
        with _lock:
            forwarder, self._forwarder = self._forwarder, None
            if forwarder is None:
                return
            _, users = _shared[self._stage]
            users.discard(id(self))
            if users:
                return
            del _shared[self._stage]
        forwarder.close()


_lock = threading.Lock()
_shared: dict[tuple[str, str], tuple[Forwarder, set[int]]] = {}
"""By daemon and project: what carries connections of this process, and who uses it."""
