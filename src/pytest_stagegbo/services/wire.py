"""Sends and receives bytes, with one deadline for the whole conversation.

A time-out per `recv` is no bound: a server that drips a byte now and then would hold its client for ever. The
sockets here never block; every wait is cut to what is left of the conversation's time.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pytest_stagegbo import clocks
from pytest_stagegbo.services.answer import Answer, NoAnswer, excerpt
from pytest_stagegbo.services.dial import way_to

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Conversation"]

T = TypeVar("T")

_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


class Conversation:
    """A TCP connection that lives for at most `timeout` seconds, to be used in a `with` block.

    Every method raises `NoAnswer` for what the network or the peer does, and nothing else. `host` should be an
    address: looking up a name is the resolver's business and isn't covered by the deadline.
    """

    def __init__(self, host: str, port: int, timeout: float, *, tls: bool = False) -> None:
        self._timeout = timeout
        if way := way_to(host):
            way.prepare(host)
        self._ends = clocks.monotonic() + timeout
        self._connected = False
        self._heard = 0
        self._socket = self._connect(host, port)
        if tls:
            try:
                self.start_tls()
            except BaseException:
                self._socket.close()
                raise

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def start_tls(self) -> None:
        """Speak TLS from here on. The certificate isn't checked: see `ProbeSettings.tls`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            secured = context.wrap_socket(self._socket, do_handshake_on_connect=False)
        except OSError as error:  # the peer may be gone again already
            raise NoAnswer(_translate(error)) from None
        self._socket = secured
        self._attempt(secured.do_handshake, selectors.EVENT_READ)

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._attempt(partial(self._socket.send, rest), selectors.EVENT_WRITE) :]

    def receive(self, limit: int) -> bytes:
        """Return some bytes, at most `limit`. Empty: the peer closed the connection."""
        data = self._attempt(partial(self._socket.recv, limit), selectors.EVENT_READ)
        self._heard += len(data)
        return data

    def receive_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.receive(count - len(data))
            if not more:
                raise NoAnswer(self.closed())
            data += more
        return data

    def receive_line(self, limit: int = 512) -> bytes:
        """Return a line without its end, or what came before the peer closed the connection or `limit` was reached."""
        data = b""
        while b"\n" not in data and len(data) < limit:
            more = self.receive(limit - len(data))
            if not more:
                break
            data += more
        if not data:
            raise NoAnswer(self.closed())
        return data.partition(b"\n")[0].rstrip(b"\r")

    def closed(self) -> Answer:
        """The answer to give for a peer that closed the connection too early."""
        if self._heard:
            return Answer("unreachable", "the connection closed in the middle of an answer")
        return Answer("unreachable", "accepts the connection and closes it without an answer")

    def _connect(self, host: str, port: int) -> socket.socket:
        way = way_to(host)
        if way is None:
            return self._connect_directly(host, port)
        try:
            found, _ = way.connect(host, port, max(0.0, self._ends - clocks.monotonic()))
        except TimeoutError:
            raise NoAnswer(self._silence()) from None
        except OSError as error:
            raise NoAnswer(_translate(error)) from None
        found.setblocking(False)
        self._connected = True
        return found

    def _connect_directly(self, host: str, port: int) -> socket.socket:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NoAnswer(Answer("unreachable", f"{host} is no address: {excerpt(str(error).encode())}")) from None
        last = Answer("unreachable", f"{host} has no address")
        for parent, kind, protocol, _, address in addresses:
            self._socket = socket.socket(parent, kind, protocol)
            self._socket.setblocking(False)
            try:
                code = self._socket.connect_ex(address)
                if code in {errno.EINPROGRESS, errno.EWOULDBLOCK}:
                    self._wait(selectors.EVENT_WRITE)
                    code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                # TCP connects a client to itself when it picks the very port that it calls on its own machine.
                if not code and self._socket.getsockname() == self._socket.getpeername():
                    code = errno.ECONNREFUSED
                if not code:
                    self._connected = True
                    return self._socket
                last = _translate(OSError(code, ""))
            except NoAnswer as nothing:
                last = nothing.answer
            except OSError as error:
                last = _translate(error)
            self._socket.close()
        raise NoAnswer(last)

    def _attempt(self, action: Callable[[], T], event: int) -> T:
        """Do `action`, waiting for `event` (or what TLS needs instead) whenever it would block."""
        while True:
            if clocks.monotonic() >= self._ends:  # a peer that floods never lets `action` block
                raise NoAnswer(self._silence())
            try:
                return action()
            except (BlockingIOError, InterruptedError):
                self._wait(event)
            except ssl.SSLWantReadError:
                self._wait(selectors.EVENT_READ)
            except ssl.SSLWantWriteError:
                self._wait(selectors.EVENT_WRITE)
            except OSError as error:
                raise NoAnswer(_translate(error)) from None

    def _wait(self, event: int) -> None:
        left = self._ends - clocks.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, event)
            if left <= 0 or not selector.select(left):
                raise NoAnswer(self._silence())

    def _silence(self) -> Answer:
        within = f"{self._timeout:.3g} s"
        if not self._connected:
            return Answer("unreachable", f"nothing answers in {within}")
        if self._heard:
            return Answer("unreachable", f"an answer began and did not end in {within}")
        return Answer("unreachable", f"accepts the connection and says nothing in {within}")


def _translate(error: OSError) -> Answer:
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return Answer("unreachable", "the connection closed in the middle of TLS")
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        return Answer("wrong", excerpt(f"no TLS is spoken here: {reason}".encode()))
    if error.errno == errno.ECONNREFUSED:
        return Answer("refused", "connection refused")
    if error.errno in {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED}:
        return Answer("unreachable", "connection reset")
    if error.errno in _NO_ROUTE:
        return Answer("unreachable", "no route to host")
    if error.errno == errno.ETIMEDOUT:
        return Answer("unreachable", "nothing answers")
    return Answer("unreachable", os.strerror(error.errno).lower() if error.errno else type(error).__name__)
