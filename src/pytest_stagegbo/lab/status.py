"""What is known of a lab at one moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["LabStatus"]


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab, seen from outside. Holds no secrets, only the paths of the files that do."""

    name: str
    running: bool
    """The daemon answers."""
    ready: bool
    """All of production's services work."""
    incus_version: str
    """Exact version of the running daemon; the version line (`6.0`) when the lab is down."""
    socket: str
    """Unix socket of the API; a client outside of the namespaces may use it."""
    netns: str
    """Name of the network namespace, as `ip netns` knows it."""
    netns_file: str
    state_dir: str
    lab_dir: str
    pid: int | None
    """The process that all of the lab ends with."""
    vault_init: str
    """File with Vault's unseal keys."""
    credentials: str
    """File with the users and passwords of production's services."""
    production: dict[str, str] = field(default_factory=dict)
    """State of each container of production."""
    services: dict[str, str] = field(default_factory=dict)
    """`ok` or what is wrong, for each container of production."""
    pools: dict[str, str] = field(default_factory=dict)
    """Kind of the quotas of each pool: `simple`, `ordinary`, or `off` before the first limit on it."""

    members: dict[str, str] = field(default_factory=dict)
    """By member of the cluster: `online`, `offline`, `stopped`, `starting`, `cut` (off from the others) or `absent` (it
    has yet to join). Empty where the lab is no cluster."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
