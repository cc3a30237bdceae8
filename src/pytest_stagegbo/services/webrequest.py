"""Sends one HTTP request directly to a service.

No proxy of the environment, no redirect and no connection kept: what answers must be the service itself. The
standard library parses the answer; the bytes come from a `Conversation`, so that one deadline bounds it all.
"""

from __future__ import annotations

import io
from http.client import HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from pytest_stagegbo.services.answer import Answer, NoAnswer, excerpt
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.services.wire import Conversation

if TYPE_CHECKING:
    import socket

    from _typeshed import WriteableBuffer

__all__ = ["Reply", "request"]

BODY_LIMIT = 16 * 1024
"""Bytes of a body that are read; every answer that matters here is far shorter."""


class Reply(Struct, frozen=True):
    status: int
    body: bytes
    """The first 16 KiB."""

    def __str__(self) -> str:
        return f"HTTP {self.status} {mask(excerpt(self.body))}".rstrip()


def request(
    host: str, port: int, path: str, timeout: float, *, tls: bool = False, method: str = "GET", body: bytes = b""
) -> Reply:
    """Send a request, and return the answer. Raises `NoAnswer` unless it is whole within `timeout` seconds."""
    with Conversation(host, port, timeout, tls=tls) as conversation:
        name = f"[{host}]" if ":" in host else host
        head = [
            f"{method} {path} HTTP/1.1",
            f"Host: {name}:{port}",
            "User-Agent: pytest-stagegbo",
            "Accept: */*",
            "Connection: close",
        ]
        if body:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        conversation.send("\r\n".join([*head, "", ""]).encode("latin-1", "replace") + body)
        # HTTPResponse wants of its socket nothing but `makefile`.
        response = HTTPResponse(cast("socket.socket", _Tap(conversation)), method=method)
        try:
            response.begin()
        except RemoteDisconnected:
            raise NoAnswer(conversation.closed()) from None
        except (HTTPException, ValueError) as error:
            raise NoAnswer(Answer("wrong", mask(excerpt(f"not HTTP: {error}".encode())))) from None
        return Reply(response.status, _body(response))


def _body(response: HTTPResponse) -> bytes:
    broken = "the connection closed in the middle of the body"
    try:
        data = response.read(BODY_LIMIT)
        if len(data) == BODY_LIMIT or not response.length:
            return data
    except IncompleteRead:
        pass
    except (HTTPException, ValueError) as error:
        broken = f"a body that is not HTTP: {type(error).__name__}"
    except NoAnswer as nothing:
        broken = nothing.answer.text
    raise NoAnswer(Answer("unreachable", f"HTTP {response.status}, then {broken}"))


class _Tap(io.RawIOBase):
    """Makes a conversation look like the socket that `HTTPResponse` reads from."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__()
        self._conversation = conversation

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self._conversation.receive(len(view))
        view[: len(data)] = data
        return len(data)
