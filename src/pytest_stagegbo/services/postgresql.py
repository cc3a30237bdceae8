"""The probe for PostgreSQL: it opens a session, up to where the server says whether it accepts one.

What is left in the server's log depends on what it answers:

- It asks for a password (`scram-sha-256`, `md5`): nothing. The connection is closed without a reply, which
  the server takes for a person who thought better of it. A `Terminate` here would be logged as an error.
- It lets everybody in (`trust`): nothing. The session is ended with `Terminate`. The names are those that every
  cluster has, for a role that doesn't exist would be logged.
- It takes no connection from this address, or is starting or stopping: one `FATAL` line per question, which no
  client can avoid. `is_noise` knows the lines of the latter two, so that they don't crowd out others.
"""

from __future__ import annotations

import contextlib
import re
import struct
from typing import TYPE_CHECKING

from pytest_stagegbo.services.answer import Answer, NoAnswer, answering, excerpt
from pytest_stagegbo.services.wire import Conversation

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["ask", "is_noise"]

_PROTOCOL_3_0 = 196608
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_TERMINATE = b"X" + struct.pack("!i", 4)
_LONGEST = 30000
"""Bytes of a message before a session is open; libpq draws the same line."""
_ASKS_FOR = {
    2: "Kerberos",
    3: "a password",
    5: "a password (MD5)",
    7: "GSSAPI",
    9: "SSPI",
    10: "a password (SCRAM)",
}
_NOISE = re.compile(
    r"FATAL:\s+the database system is "
    r"(starting up|shutting down|in recovery mode|not yet accepting connections|not accepting connections)"
    r"|DETAIL:\s+(Consistent recovery state has not been yet reached|Hot standby mode is disabled)"
)


def is_noise(line: str) -> bool:
    """Whether a line of the server's log is there because somebody asked too early, this probe for example."""
    return bool(_NOISE.search(line))


@answering
def ask(probe: ProbeSettings, host: str, timeout: float) -> Answer:
    with Conversation(host, probe.port, timeout) as conversation:
        if probe.tls:
            conversation.send(_SSL_REQUEST)
            offer = conversation.receive_exactly(1)
            if offer == b"N":
                return Answer("wrong", "speaks no TLS")
            if offer != b"S":
                return Answer("wrong", f"not PostgreSQL: {excerpt(offer + conversation.receive(200))}")
            conversation.start_tls()
        conversation.send(_startup(user="postgres", database="postgres", application_name="pytest-stagegbo"))
        return _verdict(conversation)


def _startup(**parameters: str) -> bytes:
    body = struct.pack("!i", _PROTOCOL_3_0)
    for name, value in parameters.items():
        body += name.encode() + b"\0" + value.encode() + b"\0"
    body += b"\0"
    return struct.pack("!i", len(body) + 4) + body


def _verdict(conversation: Conversation) -> Answer:
    while True:
        kind, body = _message(conversation)
        if kind == b"R" and len(body) >= 4:
            (method,) = struct.unpack_from("!i", body)
            if method != 0:
                return Answer("ready", f"asks for {_ASKS_FOR.get(method, f'authentication {method}')}")
        elif kind == b"Z":
            conversation.send(_TERMINATE)
            return Answer("ready", "opens a session")
        elif kind == b"E":
            return _refusal(_fields(body))


def _message(conversation: Conversation) -> tuple[bytes, bytes]:
    head = conversation.receive_exactly(1)
    if head not in b"REZSKNv":
        raise NoAnswer(Answer("wrong", f"not PostgreSQL: {_rest(conversation, head)}"))
    size = conversation.receive_exactly(4)
    (length,) = struct.unpack("!i", size)
    if 4 <= length <= _LONGEST:
        return head, conversation.receive_exactly(length - 4)
    if head == b"E":
        # A postmaster that can't make a process says so in the protocol's oldest form, a bare text.
        raise NoAnswer(Answer("starting", f"no process for the connection: {_rest(conversation, size)}"))
    raise NoAnswer(Answer("wrong", f"not PostgreSQL: {_rest(conversation, head + size)}"))


def _rest(conversation: Conversation, data: bytes) -> str:
    with contextlib.suppress(NoAnswer):
        data += conversation.receive(200)
    return excerpt(data)


def _fields(body: bytes) -> dict[str, str]:
    return {part[:1].decode("latin-1"): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}


def _refusal(fields: dict[str, str]) -> Answer:
    code = fields.get("C", "")
    text = excerpt(f"{code} {fields.get('M', '')}".strip().encode())
    # 28: not this role, not from this address. 3D: no such database. Both come from a server at work.
    if code.startswith(("28", "3D")):
        return Answer("ready", text)
    # 57P01 to 57P03: stopping, crashed, starting. 53: out of connections or memory, for now.
    if code.startswith(("57P0", "53")):
        return Answer("starting", text)
    return Answer("wrong", text)
