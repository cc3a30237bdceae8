"""Asks a service whether it is ready, by the probe of its protocol."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_stagegbo.services import http, postgresql, s3, tcp, valkey, vault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.services.answer import Answer, Probe
    from pytest_stagegbo.settings.model import ProbeSettings, Protocol

__all__ = ["PROBES", "ask"]

PROBES: Mapping[Protocol, Probe] = MappingProxyType(
    {
        "postgresql": postgresql.ask,
        "valkey": valkey.ask,
        "vault": vault.ask,
        "s3": s3.ask,
        "http": http.ask,
        "tcp": tcp.ask,
    }
)


def ask(probe: ProbeSettings, host: str, timeout: float = 1.0) -> Answer:
    """Ask the service at `host` once, and say what it answered within `timeout` seconds.

    Never raises for what a network or a service does.
    """
    return PROBES[probe.protocol](probe, host, timeout)
