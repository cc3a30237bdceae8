"""Where the services of a stage answer: a pure function of its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.settings.model import ContainerSettings, ProbeSettings, Settings

__all__ = ["Endpoint", "endpoint_variables", "endpoints"]

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


def endpoint_variables(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """A container, and the name and value of an environment variable: `STAGEGBO_ENDPOINT_TABLES_HOST`, `_PORT`, `_URL`;
    `STAGEGBO_ENDPOINT_SYSTEM_2_HOST` for its second endpoint."""
    seen: dict[str, int] = {}
    for endpoint in endpoints(settings):
        name = endpoint.container
        seen[name] = seen.get(name, 0) + 1
        number = "" if seen[name] == 1 else f"_{seen[name]}"
        prefix = f"STAGEGBO_ENDPOINT_{name.upper().replace('-', '_')}{number}"
        yield name, f"{prefix}_HOST", endpoint.host
        yield name, f"{prefix}_PORT", str(endpoint.port)
        yield name, f"{prefix}_URL", endpoint.url


def _endpoint(container: ContainerSettings, probe: ProbeSettings) -> Endpoint:
    scheme = SCHEMES[probe.protocol] + ("s" if probe.tls and probe.protocol in {"http", "vault", "s3"} else "")
    host = str(container.address)
    return Endpoint(container.name, probe.protocol, host, probe.port, f"{scheme}://{host}:{probe.port}")
