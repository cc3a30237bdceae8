"""HTTP over the daemon's Unix socket, with one connection a session.

Incus looks at the first eight bytes of a connection before it takes the next one, since its listener expects STARTTLS
(seen up to 7.0, and mended later). So whoever has connected and said nothing keeps all others from the daemon,
production's administrators included, and a process of ours may be stopped at any moment. A connection is made when its
first request is ready to be sent, never to see whether it can be, and it serves all requests of its session. pylxd's
own adapter makes one for each path.

pylxd sends through whatever session it is given. That of requests would work, and takes a millisecond of a processor
for each request: for cookies, proxies, redirects and encodings, none of which there are here. This takes a fifth of it.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json as json_text
import select
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SCHEME", "Response", "Session"]

SCHEME = "http+unix://"


class _NoJson(http.client.HTTPException, ValueError): ...


class Response:
    """As much of an answer of requests' as pylxd and this package use."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer
        self.status_code = answer.status
        self.headers = answer.headers

    @functools.cached_property
    def content(self) -> bytes:
        return self._answer.read()

    def json(self) -> Any:
        """The decoded body, the same object each time. Raises `ValueError` if it is not JSON."""
        return self._decoded

    @functools.cached_property
    def _decoded(self) -> Any:
        try:
            return msgspec.json.decode(self.content)
        except msgspec.DecodeError as error:
            raise _NoJson(str(error)) from None

    def iter_content(self, size: int) -> Iterator[bytes]:
        """The body, piece by piece. For an answer to a request with `stream`."""
        while piece := self._answer.read(size):
            yield piece

    def close(self) -> None:
        self._answer.close()


class Session:
    """As much of a session of requests' as pylxd uses. For one thread at a time."""

    def __init__(self, path: str) -> None:
        self._connection = _Connection(path)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def get(self, url: str, **options: Any) -> Response:
        return self._request("GET", url, **options)

    def post(self, url: str, **options: Any) -> Response:
        return self._request("POST", url, **options)

    def put(self, url: str, **options: Any) -> Response:
        return self._request("PUT", url, **options)

    def patch(self, url: str, **options: Any) -> Response:
        return self._request("PATCH", url, **options)

    def delete(self, url: str, **options: Any) -> Response:
        return self._request("DELETE", url, **options)

    def _request(
        self,
        method: str,
        url: str,
        *,
        timeout: float | None = None,
        params: Mapping[str, str | int] | None = None,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> Response:
        """One request, as `requests.Session.request`.

        Args:
            stream: Leave the body to `Response.iter_content`, unless it is that of a refusal.

        Raises:
            OSError: there is no connection, or no answer in time.
            http.client.HTTPException: what came is no answer.
        """
        target = "/" + url.removeprefix(SCHEME).partition("/")[2] + (f"?{urlencode(params)}" if params else "")
        sent = dict(headers or {})
        if json is not None:
            data = json_text.dumps(json, allow_nan=False).encode()
            sent["Content-Type"] = "application/json"
        self._connection.prepare(timeout)
        try:
            self._connection.request(method, target, data, sent)
            response = Response(self._connection.getresponse())
            if not stream or response.status_code >= http.client.BAD_REQUEST:
                _ = response.content  # the connection is free for the next request once it has been read
        except BaseException:
            self.close()
            raise
        return response


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def prepare(self, timeout: float | None) -> None:
        """Get ready for the next request. A connection that the daemon has closed meanwhile is made again."""
        self.timeout = timeout
        if self.sock is not None:
            self.sock.settimeout(timeout)
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            if poll.poll(0):  # nothing was asked for, so this is the end, or an answer to nothing
                self.close()

    def connect(self) -> None:
        with contextlib.ExitStack() as on_failure:
            sock = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.settimeout(self.timeout)
            sock.connect(self._path)
            on_failure.pop_all()
        self.sock = sock
