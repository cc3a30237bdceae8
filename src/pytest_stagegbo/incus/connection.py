"""The one place that talks to the Incus daemon, through pylxd.

Everything goes out through `Connection.request`, which logs, calls, and turns what pylxd, requests and Incus
raise into this package's errors. pylxd's models are not used: they lose the project of what they return, force
stops by default and write whole objects back (`docs/incus.md` says more); its `client.api` reaches every
endpoint as it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import requests

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import ServerRefused, ServerUnreachable, StageGboError
from pytest_stagegbo.forked import let_go_in_children
from pytest_stagegbo.incus import away, dialect, operations, remote, unix_socket
from pytest_stagegbo.incus.endpoint import find_endpoint
from pytest_stagegbo.incus.records import About, Reply, Server
from pytest_stagegbo.incus.unreachable import unreachable
from pytest_stagegbo.lazy import imported_when_used

# Its own way to look at certificates needs them, which take a fifth of what importing it does. See `remote` for ours.
with imported_when_used("cryptography.x509", "cryptography.hazmat.primitives.hashes"):
    import pylxd.client
    import pylxd.exceptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeVar

    from pytest_stagegbo.incus.channel import Stream
    from pytest_stagegbo.incus.events import EventSource
    from pytest_stagegbo.incus.message_socket import MessageSocket
    from pytest_stagegbo.settings import IncusSettings

    S = TypeVar("S", Stream, MessageSocket)

__all__ = ["Connection"]

log = logging.getLogger("stagegbo.incus")

_REQUEST_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
"""For a daemon on another host, whose address may be one where nobody answers."""
_LOG_BODY_CHARACTERS = 200
_PIECE = 1 << 20
_NEWS_SECONDS = 1.0
"""How long after a write an event may still be its."""


class _Greeted(Exception): ...


class _Client(pylxd.Client):  # type: ignore[misc]
    """pylxd's client, made only until the daemon has said what it is. After that, pylxd makes a manager for each of its
    models and imports them all, which takes a tenth of a command's time."""

    def __init__(self, **options: Any) -> None:
        with contextlib.suppress(_Greeted):
            super().__init__(**options)

    @property
    def host_info(self) -> Any:
        return self._said

    @host_info.setter
    def host_info(self, said: Any) -> None:
        self._said = said
        raise _Greeted


class Connection:
    """Requests to one daemon. Safe to share between threads: no two requests under way share a session.

    pylxd's client asks the daemon what it is when it is made, so there is one.
    Its nodes send through whatever session they are given: one that is done with a request is kept for the next, of
    whatever thread.
    """

    def __init__(self, settings: IncusSettings, environ: Mapping[str, str] = os.environ) -> None:
        self.endpoint = find_endpoint(settings, environ)
        self._settings = settings
        self._client: Any = None
        """pylxd's, of this process; None: the daemon has yet to say what it is, for the first time or once more."""
        self._greeting = threading.Lock()
        self._idle: list[requests.Session] = []
        """Sessions of this process, the one used last at the end."""
        self._server: Server | None = None
        self._writes_lock = threading.Lock()
        self._writes_open = 0
        self.requests = 0
        """How many were made since this connection was, but for the first, which greets the daemon."""
        self._written_at = float("-inf")
        let_go_in_children(self)

    def let_go(self) -> None:
        """In a forked child: the sessions' sockets are the parent's, whose threads, gone here, may hold the lock."""
        self._idle.clear()
        self._client = None
        self._greeting = threading.Lock()

    def __repr__(self) -> str:
        return f"Connection({self.endpoint!r})"

    @property
    def is_local(self) -> bool:
        """Whether the daemon is reached through a socket of this machine."""
        return not self.endpoint.startswith("https://")

    def server(self) -> Server:
        """What the daemon says of itself, asked once.

        Raises:
            ServerUnreachable: it does not answer, does not trust this client, is not Incus or lacks what is needed.
        """
        if self._server is None:
            with self._failures("GET", "/1.0"):
                self._greet()
        assert self._server is not None
        return self._server

    def _greeted(self, data: Mapping[str, Any]) -> Server:
        """Read what the daemon says of itself to each client at first."""
        environment = data.get("environment") or {}
        server = Server(
            kind=str(environment.get("server", "")),
            version=str(environment.get("server_version", "")),
            extensions=frozenset(data.get("api_extensions") or ()),
            storage_drivers=str(environment.get("storage", "")),
            clustered=bool(environment.get("server_clustered", False)),
            fingerprint=str(environment.get("certificate_fingerprint", "")),
            trusted=data.get("auth") == "trusted",
            name=str(environment.get("server_name", "")),
        )
        if not server.trusted and not self.is_local:
            raise remote.untrusted(self._settings, self.endpoint, data.get("auth"))
        if not server.trusted:
            raise ServerUnreachable(
                f"the daemon at {self.endpoint} does not trust this client",
                seen=f"auth is {data.get('auth')!r}",
                remedy="run as root or as a member of group incus-admin",
            )
        dialect.require(server, self.endpoint)
        return server

    def get(self, *path: str, **params: str | int) -> Any:
        """The metadata of `GET /1.0/<path>`; path segments are quoted here."""
        return self.request("GET", path, params=params).metadata

    def get_reply(self, *path: str, **params: str | int) -> Reply:
        """As `get`, with the ETag that a later conditional write needs."""
        return self.request("GET", path, params=params)

    def read_bytes(self, *path: str, **params: str | int) -> bytes:
        """A body that is not JSON: a file, a log."""
        return b"".join(self.read_pieces(*path, **params))

    def read_pieces(self, *path: str, **params: str | int) -> Iterator[bytes]:
        """As `read_bytes`, one piece after the other, so that it need not be in memory whole. Raises as `request`."""
        with self.naming(About(path, params)):
            response, session = self._send("GET", path, params, is_api=False, stream=True)
        with contextlib.closing(response):
            pieces = response.iter_content(_PIECE)
            while True:
                with self._failures("GET", _shown(path), params):
                    piece = next(pieces, b"")
                if not piece:
                    break
                yield piece
        self._idle.append(session)

    def request(
        self,
        method: str,
        path: Sequence[str],
        *,
        params: Mapping[str, str | int] | None = None,
        body: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = _REQUEST_SECONDS,
        counted: bool = True,
        about: About | None = None,
    ) -> Reply:
        """One request.

        Args:
            path: Segments below `/1.0`, one at least, unquoted.
            body: Sent as JSON.
            data: Sent as it is, instead of `body`.
            counted: False for a write that causes no events but those of its own object; see `writing`.
            about: Of the request that began what this one asks about, if it is another one.

        Raises:
            ServerUnreachable: the daemon does not answer.
            ServerRefused: it answers with an error; carries the HTTP status.
            MemberAway: the member of a cluster that it is about is away.
        """
        about = about or About(path, params or {})
        arguments: dict[str, Any] = {"headers": dict(headers)} if headers else {}
        if data is not None:
            arguments["data"] = data
        elif body is not None:
            arguments["json"] = body
        with self.naming(about), self._write() if counted and method != "GET" else contextlib.nullcontext():
            response, session = self._send(method, path, params, timeout, **arguments)
            self._idle.append(session)
            return Reply.of(response, about)

    def _send(
        self,
        method: str,
        path: Sequence[str],
        params: Mapping[str, str | int] | None,
        timeout: float = _REQUEST_SECONDS,
        **arguments: Any,
    ) -> tuple[Any, requests.Session]:
        """The response, and the session that it comes over."""
        with self._writes_lock:
            self.requests += 1
        with self._failures(method, _shown(path), params):
            node = self._greet(timeout).api
            for segment in path:
                node = node[quote(segment, safe="")]
            node.session = session = self._take()  # of this very node, which nobody else has
            try:
                response = getattr(node, method.lower())(
                    params=dict(params or {}), timeout=self._timeouts(timeout), **arguments
                )
            except pylxd.exceptions.LXDAPIException:
                self._idle.append(session)
                raise
        log.debug("%s %s %s -> %d", method, _shown(path), dict(params or {}), response.status_code)
        return response, session

    @contextlib.contextmanager
    def naming(self, about: About) -> Iterator[None]:
        """Have errors of the block, on a cluster, name the member that a request was about, if that is away."""
        try:
            yield
        except StageGboError as error:
            if self._server is None or not self._server.clustered:  # one that never answered is not asked again
                raise
            raise away.named(self, about, error) from None

    @contextlib.contextmanager
    def _failures(self, method: str, shown: str, params: Mapping[str, str | int] | None = None) -> Iterator[None]:
        """Turn what pylxd, requests and the system raise into errors of this package's."""
        started = clocks.monotonic()
        try:
            yield
        except pylxd.exceptions.LXDAPIException as error:
            status = error.response.status_code
            log.debug("%s %s %s -> %d %s", method, shown, dict(params or {}), status, error)
            raise ServerRefused(
                f"Incus refused {method} {shown}",
                status=status,
                seen=f"{status} {error}",
                remedy=dialect.remedy(status, str(error)),
            ) from None
        except (
            pylxd.exceptions.ClientConnectionFailed,
            requests.RequestException,
            unix_socket.CannotConnect,
            OSError,
        ) as error:
            self._client = None  # who answers next may be another daemon, or a newer one
            seconds = clocks.monotonic() - started
            raise unreachable(self._settings, self.endpoint, f"{method} {shown}", error, seconds) from None

    def wait(self, reply: Reply, what: str, timeout: float, on_progress: Callable[[str], None] | None = None) -> Any:
        """Wait for the background operation of a reply; its metadata.

        Incus forgets an operation five seconds after it has ended. One that is unknown has ended: None is
        returned, and the caller, who looks at the object anyway, sees how.

        Args:
            on_progress: Called with a copy's progress, in the daemon's words. `timeout` then counts from the last call.

        Raises:
            OperationFailed: it failed, or did not end within `timeout` seconds.
        """
        if not reply.operation:
            return reply.metadata
        with self._write():
            return operations.wait(self, reply, what, timeout, on_progress)

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        """A write is under way while the block runs."""
        with self._writes_lock:
            self._writes_open += 1
        try:
            yield
        finally:
            with self._writes_lock:
                self._writes_open -= 1
                self._written_at = clocks.monotonic()

    def writing(self) -> bool:
        """Whether a write of this process is under way, or ended so recently that news of it may still be coming."""
        with self._writes_lock:
            return self._writes_open > 0 or clocks.monotonic() - self._written_at < _NEWS_SECONDS

    def events(self) -> EventSource:
        """Lifecycle events of all projects, from now on.

        Raises:
            ChannelBroken: they can't be had.
        """
        from pytest_stagegbo.incus.events import PATH, Events

        self.server()  # whose certificate is checked, and who trusts this client
        return Events(self._stream(PATH), self)

    def streams(self, reply: Reply) -> tuple[Stream, Stream, Stream]:
        """Standard input, output and errors of a command that was started with `wait-for-websocket`.

        Raises:
            ChannelBroken: they can't be had; the daemon ends the command.
        """
        from pytest_stagegbo.incus.websocket import open_stream

        return self._three(reply, open_stream)

    def sockets(self, reply: Reply) -> tuple[MessageSocket, MessageSocket, MessageSocket]:
        """As `streams`, for who waits for many of them at once."""
        from pytest_stagegbo.incus.websocket import open_socket

        return self._three(reply, open_socket)

    def _three(self, reply: Reply, open_one: Callable[..., S]) -> tuple[S, S, S]:
        from pytest_stagegbo.incus.channel import STANDARD_STREAMS

        path = urlsplit(reply.operation).path
        keys = reply.metadata["metadata"]["fds"]
        opened: list[S] = []
        try:
            for name in STANDARD_STREAMS:
                opened.append(self._websocket(open_one, f"{path}/websocket?secret={keys[name]}"))
        except BaseException:
            for stream in opened:
                stream.close()
            raise
        return opened[0], opened[1], opened[2]

    def _stream(self, path: str) -> Stream:
        from pytest_stagegbo.incus.websocket import open_stream

        return self._websocket(open_stream, path)

    def _websocket(self, open_one: Callable[..., S], path: str) -> S:
        if self.is_local:
            return open_one(f"ws+unix://{self.endpoint}", path, {})
        url = self.endpoint.replace("https://", "wss://", 1)
        return open_one(url, path, remote.websocket_options(self._settings), remote.pinned(self._settings))

    def _greet(self, timeout: float = _REQUEST_SECONDS) -> Any:
        """pylxd's client. Before it is there, the daemon says what it is, and whom it trusts."""
        with self._greeting:
            if self._client is None:
                session = self._take()
                client = _Client(endpoint=self._url, session=session, timeout=self._timeouts(timeout))
                self._server = self._greeted(client.host_info)
                log.debug("GET /1.0 {} -> 200")
                self._client = client
                self._idle.append(session)
            return self._client

    def _take(self) -> requests.Session:
        """A session that nobody else uses. Give it back to `_idle`; one that failed is dropped with its socket."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return unix_socket.session(self.endpoint) if self.is_local else remote.session(self._settings)

    @property
    def _url(self) -> str:
        return "http+unix://" + quote(self.endpoint, safe="") if self.is_local else self.endpoint

    def _timeouts(self, seconds: float) -> float | tuple[float, float]:
        """As `requests` takes them: for the connection and for the answer."""
        return seconds if self.is_local else (min(_CONNECT_SECONDS, seconds), seconds)


def _shown(path: Sequence[str]) -> str:
    return "/1.0/" + "/".join(path)
