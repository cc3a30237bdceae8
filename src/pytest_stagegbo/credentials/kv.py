"""Vault's key-value store, version 2.

The token is a secret: no error passes through a frame that holds it. Functions that do return what went wrong.
"""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from msgspec import Struct

from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.services.plain_http import ServiceConnection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Failure", "KeyValue"]

SECONDS = 5.0
"""For one answer of Vault."""
LARGEST_ANSWER = 4 * 1024 * 1024


class Failure(Struct, frozen=True):
    """Vault did not give what was asked for."""

    status: int
    """HTTP status; 0: no answer."""
    text: str
    """What was seen, without secrets."""


class KeyValue:
    """One key-value store. No request at construction.

    Args:
        path: Mount and folder: `secret/gbo`.
    """

    __slots__ = ("_address", "_folder", "_mount", "_tls", "_token")

    def __init__(self, host: str, port: int, token: str, path: str, *, tls: bool = False) -> None:
        self._address = (host, port)
        self._token = token
        self._mount, _, self._folder = path.strip("/").partition("/")
        self._tls = tls

    def read(self, name: str) -> Mapping[str, Any] | Failure | None:
        """The newest version of a secret; None when there is none, or it was deleted."""
        found = self._get(self._path("data", name))
        if isinstance(found, Failure):
            return None if found.status == 404 else found
        data = found.get("data")
        content = data.get("data") if isinstance(data, dict) else None
        return content if isinstance(content, dict) else None

    def newest(self, name: str) -> tuple[Mapping[str, Any], int] | Failure | None:
        """The newest version of a secret, and its number; None as for `read`."""
        found = self._get(self._path("data", name))
        if isinstance(found, Failure):
            return None if found.status == 404 else found
        data = found.get("data")
        content = data.get("data") if isinstance(data, dict) else None
        version = (data.get("metadata") or {}).get("version") if isinstance(data, dict) else None
        return (content, version) if isinstance(content, dict) and isinstance(version, int) else None

    def write(self, name: str, content: Mapping[str, Any], version: int) -> Failure | None:
        """A new version, unless the newest is not `version` any more: then the status is 400."""
        body = {"data": dict(content), "options": {"cas": version}}
        found = self._get(self._path("data", name), "POST", body)
        return found if isinstance(found, Failure) else None

    def versions(self, name: str) -> dict[int, bool] | Failure:
        """Numbers of a secret's versions, and whether each was destroyed."""
        found = self._get(self._path("metadata", name))
        if isinstance(found, Failure):
            return found
        data = found.get("data")
        known = data.get("versions") if isinstance(data, dict) else None
        return {int(number): bool(each.get("destroyed")) for number, each in (known or {}).items()}

    def destroy(self, name: str, versions: Sequence[int]) -> Failure | None:
        """Take the content of versions away for good."""
        found = self._get(self._path("destroy", name), "POST", {"versions": list(versions)})
        return found if isinstance(found, Failure) else None

    def names(self, folder: str = "") -> list[str] | Failure:
        """What is directly in a folder; names of folders end with `/`. Empty when there is no such folder."""
        found = self._get(self._path("metadata", folder) + "?list=true")
        if isinstance(found, Failure):
            return [] if found.status == 404 else found
        data = found.get("data")
        keys = data.get("keys") if isinstance(data, dict) else None
        return [str(key) for key in keys] if isinstance(keys, list) else []

    def _path(self, kind: str, name: str) -> str:
        parts = [self._mount, kind, *filter(None, (*self._folder.split("/"), *name.split("/")))]
        return "/v1/" + "/".join(quote(part, safe="") for part in parts)

    def _get(self, path: str, method: str = "GET", content: object = None) -> dict[str, Any] | Failure:
        answer = self._ask(path, method, None if content is None else json.dumps(content).encode())
        if isinstance(answer, Failure):
            return answer
        status, body = answer
        if status == 204:
            return {}
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            return Failure(status if status != 200 else 0, f"HTTP {status} without a JSON object")
        if status == 200:
            return document
        errors = document.get("errors")
        text = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
        return Failure(status, f"HTTP {status} {mask(' '.join(text.split()))[:300]}".rstrip())

    def _ask(self, path: str, method: str, content: bytes | None) -> tuple[int, bytes] | Failure:
        """Straight to Vault: http.client knows neither proxies nor redirects."""
        host, port = self._address
        connection = ServiceConnection(host, port, SECONDS, tls=self._tls)
        try:
            connection.request(method, path, content, headers={"X-Vault-Token": self._token, "X-Vault-Request": "true"})
            answer = connection.getresponse()
            return answer.status, answer.read(LARGEST_ANSWER)
        except OSError as error:
            return Failure(0, " ".join(str(error.strerror or type(error).__name__).split()).lower())
        except (http.client.HTTPException, ValueError) as error:
            return Failure(0, type(error).__name__)  # its words may quote the token
        finally:
            connection.close()
