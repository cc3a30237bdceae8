"""A websocket of the daemon's as a stream of bytes that never blocks, for who waits for many of them at once."""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from typing import TYPE_CHECKING

from pytest_stagegbo.incus.channel import ChannelBroken

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = ["MessageSocket"]

READ = 1 << 18
_CLOSE, _PING, _PONG = 8, 9, 10
_NO_MASK = bytes(4)
"""Masks keep the bytes of a browser's script from proxies that read along (RFC 6455, 10.3). Between this client and
the daemon there is a Unix socket or TLS, and to mask a gigabyte takes seconds."""


class MessageSocket:
    """One connected websocket.

    Args:
        early: What was read after the answer to the handshake.
    """

    def __init__(self, sock: socket.socket, early: bytes = b"") -> None:
        sock.setblocking(False)
        self._sock = sock
        self._early = early
        self._rest = b""
        self._left = 0
        """Bytes of the current message that have not come."""
        self._out: deque[memoryview] = deque()
        self.backlog = 0
        """Bytes that wait to be sent."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> Iterator[memoryview]:
        """The content of all messages that have come, as it comes. Raises `ChannelBroken` at the end."""
        if self._early:
            early, self._early = self._early, b""
            yield from self._parse(early)
        while True:
            try:
                data = self._sock.recv(READ)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                raise ChannelBroken("the connection to the daemon broke", seen=str(error)) from None
            if not data:
                raise ChannelBroken("the daemon closed the connection")
            yield from self._parse(data)
            if not isinstance(self._sock, ssl.SSLSocket):
                return  # the selector knows whether there is more

    def _parse(self, data: bytes) -> Iterator[memoryview]:
        view = memoryview(self._rest + data if self._rest else data)
        self._rest = b""
        at, end = 0, len(view)
        while at < end:
            if self._left:
                part = view[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                yield part
                continue
            start = at + 2
            length = view[at + 1] & 0x7F if end > at + 1 else 0
            if length >= 126:
                size = 2 if length == 126 else 8
                length = int.from_bytes(view[start : start + size], "big") if end >= start + size else 0
                start += size
            kind = view[at] & 0x0F
            if start > end or (kind >= _CLOSE and start + length > end):
                break
            if kind == _CLOSE:
                raise ChannelBroken("the daemon closed the connection")
            at = start
            if kind < _CLOSE:
                self._left = length
                continue
            if kind == _PING:
                self._queue(_PONG, bytes(view[start : start + length]))
            at += length
        self._rest = bytes(view[at:])

    def send(self, data: bytes) -> None:
        """One message, now or as soon as it can be sent. Raises `ChannelBroken`."""
        self._queue(2, data)
        self.flush()

    def _queue(self, kind: int, data: bytes) -> None:
        length = len(data)
        if length < 126:
            head = bytes([0x80 | kind, 0x80 | length])
        elif length < 1 << 16:
            head = bytes([0x80 | kind, 0x80 | 126]) + length.to_bytes(2, "big")
        else:
            head = bytes([0x80 | kind, 0x80 | 127]) + length.to_bytes(8, "big")
        message = b"".join((head, _NO_MASK, data))
        self.backlog += len(message)
        self._out.append(memoryview(message))

    def flush(self) -> None:
        """Send what can be sent without waiting. Raises `ChannelBroken`."""
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                self.backlog -= sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise ChannelBroken("the connection to the daemon broke", seen=str(error)) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()
