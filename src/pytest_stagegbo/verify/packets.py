"""Packets of connections that were tried, on bridges of the host: whether one of them got as far as production's.

Answers tell who was reached; a packet that production ignores brings none. So root, in the daemon's network, listens on
the host's bridges (packet(7)). The kernel picks out packets for one port, which only the connections of `verify` use,
since addresses are rewritten on the way out of the stage.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Ears"]

_EVERY_PROTOCOL = 3
_ATTACH_FILTER = 26


class Ears:
    """Listens on network interfaces while the block runs.

    Attributes:
        deaf: Why some interface could not be listened to; empty: all are.
    """

    def __init__(self, interfaces: Iterable[str], port: int) -> None:
        self._interfaces = sorted(set(interfaces))
        self._port = port
        self._sockets: dict[str, socket.socket] = {}
        self.deaf = ""

    def __enter__(self) -> Ears:
        for name in self._interfaces:
            try:
                self._sockets[name] = _listen(name, self._port)
            except OSError as error:
                self.deaf = f"{name}: {error.strerror or error}"
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets.values():
            each.close()

    def heard(self, name: str) -> int:
        """How many packets for the port were on an interface, since the last call. Zero for one that is not heard."""
        count = 0
        while name in self._sockets:
            try:
                self._sockets[name].recv(64)
            except BlockingIOError:
                break
            count += 1
        return count


def _listen(interface: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        program = b"".join(struct.pack("HBBI", *each) for each in _program(port))
        buffer = ctypes.create_string_buffer(program)
        length = len(program) // 8
        found.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", length, ctypes.addressof(buffer)))
        found.setblocking(False)
        found.bind((interface, _EVERY_PROTOCOL))
    except BaseException:
        found.close()
        raise
    return found


def _program(port: int) -> list[tuple[int, int, int, int]]:
    """TCP over IPv4 to a port, for the kernel's packet filter: operation, two jumps, operand."""
    return [
        (0x28, 0, 0, 12),  # the frame's protocol
        (0x15, 0, 6, 0x0800),  # IPv4, or nothing
        (0x30, 0, 0, 23),  # the packet's protocol
        (0x15, 0, 4, socket.IPPROTO_TCP),
        (0xB1, 0, 0, 14),  # length of the packet's head
        (0x48, 0, 0, 16),  # destination port, behind it
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    ]
