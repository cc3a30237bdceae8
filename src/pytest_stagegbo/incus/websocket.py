"""Sockets of commands and events, over the client for websockets that pylxd brings along. Imported when needed."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import select
import ssl
from typing import TYPE_CHECKING, Any

from ws4py.client import WebSocketBaseClient
from ws4py.exc import WebSocketException

from pytest_stagegbo import clocks
from pytest_stagegbo.forked import let_go_in_children
from pytest_stagegbo.incus.channel import ChannelBroken
from pytest_stagegbo.incus.message_socket import MessageSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus.channel import Stream

__all__ = ["open_socket", "open_stream"]


RECEIVED = 1 << 16
"""Bytes that are read at once. A record of TLS has fewer."""
SENDING = 60.0
"""Seconds that the daemon may take for one message."""


class _WebSocket(WebSocketBaseClient):  # type: ignore[misc]
    """ws4py's client, which hands its messages to a buffer."""

    buf: bytes
    """What was read and is not parsed yet."""

    def __init__(self, url: str, ssl_options: Mapping[str, Any], fingerprint: str) -> None:
        super().__init__(url, ssl_options=dict(ssl_options), exclude_headers=["origin"])
        self.received = bytearray()
        self._fingerprint = fingerprint
        self._connected = False

    def connect(self) -> None:
        super().connect()
        self._connected = True

    def process(self, data: bytes) -> bool:
        """Parse; but what was read with the answer to the handshake waits for `once`, which knows where frames end.

        ws4py parses all of that as one frame, so that an event sent at that moment breaks the stream.
        """
        if not self._connected:
            self.buf += data
            return True
        return bool(super().process(data))

    def _write(self, data: bytes) -> None:
        if self._fingerprint:  # the very first bytes hold the command's secret
            shown = hashlib.sha256(self.sock.getpeercert(binary_form=True)).hexdigest()
            if shown != self._fingerprint:
                raise OSError(f"the server's certificate has the fingerprint {shown}, not {self._fingerprint}")
            self._fingerprint = ""
        super()._write(data)

    def send_frame(self, data: bytes) -> None:
        """One binary message. ws4py masks byte by byte, which takes a minute for a file of 150 MB; this takes 0.2 s."""
        length = len(data)
        if length < 126:
            head = bytes([0x82, 0x80 | length])
        elif length < 1 << 16:
            head = bytes([0x82, 0x80 | 126]) + length.to_bytes(2, "big")
        else:
            head = bytes([0x82, 0x80 | 127]) + length.to_bytes(8, "big")
        mask = secrets.token_bytes(4)
        masks = (mask * (length // 4 + 1))[:length]
        masked = int.from_bytes(data, "big") ^ int.from_bytes(masks, "big")
        self._write(head + mask + masked.to_bytes(length, "big"))

    def read_ahead(self) -> bool:
        """Read what is there into the buffer that `once` parses from; whether there was anything.

        By itself ws4py asks the kernel for each part of each frame: twice for the two to four bytes of its head alone.
        """
        if not self.buf:
            self.buf = self.sock.recv(RECEIVED)
        return bool(self.buf)

    def received_message(self, message: Any) -> None:
        self.received += message.data or b""

    def unhandled_error(self, error: Exception) -> None:
        """It would log a traceback; the reader learns of it anyway."""


class _WebSocketStream:
    def __init__(self, client: _WebSocket, path: str) -> None:
        self._client = client
        client.sock.settimeout(SENDING)
        self._name = path.partition("?")[0]
        let_go_in_children(self)

    def write(self, data: bytes) -> None:
        try:
            self._client.send_frame(data)
        except (OSError, RuntimeError, WebSocketException) as error:
            raise ChannelBroken(f"{self._name} is closed", seen=str(error)) from None

    def read(self, timeout: float) -> bytes:
        client, deadline = self._client, clocks.monotonic() + timeout
        while not client.received:
            pending = client.buf or (isinstance(client.sock, ssl.SSLSocket) and client.sock.pending())
            if not pending and not self._readable(deadline - clocks.monotonic()):
                return b""
            try:
                is_open = not client.terminated and client.read_ahead() and client.once()
            except OSError:  # a ping can't be answered
                is_open = False
            if not is_open:
                raise ChannelBroken(f"{self._name} was closed by the daemon")
        data = bytes(client.received)
        client.received.clear()
        return data

    def _readable(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._client.sock, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout) * 1000))

    def close(self) -> None:
        """At once, without the handshake of a polite end: nobody waits for an answer here."""
        with contextlib.suppress(OSError, AttributeError):
            self._client.sock.close()

    let_go = close  # closing sends nothing, so that a forked child may: the parent has the connection still


def open_stream(url: str, path: str, ssl_options: Mapping[str, Any], fingerprint: str = "") -> Stream:
    """Connect to one of the daemon's sockets.

    Args:
        url: `ws+unix:///path/of/socket` or `wss://host:port`.
        path: With its query, such as an operation's secret.
        ssl_options: As ws4py takes them: `certfile`, `keyfile`, `ca_certs`, `cert_reqs`.
        fingerprint: SHA-256 that the server's certificate must have, whatever else is checked; empty: any.

    Raises:
        ChannelBroken: it can't be had.
    """
    return _WebSocketStream(_connected(url, path, ssl_options, fingerprint), path)


def open_socket(url: str, path: str, ssl_options: Mapping[str, Any], fingerprint: str = "") -> MessageSocket:
    """The same, for who waits for many of them at once."""
    client = _connected(url, path, ssl_options, fingerprint)
    sock, client.sock = client.sock, None  # whose client would shut it down when it is collected
    return MessageSocket(sock, bytes(client.buf))


def _connected(url: str, path: str, ssl_options: Mapping[str, Any], fingerprint: str) -> _WebSocket:
    try:
        client = _WebSocket(url, ssl_options, fingerprint)
        client.resource = path
        client.connect()
    except (OSError, ValueError, WebSocketException) as error:
        what = "events" if path.startswith("/1.0/events") else "a command in a container"
        raise ChannelBroken(f"no websocket to {what}", seen=str(error)) from None
    return client
