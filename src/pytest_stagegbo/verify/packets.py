"""Listens on the host's network interfaces for packets of the connections that are tried, to see if one left the stage.

Answers tell who was reached; a packet that production ignores brings none. So root, in the daemon's network, listens on
all interfaces of the host (packet(7)), since production may have other networks than bridges. The kernel picks out the
first packet of each connection to one port, which only the connections of `verify` use: the addresses that they come
from are rewritten on the way out of the stage.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PacketListener"]

_EVERY_PROTOCOL = 3
"""Also what the host itself sends or forwards, which listeners for one protocol don't see."""
_IPV4 = 0x0800
_SYN = 0x02
_ATTACH_FILTER = 26
_BUFFER_FORCE = 33
_BUFFER = 4 << 20
_PROTOCOL = 0xFFFFF000
"""Offset at which the kernel's filter finds the protocol of the frame."""


class PacketListener:
    """Listens on every network interface of the host while the block runs.

    Args:
        hosts: Addresses that connections are tried to: what else uses the port by chance is not counted.
        elsewhere: In words, which other host the stage is on: nothing is listened to then. Empty: it is on this one.

    Attributes:
        listen_error: Why nothing is listened to; empty: everything is.
    """

    def __init__(self, hosts: Iterable[str], port: int, *, elsewhere: str = "") -> None:
        self._hosts = {socket.inet_aton(host) for host in hosts if ":" not in host}
        self._port = port
        self._socket: socket.socket | None = None
        self.listen_error = f"the stage is on {elsewhere}" if elsewhere else ""

    def __enter__(self) -> PacketListener:
        if not self.listen_error:
            try:
                self._socket = _listen(self._port)
            except OSError as error:
                self.listen_error = error.strerror or str(error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def heard(self) -> Counter[str]:
        """Return how many packets for the port each interface has seen since the last call."""
        count: Counter[str] = Counter()
        while self._socket is not None:
            try:
                packet, (interface, *_) = self._socket.recvfrom(20)
            except BlockingIOError:
                break
            if packet[16:20] in self._hosts:
                count[interface] += 1
        return count


def _listen(port: int) -> socket.socket:
    """Open a socket that hears all interfaces, without frame headers, which not every kind of interface has."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_EVERY_PROTOCOL))
    try:
        program = b"".join(struct.pack("HBBI", *each) for each in _program(port))
        buffer = ctypes.create_string_buffer(program)
        length = len(program) // 8
        found.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", length, ctypes.addressof(buffer)))
        found.setsockopt(socket.SOL_SOCKET, _BUFFER_FORCE, _BUFFER)
        found.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while found.recv(1):  # what came before there was a filter
                pass
    except BaseException:
        found.close()
        raise
    return found


def _program(port: int) -> list[tuple[int, int, int, int]]:
    """Return a program for the kernel's socket filter that passes the first packets of TCP connections to a port."""
    return [
        (0x28, 0, 0, _PROTOCOL),
        (0x15, 0, 8, _IPV4),
        (0x30, 0, 0, 9),  # the packet's protocol
        (0x15, 0, 6, socket.IPPROTO_TCP),
        (0xB1, 0, 0, 0),  # length of the packet's head
        (0x48, 0, 0, 2),  # destination port, behind it
        (0x15, 0, 3, port),
        (0x50, 0, 0, 13),  # flags
        (0x45, 0, 1, _SYN),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    ]
