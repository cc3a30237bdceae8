"""Connections of this machine that are carried to a clone, all those of one clone over one command of the daemon's."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from pytest_stagegbo import clocks
from pytest_stagegbo.forward import frames
from pytest_stagegbo.forward.relay import SILENCE
from pytest_stagegbo.incus.channel import ChannelBroken

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pytest_stagegbo.incus.message_socket import MessageSocket

__all__ = ["READ", "WRITE", "Connection", "Relay", "Watch"]

READ, WRITE = 1, 2
"""As `selectors` has them."""
CHUNK = 1 << 17
BACKLOG = 1 << 20
"""Bytes on the way to the daemon, above which nothing more is read from clients."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""For SO_LINGER: the other side sees that the connection broke off, and not that it ended."""
ERRORS = {"refused": ConnectionRefusedError, "silent": TimeoutError}


class Watch(Protocol):
    """Has an object called when its socket may be read from or written to; 0: not any more."""

    def __call__(self, sock: Any, events: int, target: Any, /) -> None: ...


class Connection:
    """One connection of a client of this machine.

    Args:
        sock: Its end here.
        answer: Gets the port from which the clone's end is connected, or an error; None: nobody waits for it.
    """

    def __init__(self, relay: Relay, number: int, sock: socket.socket, answer: Future[int] | None) -> None:
        sock.setblocking(False)
        self.relay = relay
        self.number = number
        self.sock = sock
        self.answer = answer
        self.room = frames.WINDOW
        """Bytes that may be sent to the clone."""
        self._out: deque[memoryview] = deque()
        self._delivered = 0
        self._window = frames.WINDOW
        """Bytes that the clone may have on their way here."""
        self._sent_end = self._ending = self._ended = False

    def update(self) -> None:
        """Have the right things watched."""
        events = READ if self.room and not self._sent_end and not self.relay.is_full else 0
        self.relay.watch(self.sock, events | (WRITE if self._out else 0), self)

    def ready(self, events: int) -> None:
        if events & WRITE:
            self.deliver(None)
        if events & READ and self.number in self.relay.connections:
            self._take()

    def _take(self) -> None:
        try:
            data = self.sock.recv(min(CHUNK, self.room))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.relay.send(frames.frame(self.number, frames.RESET))
            self.close()
            return
        if data:
            self.room -= len(data)
            self.relay.send(frames.frame(self.number, frames.DATA, data))
        else:
            self._sent_end = True
            self.relay.send(frames.frame(self.number, frames.END))
        self._settle()

    def heard(self, kind: int, content: memoryview) -> None:
        if kind == frames.DATA:
            self.deliver(content)
        elif kind == frames.CREDIT:
            self.room += frames.number(bytes(content))
            self.update()
        elif kind == frames.END:
            self._ending = True
            self.deliver(None)
        elif kind == frames.OPENED and self.answer is not None:
            self.answer.set_result(frames.number(bytes(content)))
            self.answer = None
        elif kind == frames.FAILED:
            why = str(content, "ascii", "replace")
            self.break_off(ERRORS.get(why, OSError)(why))
        elif kind == frames.RESET:
            self.break_off(ConnectionResetError("the service broke the connection off"))

    def deliver(self, content: memoryview | None) -> None:
        """Hand over what has come, as far as the client takes it."""
        if content is not None:
            self._out.append(content)
        try:
            while self._out:
                sent = self.sock.send(self._out[0])
                self._delivered += sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.relay.send(frames.frame(self.number, frames.RESET))
            self.close()
            return
        if self._out and content is not None:
            self._out[-1] = memoryview(bytes(self._out[-1]))  # the rest of a read, not all of it, is what waits
        if self._delivered >= self._window // 2:
            more = 0 if self._out else min(self._window, frames.WIDEST - self._window)
            self._window += more
            self.relay.send(frames.credit(self.number, self._delivered + more))
            self._delivered = 0
        self._settle()

    def _settle(self) -> None:
        if self._ending and not self._ended and not self._out:
            self._ended = True
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
        if self._ended and self._sent_end:
            self.close()
        elif self.number in self.relay.connections:
            self.update()

    def break_off(self, error: OSError) -> None:
        """The client sees that its connection broke, and whoever waits for it gets the error."""
        if self.answer is not None:
            self.answer.set_exception(error)
            self.answer = None
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.close()

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self.answer = None
        self.relay.send(frames.frame(self.number, frames.RESET))
        self.close()

    def close(self) -> None:
        if self.relay.connections.pop(self.number, None) is not None:
            self.relay.watch(self.sock, 0, self)
            self._out.clear()
            self.sock.close()


class Relay:
    """The command in one clone that carries connections. It may be given some before it runs."""

    def __init__(self, name: str, watch: Watch) -> None:
        self.name = name
        self.watch = watch
        self.connections: dict[int, Connection] = {}
        self.is_open = True
        """Whether it can be given connections."""
        self._sockets: tuple[MessageSocket, ...] = ()
        self._waiting: list[bytes] = []
        """What is sent once it runs."""
        self._listening: list[Future[None]] = []
        self._decoder = frames.Decoder()
        self._number = 0
        self._heard = clocks.monotonic()
        self.is_full = False
        self.said = b""
        """The end of what it wrote to standard error."""

    def add(self, sock: socket.socket, port: int, answer: Future[int] | None) -> Connection:
        self._number += 1
        connection = Connection(self, self._number, sock, answer)
        self.connections[self._number] = connection
        self.send(frames.frame(self._number, frames.OPEN, str(port).encode()))
        if self.is_open:
            connection.update()
        return connection

    @property
    def is_running(self) -> bool:
        return bool(self._sockets)

    def tell(self, begun: Future[None]) -> None:
        """Have a result set once it runs, or can't be had."""
        if self._sockets or not self.is_open:
            begun.set_result(None)
        else:
            self._listening.append(begun)

    def _told(self) -> None:
        while self._listening:
            self._listening.pop().set_result(None)

    def started(self, sockets: tuple[MessageSocket, ...]) -> None:
        """It runs. Raises `ChannelBroken` when it does not any more."""
        if not self.is_open:
            for each in sockets:
                each.close()
            return
        self._sockets = sockets
        self._told()
        self._heard = clocks.monotonic()
        for data in self._waiting:
            sockets[0].send(data)
        self._waiting.clear()
        for each in sockets:
            self.watch(each, READ, self)
        self._update()
        self.ready(READ)  # what came with the end of a handshake wakes nobody up

    def send(self, data: bytes) -> None:
        if not self._sockets:
            self._waiting.append(data)
            return
        self._sockets[0].send(data)
        if self._sockets[0].backlog:
            self._update()

    def _update(self) -> None:
        backlog = self._sockets[0].backlog
        self.watch(self._sockets[0], READ | (WRITE if backlog else 0), self)
        full = backlog > (BACKLOG // 2 if self.is_full else BACKLOG)
        if full != self.is_full:
            self.is_full = full
            for connection in list(self.connections.values()):
                connection.update()

    def ready(self, events: int) -> None:
        """Raises `ChannelBroken` when it has ended."""
        if events & WRITE:
            self._sockets[0].flush()
            self._update()
        if events & READ:
            for message in self._sockets[2].receive():
                self.said = (self.said + bytes(message))[-500:]
            for _ in self._sockets[0].receive():
                pass
            for message in self._sockets[1].receive():
                self._heard = clocks.monotonic()
                for number, kind, content in self._decoder.feed(message):
                    if number in self.connections:
                        self.connections[number].heard(kind, content)

    def beat(self) -> None:
        """Show it that this side is there. Raises `ChannelBroken` when it has been silent for too long."""
        if not self._sockets:
            return
        if clocks.monotonic() - self._heard > SILENCE:
            raise ChannelBroken(f"the relay in {self.name} has said nothing for {SILENCE} s")
        self.send(frames.frame(0, frames.PING))

    def close(self, error: OSError) -> None:
        """All its connections break off. It ends as soon as the daemon sees its sockets closed."""
        self.is_open = False
        self._told()
        for connection in list(self.connections.values()):
            connection.break_off(error)
        for each in self._sockets:
            self.watch(each, 0, self)
            each.close()
