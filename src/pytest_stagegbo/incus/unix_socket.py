"""HTTP over the daemon's Unix socket, with one connection a session.

Incus looks at the first eight bytes of a connection before it takes the next one, since its listener expects STARTTLS
(seen up to 7.0, and mended later). So whoever has connected and said nothing keeps all others from the daemon,
production's administrators included, and a process of ours may be stopped at any moment. A connection is made when its
first request is ready to be sent, never to see whether it can be, and it serves all requests of its session. pylxd's
own adapter makes one for each path.
"""

from __future__ import annotations

import socket
from typing import Any

import requests
import requests.adapters
import urllib3
import urllib3.connection

__all__ = ["CannotConnect", "session"]

SCHEME = "http+unix://"


class CannotConnect(Exception):
    """There is no connection to the socket; its cause is the system's error. It is none of the errors that urllib3 and
    requests wrap, so that people see the system's words."""


def session(path: str) -> requests.Session:
    """A session whose requests go to the socket at `path`. Raises `CannotConnect` with the first of them."""
    made = requests.Session()
    made.trust_env = False  # no proxy and no password of ~/.netrc, looked for each time, is for a socket
    made.mount(SCHEME, _Adapter(path))
    return made


class _HttpConnection(urllib3.connection.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def __del__(self) -> None:
        self.close()

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise CannotConnect(str(error)) from error
        self.sock = sock


class _Pool(urllib3.HTTPConnectionPool):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> _HttpConnection:
        return _HttpConnection(self._path)


class _Adapter(requests.adapters.HTTPAdapter):
    def __init__(self, path: str) -> None:
        self._pool = _Pool(path)
        super().__init__()

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> _Pool:
        return self._pool

    def get_connection(self, *_: Any, **__: Any) -> _Pool:
        """What versions of requests before 2.32 ask."""
        return self._pool

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:  # noqa: ARG002 (the base class names it)
        return request.path_url

    def close(self) -> None:
        self._pool.close()
        super().close()
