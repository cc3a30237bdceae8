"""Asking production's services, in their own protocols and from inside the lab, whether they work."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ADDRESSES", "VAULT_URL", "states", "vault_call"]

ADDRESSES = {
    "system": "10.0.2.10",
    "tables": "10.0.2.11",
    "vault": "10.0.2.12",
    "cache": "10.0.2.13",
    "drive": "10.0.2.14",
    "llm": "10.0.2.15",
}
"""Production's containers."""
VAULT_URL = f"http://{ADDRESSES['vault']}:8200"
_SECONDS = 2.0


def states() -> dict[str, str]:
    """`ok`, or what is wrong, for every service. To be called inside of the lab's network namespace."""
    checks: dict[str, Callable[[], str]] = {
        "system": lambda: _http("system", 5858, "/health") or _http("system", 5859, "/health"),
        "tables": _tables,
        "vault": lambda: _http("vault", 8200, "/v1/sys/health"),
        "cache": _cache,
        "drive": lambda: _http("drive", 9100, "/", wanted=(200, 400, 403)),  # not signed: refused, in S3's way
        "llm": lambda: _http("llm", 8081, "/health"),
    }
    found = {}
    for name, check in checks.items():
        try:
            found[name] = check() or "ok"
        except (OSError, http.client.HTTPException) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def vault_call(method: str, path: str, body: object = None, *, token: str = "") -> tuple[int, Any]:
    """Status and decoded body of a request to production's Vault. Inside of the namespace, too.

    Raises:
        OSError: nobody answers.
    """
    connection = http.client.HTTPConnection(ADDRESSES["vault"], 8200, timeout=10)
    with contextlib.closing(connection):
        headers = {"X-Vault-Token": token} if token else {}
        try:
            connection.request(method, path, body=json.dumps(body) if body is not None else None, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error}") from error
        return answer.status, json.loads(data) if data else None


def _http(name: str, port: int, path: str, *, wanted: tuple[int, ...] = (200,)) -> str:
    connection = http.client.HTTPConnection(ADDRESSES[name], port, timeout=_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    return "" if answer.status in wanted else f"{answer.status} {body[:300].decode(errors='replace')}"


def _tables() -> str:
    """A start-up message is answered by a demand for a password only when connections are accepted."""
    words = b"user\0gbuser\0database\0botserver\0\0"
    message = struct.pack("!ii", 8 + len(words), 196608) + words
    with socket.create_connection((ADDRESSES["tables"], 5432), timeout=_SECONDS) as sock:
        sock.sendall(message)
        answer = sock.recv(1024)
    return "" if answer[:1] == b"R" else answer.decode(errors="replace") or "closed the connection"


def _cache() -> str:
    with socket.create_connection((ADDRESSES["cache"], 6379), timeout=_SECONDS) as sock:
        sock.sendall(b"PING\r\n")
        answer = sock.recv(1024).decode(errors="replace")
    return "" if answer.startswith(("+PONG", "-NOAUTH")) else answer or "closed the connection"
