"""What goes between this machine and the relay in a clone: frames of many connections on one stream of bytes.

A frame is a head of eight bytes and its content: the connection's number, its kind, the content's length. Each side may
send `WINDOW` bytes of a connection before the other has said that it may send more, so that a connection whose end does
not read holds up no other, and takes a limited amount of memory. To one whose end has read all that came, the other
side allows twice as much each time, up to `WIDEST`: else the time that an answer takes would limit how much goes by.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CREDIT",
    "DATA",
    "END",
    "FAILED",
    "OPEN",
    "OPENED",
    "PING",
    "RESET",
    "WIDEST",
    "WINDOW",
    "Decoder",
    "credit",
    "frame",
    "number",
]

OPEN, OPENED, FAILED, DATA, END, RESET, CREDIT, PING = range(1, 9)
"""Connect to a port; connected, from which port; not connected, and why; bytes; no more bytes; broken off; so many
more bytes may be sent; still there (the relay answers with the same)."""
WINDOW = 1 << 18
"""Bytes of one connection and direction that may be on their way at first."""
WIDEST = 1 << 21
"""At most."""
_HEAD = struct.Struct("!II")
_NUMBER = struct.Struct("!I")


def frame(connection: int, kind: int, content: bytes = b"") -> bytes:
    return _HEAD.pack(connection, kind << 24 | len(content)) + content


def credit(connection: int, count: int) -> bytes:
    return frame(connection, CREDIT, _NUMBER.pack(count))


def number(content: bytes) -> int:
    """The content of `CREDIT` and `OPENED`."""
    (found,) = _NUMBER.unpack(content)
    return int(found)


class Decoder:
    """Makes frames of bytes as they come. Content of `DATA` is passed on at once, however little of it there is."""

    def __init__(self) -> None:
        self._rest = b""
        self._connection = 0
        self._left = 0
        """Bytes of the current frame of `DATA` that have not come."""

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Connection, kind and content of each frame."""
        view = memoryview(self._rest + data if self._rest else data)
        self._rest = b""
        at, end = 0, len(view)
        while at < end:
            if not self._left:
                if end - at < _HEAD.size:
                    break
                connection, word = _HEAD.unpack_from(view, at)
                kind, length = word >> 24, word & 0xFFFFFF
                if kind != DATA:
                    if end - at < _HEAD.size + length:
                        break
                    at += _HEAD.size
                    yield connection, kind, view[at : at + length]
                    at += length
                    continue
                at += _HEAD.size
                self._connection, self._left = connection, length
            part = view[at : at + self._left]
            at += len(part)
            self._left -= len(part)
            if part:
                yield self._connection, DATA, part
        self._rest = bytes(view[at:])
