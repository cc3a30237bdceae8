"""Tells at which addresses and ports the services of a stage answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_stagegbo.settings.model import ContainerSettings, ProbeSettings, Settings

    Place = Callable[[str, int], tuple[str, int]]

__all__ = ["Endpoint", "endpoint", "endpoint_variables", "endpoints", "in_the_stage"]

SCHEMES = {"postgresql": "postgresql", "valkey": "redis", "vault": "http", "s3": "http", "http": "http", "tcp": "tcp"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address, port and URL of a service of the stage, without credentials."""

    container: str
    protocol: str
    host: str
    port: int
    url: str


def in_the_stage(host: str, port: int) -> tuple[str, int]:
    """An endpoint's own place, on the stage's network."""
    return host, port


def endpoints(settings: Settings, place: Place = in_the_stage) -> tuple[Endpoint, ...]:
    """Every endpoint that the settings describe, whether it answers or not.

    Args:
        place: Tells where programs of this machine find an address and a port of the stage.
    """
    return tuple(
        endpoint(container, probe, place) for container in settings.containers.values() for probe in container.probes
    )


def endpoint_variables(found: Iterable[Endpoint]) -> Iterator[tuple[str, str, str]]:
    """A container, and the name and value of an environment variable: `STAGEGBO_ENDPOINT_TABLES_HOST`, `_PORT`, `_URL`;
    `STAGEGBO_ENDPOINT_SYSTEM_2_HOST` for its second endpoint."""
    seen: dict[str, int] = {}
    for each in found:
        name = each.container
        seen[name] = seen.get(name, 0) + 1
        number = "" if seen[name] == 1 else f"_{seen[name]}"
        prefix = f"STAGEGBO_ENDPOINT_{name.upper().replace('-', '_')}{number}"
        yield name, f"{prefix}_HOST", each.host
        yield name, f"{prefix}_PORT", str(each.port)
        yield name, f"{prefix}_URL", each.url


def endpoint(container: ContainerSettings, probe: ProbeSettings, place: Place) -> Endpoint:
    """Where one probe of a container is found by whoever has `place` look."""
    scheme = SCHEMES[probe.protocol] + ("s" if probe.tls and probe.protocol in {"http", "vault", "s3"} else "")
    host, port = place(str(container.address), probe.port)
    return Endpoint(container.name, probe.protocol, host, port, f"{scheme}://{host}:{port}")
