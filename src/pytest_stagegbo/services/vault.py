"""The probe for Vault and OpenBao: the page `/v1/sys/health`.

Unsealed is not ready: with Raft storage a node first has to elect itself, and calls itself a standby until then.
Nor is a standby that stays one: it hands requests on to the active node of its cluster, which for a clone is a
machine of production. So only the active node is ready, and the text says whom a standby follows.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_stagegbo import clocks
from pytest_stagegbo.services.answer import Answer, answering, excerpt
from pytest_stagegbo.services.webrequest import Reply, request

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["ask", "document"]


@answering
def ask(probe: ProbeSettings, host: str, timeout: float) -> Answer:
    ends = clocks.monotonic() + timeout
    reply = request(host, probe.port, "/v1/sys/health", timeout, tls=probe.tls)
    health = document(reply)
    if not isinstance(health.get("sealed"), bool) or not isinstance(health.get("initialized"), bool):
        return Answer("wrong", f"not Vault's health: {reply}")
    if not health["initialized"]:
        return Answer("wrong", f"HTTP {reply.status} not initialised: this Vault has never had a key")
    if health["sealed"]:
        return Answer("sealed", f"HTTP {reply.status} sealed")
    if health.get("standby") or reply.status in {429, 473}:
        left = max(0.001, ends - clocks.monotonic())
        leader = document(request(host, probe.port, "/v1/sys/leader", left, tls=probe.tls)).get("leader_address")
        follows = f"a standby of {excerpt(str(leader).encode(), 80)}" if leader else "a standby, and no node is active"
        return Answer("starting", f"HTTP {reply.status} unsealed, {follows}")
    if reply.status == 200:
        return Answer("ready", f"HTTP 200 active, version {excerpt(str(health.get('version', '?')).encode(), 40)}")
    if reply.status == 472:
        return Answer("wrong", "HTTP 472 a disaster recovery secondary, which serves no requests")
    return Answer("starting" if reply.status >= 500 else "wrong", str(reply))


def document(reply: Reply) -> dict[str, Any]:
    """Return the JSON object in an answer, or an empty one."""
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
