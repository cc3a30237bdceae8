"""What was found out about a production, as frozen records. No secret is in them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Network, Pool
    from pytest_stagegbo.incus.hostnet import HostNetwork
    from pytest_stagegbo.settings.model import Protocol

__all__ = ["DEFAULT_FOLDERS", "Conclusion", "Environment", "Service", "Sight", "Source", "Sureness", "Survey"]

Sight = Literal["running", "files", "names"]
"""How far could be looked into a container.

`running`: its sockets, processes and files. `files`: its files alone, since it does not run. `names`: what the daemon's
API says without an event, which is names and addresses.
"""
Sureness = Literal["seen", "likely", "unsure"]
"""`seen`: production shows it now. `likely`: from a file, a name, or the default of such a program. `unsure`: a guess
that a person has to look at.
"""

DEFAULT_FOLDERS = ("/opt/gbo/work", "/opt/gbo/data/valkey", "/opt/gbo/data/minio")
"""Those that a stage empties by default."""


class Service(Struct, frozen=True):
    """What one program offers to others."""

    protocol: Protocol
    port: int
    program: str
    """`postgres`, `minio`, ...: what its process or its unit runs."""
    unit: str
    """The systemd service; empty: none was found."""
    why: str
    """What says so, for people."""
    tls: bool = False
    path: str = ""
    """For `http`: its health page."""
    data: str = ""
    """The folder that it keeps its data in; empty: unknown."""
    executable: str = ""
    """Path of the program itself, where its unit names it."""
    logs: tuple[str, ...] = ()
    """Folders of files that its unit writes its output to."""
    requires: tuple[str, ...] = ()
    """Units that its unit can't be without."""
    sure: Sureness = "seen"


class Environment(Struct, frozen=True):
    """A file from which BotServer reads where Vault is; without the token in it."""

    path: str
    vault: str
    """`VAULT_ADDR`"""
    port: int
    """`PORT`; 0: not in it."""
    work: str
    """`WORK_DIR`"""


class Source(Struct, frozen=True):
    """One container of production."""

    project: str
    name: str
    status: str
    pool: str
    addresses: tuple[IPv4Interface, ...]
    sight: Sight
    services: tuple[Service, ...] = ()
    connections: frozenset[tuple[IPv4Address, int]] = frozenset()
    """Addresses and ports that it has open connections to."""
    environment: Environment | None = None
    folders: frozenset[str] = frozenset()
    """Those of `DEFAULT_FOLDERS` that it has."""
    used: int = 0
    """Bytes of its root disk in use; 0: unknown."""
    blind: str = ""
    """Why no more could be seen."""

    @property
    def is_running(self) -> bool:
        return self.status in {"Running", "Ready"}


class Conclusion(Struct, frozen=True):
    """One setting, and why."""

    key: str
    """Dotted, as in `docs/settings.md`."""
    value: Any
    why: str
    sure: Sureness = "seen"


class Survey(Struct, frozen=True):
    """A daemon, looked at once."""

    projects: Mapping[str, tuple[Source, ...]]
    """Containers by project. Stages, their golden copies and leases are left out."""
    networks: Mapping[str, Network]
    host: tuple[HostNetwork, ...]
    """Networks of the daemon's host, as far as they are known."""
    pools: Mapping[str, Pool]
    """Those that containers are on."""
    pool_names: frozenset[str] = frozenset()
    """Of all pools."""
    stages: Mapping[str, tuple[str, str]] = {}
    """By project, the bridge of each stage that is there, and its address; empty: it has none."""
    foreign: frozenset[str] = frozenset()
    """Names of all projects that are no stage."""

    def taken(self, bridge: str) -> frozenset[IPv4Network]:
        """Networks that the stage's subnet must keep away from.

        Args:
            bridge: The stage's own.
        """
        found = {each.network for each in self.host if each.interface != bridge}
        for network in self.networks.values():
            address = network.config.get("ipv4.address", "")
            if network.name != bridge and "/" in address:
                found.add(IPv4Interface(address).network)
        return frozenset(found)
