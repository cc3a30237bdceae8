"""The probe for S3 (MinIO and others): an unsigned request for the list of buckets.

A server that does its work refuses it with an error document of S3 (`AccessDenied`), or lists its buckets when
they are public. MinIO answers 503 `XMinioServerNotInitialized` until it has found its drives. MinIO's own
`/minio/health/live` says less: it answers 200 before the drives are found.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_stagegbo.services.answer import Answer, answering
from pytest_stagegbo.services.webrequest import request

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["ask"]

_CODE = re.compile(rb"<Error\b[^>]*>.*?<Code>([\w.-]{1,80})</Code>(?:.*?<Message>([^<]{0,160})</Message>)?", re.S)
_BUCKETS = re.compile(rb"<ListAllMyBucketsResult\b")


@answering
def ask(probe: ProbeSettings, host: str, timeout: float) -> Answer:
    reply = request(host, probe.port, "/", timeout, tls=probe.tls)
    if reply.status == 200 and _BUCKETS.search(reply.body):
        return Answer("ready", "HTTP 200, lists its buckets")
    found = _CODE.search(reply.body)
    if not found:
        return Answer("wrong", f"not S3: {reply}")
    text = f"HTTP {reply.status} {found[1].decode()} {(found[2] or b'').decode('utf-8', 'replace')}".rstrip()
    if reply.status >= 500:
        return Answer("starting", text)
    # A client's error proves that requests are judged. A redirect, or an error under status 200, proves nothing.
    return Answer("ready" if reply.status >= 400 else "wrong", text)
