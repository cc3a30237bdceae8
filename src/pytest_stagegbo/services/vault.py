"""Vault and OpenBao: `/v1/sys/health`.

Unsealed is not ready: with Raft storage a node takes seconds to become the active one, and until then it calls
itself a standby and fails every request. So a standby is ready only if it knows an active node.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.services.answer import Answer, answering, excerpt
from pytest_stagegbo.services.webrequest import Reply, request

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["ask", "document"]

# Both kinds of standby are made 200, so that any other status is a reason not to be ready.
_HEALTH = "/v1/sys/health?standbyok=true&perfstandbyok=true"


@answering
def ask(probe: ProbeSettings, host: str, timeout: float) -> Answer:
    ends = time.monotonic() + timeout
    reply = request(host, probe.port, _HEALTH, timeout, tls=probe.tls)
    health = document(reply)
    if not isinstance(health.get("sealed"), bool) or not isinstance(health.get("initialized"), bool):
        return Answer("wrong", f"not Vault's health: {reply}")
    if not health["initialized"]:
        return Answer("wrong", f"HTTP {reply.status} not initialised: this Vault has never had a key")
    if health["sealed"]:
        return Answer("sealed", f"HTTP {reply.status} sealed")
    version = excerpt(str(health.get("version", "?")).encode(), 40)
    if reply.status in {429, 473} or (reply.status == 200 and health.get("standby")):
        left = max(0.001, ends - time.monotonic())
        leader = document(request(host, probe.port, "/v1/sys/leader", left, tls=probe.tls))
        if not leader.get("leader_address"):
            return Answer("starting", f"HTTP {reply.status} unsealed, and no node is active yet")
        active = excerpt(str(leader["leader_address"]).encode(), 80)
        return Answer("ready", f"HTTP {reply.status} standby of {active}, version {version}")
    if reply.status == 200:
        return Answer("ready", f"HTTP 200 active, version {version}")
    if reply.status == 472:
        return Answer("wrong", "HTTP 472 a disaster recovery secondary, which serves no requests")
    return Answer("starting" if reply.status >= 500 else "wrong", str(reply))


def document(reply: Reply) -> dict[str, Any]:
    """The JSON object of an answer; empty if it has none."""
    try:
        found = json.loads(reply.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
