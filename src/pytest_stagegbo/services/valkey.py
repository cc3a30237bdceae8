"""The probe for Valkey (and Redis): `PING`, without a password.

A server that asks for a password answers `-NOAUTH`, which counts as ready: it is up and judges commands. It says so
while it still loads its data too, for it checks the password first; whether they are loaded, only somebody with the
password could ask. A server without one says `-LOADING` until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.services.answer import Answer, State, answering, excerpt
from pytest_stagegbo.services.wire import Conversation

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["ask"]

_PING = b"*1\r\n$4\r\nPING\r\n"
_ERRORS: dict[bytes, State] = {
    b"NOAUTH": "ready",
    b"NOPERM": "ready",
    b"LOADING": "starting",
    b"BUSY": "starting",
    b"MASTERDOWN": "starting",
    b"TRYAGAIN": "starting",
    b"CLUSTERDOWN": "starting",
    b"MISCONF": "wrong",  # up, and refuses writes since it can't save to its disk
    b"DENIED": "wrong",  # protected mode: for its own machine only
}


@answering
def ask(probe: ProbeSettings, host: str, timeout: float) -> Answer:
    with Conversation(host, probe.port, timeout, tls=probe.tls) as conversation:
        conversation.send(_PING)
        line = conversation.receive_line()
    text = excerpt(line)
    if line == b"+PONG":
        return Answer("ready", text)
    if line.startswith(b"-ERR max number of clients"):
        return Answer("starting", text)
    if line.startswith(b"-"):
        return Answer(_ERRORS.get(line[1:].partition(b" ")[0], "wrong"), text)
    return Answer("wrong", f"not Valkey: {text}")
