"""The requests of a reset to an S3 server, over one connection: it lists, deletes, and aborts uploads.

Requests are signed with signature version 4; every server of S3 knows the operations used here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from pytest_stagegbo import clocks
from pytest_stagegbo.services.answer import Answer, NoAnswer
from pytest_stagegbo.services.plain_http import ServiceConnection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

__all__ = ["Buckets"]

REGION = "us-east-1"
MOST_KEYS = 1000
"""In one request to delete, by S3's rules."""


class Buckets:
    """A connection to an S3 server, for a `with` block. Methods raise `NoAnswer` when it does not answer, or refuses.

    Args:
        timeout: Seconds for one answer.
    """

    def __init__(
        self, host: str, port: int, timeout: float, access_key: str, secret_key: str, *, tls: bool = False
    ) -> None:
        self._host = f"{host}:{port}"
        self._keys = (access_key, secret_key)
        self._connection = ServiceConnection(host, port, timeout, tls=tls)

    def __enter__(self) -> Buckets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def own_port(self) -> int:
        """From which port the server sees the connection; 0 when there is none."""
        return self._connection.own_port

    def names(self) -> list[str]:
        """Names of all buckets."""
        return _texts(self._call("GET", "/"), "Bucket", "Name")

    def keys(self, bucket: str) -> Iterator[str]:
        """The keys of all objects in a bucket."""
        query = {"list-type": "2"}
        while True:
            document = self._call("GET", f"/{bucket}", query)
            yield from _texts(document, "Contents", "Key")
            more = _texts(document, "", "NextContinuationToken")
            if not more:
                return
            query = {**query, "continuation-token": more[0]}

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        batch = list(keys)
        for begin in range(0, len(batch), MOST_KEYS):
            objects = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in batch[begin : begin + MOST_KEYS])
            body = f"<Delete><Quiet>true</Quiet>{objects}</Delete>".encode()
            answer = self._call("POST", f"/{bucket}", {"delete": ""}, body)
            failed = _texts(answer, "Error", "Key")
            if failed:
                raise NoAnswer(Answer("wrong", f"{len(failed)} objects of {bucket} were not deleted"))

    def abort_uploads(self, bucket: str) -> None:
        """Abort uploads of several parts that were begun and not completed."""
        document = self._call("GET", f"/{bucket}", {"uploads": ""}, accepted=(404,))  # rclone: there are none
        ids = zip(_texts(document, "Upload", "Key"), _texts(document, "Upload", "UploadId"), strict=False)
        for key, upload in ids:
            self._call("DELETE", f"/{bucket}/{key}", {"uploadId": upload}, accepted=(404,))

    def remove(self, bucket: str) -> None:
        """Remove an empty bucket. It is no error if the bucket is gone."""
        self._call("DELETE", f"/{bucket}", accepted=(404,))

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        accepted: tuple[int, ...] = (),
    ) -> bytes:
        path = quote(path, safe="/-_.~")
        pairs = sorted((query or {}).items())
        arguments = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs)
        headers = self._signed(method, path, arguments, body)
        try:
            self._connection.request(method, f"{path}?{arguments}" if arguments else path, body or None, headers)
            answer = self._connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise NoAnswer(Answer("unreachable", f"S3 {method}: {reason}")) from None
        if answer.status >= 300 and answer.status not in accepted:
            code = next(iter(_texts(data, "", "Code")), "")
            raise NoAnswer(Answer("wrong", f"S3 {method} of {path.partition('?')[0]}: HTTP {answer.status} {code}"))
        return data

    def _signed(self, method: str, path: str, arguments: str, body: bytes) -> dict[str, str]:
        """Return the headers of a request, with its signature."""
        access, secret = self._keys
        stamp = clocks.utc_text("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": self._host, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        if body:
            headers["content-md5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
        request = hashlib.sha256("\n".join((method, path, arguments, lines, names, digest)).encode()).hexdigest()
        key = b"AWS4" + secret.encode()
        for part in (stamp[:8], REGION, "s3", "aws4_request", f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{request}"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        credential = f"Credential={access}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {credential}"}


def _texts(document: bytes, parent: str, tag: str) -> list[str]:
    """Return the texts of all elements `tag` directly in a `parent` (or anywhere), in any namespace."""
    if not document:
        return []
    with contextlib.suppress(ElementTree.ParseError):
        root = ElementTree.fromstring(document)
        within = [root] if not parent else [each for each in root.iter() if each.tag.rpartition("}")[2] == parent]
        found = [child for each in within for child in (each if parent else each.iter())]
        return [child.text or "" for child in found if child.tag.rpartition("}")[2] == tag]
    raise NoAnswer(Answer("wrong", "S3 answered with what is no XML"))
