"""Reading from the lab's own daemon over its Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["get"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("incus", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get(path: Path, url: str, *, timeout: float = 10) -> Any:
    """The `metadata` of an answer.

    Raises:
        OSError: nobody answers at the socket, not in time, or with an error.
    """
    connection = _UnixConnection(path, timeout)
    try:
        connection.request("GET", url)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"GET {url}: {answer.status} {body[:200].decode(errors='replace')}")
        return json.loads(body)["metadata"]
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"GET {url}: {error}") from error
    finally:
        connection.close()
