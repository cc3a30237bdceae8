"""Ports of this machine that lead to services of clones, and connections to them without a port.

One thread carries them all. What the daemon is asked for is asked by threads of its own, since it takes a while.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.forked import let_go_in_children
from pytest_stagegbo.forward.connections import Relay
from pytest_stagegbo.incus.channel import ChannelBroken

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.incus.message_socket import MessageSocket

__all__ = ["LOOPBACK", "Forwarder"]

log = logging.getLogger("stagegbo.forward")

LOOPBACK = "127.0.0.1"
WAITING = 256
"""Connections that may wait to be accepted."""
OPENING = 20.0
"""Seconds for a relay to run."""
BEAT = 10.0
"""Seconds between two signs of life."""
PAUSE = 0.2
"""Seconds without accepting anything, when this process has too many files open."""


class Forwarder:
    """Carries connections to the containers of one stage. Safe to share between threads; its thread is started by the
    first one that needs it.

    After a fork the ports belong to the parent, which goes on carrying what is connected to them: the child may use
    them as any other process.

    Args:
        start: Runs the relay in the clone of that name; its standard streams.
        trouble: Called with a text for people when something went wrong.
    """

    def __init__(
        self, start: Callable[[str], tuple[MessageSocket, ...]], trouble: Callable[[str], None] | None = None
    ) -> None:
        self._start = start
        self._trouble = trouble or (lambda text: log.info("%s", text))
        self._ports: dict[tuple[str, int], int] = {}
        self._reset()
        let_go_in_children(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._selector: selectors.BaseSelector | None = None
        self._wakers: tuple[socket.socket, socket.socket] | None = None
        self._watched: dict[Any, int] = {}
        self._listeners: list[socket.socket] = []
        self._relays: dict[str, Relay] = {}
        self._paused: dict[_Listener, float] = {}
        self._closed = False

    def let_go(self) -> None:
        """In a forked child: close this process's copies of everything, without a word to anybody."""
        for sock in [*self._watched, *self._listeners, *(self._wakers or ())]:
            with contextlib.suppress(OSError):
                sock.close()
        if self._selector is not None:
            with contextlib.suppress(OSError):
                self._selector.close()
        self._reset()

    # -- for other threads

    def listen(self, name: str, port: int, own: int = 0) -> int:
        """A port of this machine's loopback that leads to a port of a clone: always the same.

        Args:
            own: Its number; 0: any that is free.

        Raises:
            OSError: it can't be had.
        """
        with self._lock:
            found = self._ports.get((name, port))
            if found is not None:
                return found
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                if os.name == "posix":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((LOOPBACK, own))
                sock.listen(WAITING)
                sock.setblocking(False)
            except BaseException:
                sock.close()
                raise
            found = self._ports[name, port] = int(sock.getsockname()[1])
            self._listeners.append(sock)
            listener = _Listener(self, sock, name, port)
            self._call(lambda: self._watch(sock, selectors.EVENT_READ, listener))
            return found

    def connect(self, name: str, port: int, timeout: float) -> tuple[socket.socket, int]:
        """Connect to a port of a clone.

        Returns:
            A connected socket, which is none of TCP, and the port from which the clone sees it.

        Raises:
            OSError: as for a connection of TCP.
        """
        self.prepare(name)
        near, far = socket.socketpair()
        answer: Future[int] = Future()
        self._call(lambda: self._carry(name, port, far, answer))
        try:
            return near, answer.result(timeout)
        except BaseException as error:
            near.close()
            self._call(lambda: self._abandon(name, answer))
            if isinstance(error, (FutureTimeoutError, TimeoutError)):
                raise TimeoutError(errno.ETIMEDOUT, "nothing answers") from None
            if isinstance(error, OSError) and error.errno is None:
                number = errno.ECONNREFUSED if isinstance(error, ConnectionRefusedError) else errno.EHOSTUNREACH
                raise OSError(number, str(error)) from None
            raise

    def prepare(self, name: str) -> None:
        """Wait until the relay in a clone runs, or can't be had: the time for that is no service's."""
        relay = self._relays.get(name)
        if relay is None or not relay.is_running:
            begun: Future[None] = Future()
            self._call(lambda: self._relay(name).tell(begun))
            with contextlib.suppress(FutureTimeoutError, TimeoutError):
                begun.result(OPENING)

    def close(self) -> None:
        """End it all, at once. It may be used again."""
        with self._lock:
            thread = self._thread
            self._closed = True
            self._ports.clear()
            self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)
        with self._lock:
            self._reset()

    def _call(self, call: Callable[[], None]) -> None:
        with self._lock:
            self._calls.append(call)
            if self._thread is None:
                self._selector = selectors.DefaultSelector()
                self._wakers = socket.socketpair()
                for each in self._wakers:
                    each.setblocking(False)
                self._selector.register(self._wakers[0], selectors.EVENT_READ, None)
                self._thread = threading.Thread(target=self._run, name="stagegbo forward", daemon=True)
                self._thread.start()
            else:
                self._wake()

    def _wake(self) -> None:
        if self._wakers is not None:
            with contextlib.suppress(OSError):  # it has been woken up often enough
                self._wakers[1].send(b"\0")

    # -- in its own thread

    def _run(self) -> None:
        selector, wakers = self._selector, self._wakers
        assert selector is not None
        assert wakers is not None
        try:
            self._loop(selector, wakers[0])
        except Exception:  # whoever waits must not wait for ever: what was carried breaks off, and the next one begins
            log.exception("forwarding has failed")
        finally:
            for relay in list(self._relays.values()):
                relay.close(ConnectionResetError("the forward has ended"))
            for sock in [*self._listeners, *wakers]:
                sock.close()
            selector.close()
            with self._lock:
                if not self._closed:
                    self._ports.clear()
                    self._reset()

    def _loop(self, selector: selectors.BaseSelector, wakened: socket.socket) -> None:
        beat = clocks.monotonic() + BEAT
        while not self._closed:
            while self._calls:
                self._calls.popleft()()
            now = clocks.monotonic()
            next_time = min([beat, *self._paused.values()])
            for key, events in selector.select(max(0.0, next_time - now)):
                if key.data is None:
                    with contextlib.suppress(OSError):
                        wakened.recv(4096)
                elif key.fileobj in self._watched:
                    self._ready(key.data, events)
            now = clocks.monotonic()
            for listener in [each for each, until in self._paused.items() if until <= now]:
                del self._paused[listener]
                self._watch(listener.sock, selectors.EVENT_READ, listener)
            if now >= beat:
                beat = now + BEAT
                for relay in list(self._relays.values()):
                    self._guarded(relay, relay.beat)

    def _ready(self, target: Any, events: int) -> None:
        relay = target if isinstance(target, Relay) else getattr(target, "relay", None)
        if relay is None:
            target.ready(events)
        else:
            self._guarded(relay, lambda: target.ready(events))

    def _guarded(self, relay: Relay, call: Callable[[], object]) -> None:
        """Do something with a relay, which ends if that fails."""
        try:
            call()
        except ChannelBroken as error:
            self._lost(relay, error)
        except Exception as error:  # a fault of this package's must not end what else this thread carries
            log.exception("%s: its connections break off", relay.name)
            self._lost(relay, ChannelBroken(f"{type(error).__name__}: {error}"))

    def _lost(self, relay: Relay, error: StageGboError) -> None:
        if self._relays.get(relay.name) is relay:
            del self._relays[relay.name]
        said = relay.said.decode("utf-8", "replace").strip()
        text = f"{relay.name}: {error.message}" + "".join(f"; {each}" for each in (error.seen, said) if each)
        if relay.connections or said:
            self._trouble(text)
        relay.close(ConnectionResetError(text))

    def _watch(self, sock: Any, events: int, target: Any) -> None:
        selector, before = self._selector, self._watched.get(sock, 0)
        if selector is None or events == before:
            return
        if not events:
            del self._watched[sock]
            selector.unregister(sock)
            return
        self._watched[sock] = events
        if before:
            selector.modify(sock, events, target)
        else:
            selector.register(sock, events, target)

    def carry(self, name: str, port: int, sock: socket.socket) -> None:
        """Carry a connection of a client."""
        self._carry(name, port, sock, None)

    def _carry(self, name: str, port: int, sock: socket.socket, answer: Future[int] | None) -> None:
        relay = self._relay(name)
        self._guarded(relay, lambda: relay.add(sock, port, answer))

    def _relay(self, name: str) -> Relay:
        """The relay in a clone; begun, if there is none."""
        relay = self._relays.get(name)
        if relay is None:
            relay = self._relays[name] = Relay(name, self._watch)
            threading.Thread(target=self._begin, args=(relay,), name=f"stagegbo forward {name}", daemon=True).start()
        return relay

    def _begin(self, relay: Relay) -> None:
        """Run the relay. In a thread of its own."""
        try:
            sockets = self._start(relay.name)
        except (StageGboError, OSError) as error:
            trouble = error if isinstance(error, StageGboError) else ChannelBroken(str(error))
            self._call(lambda: self._lost(relay, trouble))
        except BaseException as error:  # whoever waits for a connection must not wait for ever
            trouble = ChannelBroken(f"{type(error).__name__}: {error}")
            self._call(lambda: self._lost(relay, trouble))
            raise
        else:
            if relay.is_open:
                self._call(lambda: self._guarded(relay, lambda: relay.started(sockets)))
            else:
                relay.started(sockets)  # which closes them

    def _abandon(self, name: str, answer: Future[int]) -> None:
        """Nobody waits for this connection any more."""
        relay = self._relays.get(name)
        for connection in list(relay.connections.values()) if relay is not None else ():
            if connection.answer is answer:
                assert relay is not None
                self._guarded(relay, connection.abandon)

    def pause(self, listener: _Listener) -> None:
        self._watch(listener.sock, 0, listener)
        self._paused[listener] = clocks.monotonic() + PAUSE


class _Listener:
    """A port of this machine."""

    def __init__(self, forwarder: Forwarder, sock: socket.socket, name: str, port: int) -> None:
        self.sock = sock
        self._forwarder = forwarder
        self._name = name
        self._port = port

    def ready(self, _: int) -> None:
        try:
            sock, _ = self.sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("no connection to %s can be taken: %s", self._name, error)
            self._forwarder.pause(self)
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._forwarder.carry(self._name, self._port, sock)
