"""Where the services of a stage answer: a pure function of its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_stagegbo.settings.model import ContainerSettings, ProbeSettings, Settings

__all__ = ["Endpoint", "endpoints"]

SCHEMES = {"postgresql": "postgresql", "valkey": "redis", "vault": "http", "s3": "http", "http": "http", "tcp": "tcp"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service of the stage answers. Carries no credentials."""

    container: str
    protocol: str
    host: str
    port: int
    url: str


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """Every endpoint that the settings describe, whether it answers or not."""
    return tuple(
        _endpoint(container, probe) for container in settings.containers.values() for probe in container.probes
    )


def _endpoint(container: ContainerSettings, probe: ProbeSettings) -> Endpoint:
    scheme = SCHEMES[probe.protocol] + ("s" if probe.tls and probe.protocol in {"http", "vault", "s3"} else "")
    host = str(container.address)
    return Endpoint(container.name, probe.protocol, host, probe.port, f"{scheme}://{host}:{probe.port}")
