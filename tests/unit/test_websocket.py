"""The daemon's sockets of events, with a server that speaks only as much of the protocol as is needed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.incus.channel import ChannelBroken
from pytest_stagegbo.incus.websocket import open_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of RFC 6455


def frame(text: bytes, opcode: int = 1) -> bytes:
    """A whole message of at most 65,535 bytes as servers send it: without a mask."""
    length = bytes([len(text)]) if len(text) < 126 else b"\x7e" + len(text).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + text


@contextlib.contextmanager
def server(path: Path, at_once: bytes, later: bytes = b"") -> Iterator[None]:
    """Answers one handshake, with bytes in the same packet and others in the next, and hangs up when it is left."""
    left = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += connection.recv(4096)
            key = re.findall(rb"(?i)sec-websocket-key: *(\S+)", asked)[0].decode()
            accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
            upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{upgrade}".encode() + at_once)
            if later:  # even nothing can't be sent to a client that has hung up meanwhile
                connection.sendall(later)
            left.wait(10)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join()


@pytest.mark.parametrize("cut", range(0, 140, 7))
def test_events_that_come_with_the_answer_to_the_handshake_are_read(tmp_path: Path, cut: int) -> None:
    """Wherever the first read ends: ws4py reads the answer in pieces of 128 bytes."""
    texts = [b"first", b"x" * 200, b"", b"last"]
    sent = b"".join(frame(text) for text in texts) + frame(b"ping", 9) + frame(b"END")
    with server(tmp_path / "socket", sent[:cut], sent[cut:]):
        stream = open_stream(f"ws+unix://{tmp_path}/socket", "/1.0/events", {})
        read = b""
        for _ in range(len(texts) + 2):
            read += stream.read(5) if not read.endswith(b"END") else b""
        stream.close()
    assert read == b"".join(texts) + b"END"


def test_a_daemon_that_hangs_up_is_said(tmp_path: Path) -> None:
    with server(tmp_path / "socket", frame(b"", 8)):
        stream = open_stream(f"ws+unix://{tmp_path}/socket", "/1.0/events?project=x", {})
        with pytest.raises(ChannelBroken, match="events was closed by the daemon"):
            stream.read(5)
        stream.close()
