"""What the daemon reports, as frozen records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["About", "CommandResult", "Device", "Instance", "Member", "Network", "Pool", "Project", "Reply", "Server"]

Device = dict[str, str]


class Instance(Struct, frozen=True):
    """An instance: `config` and `devices` are its own, `expanded_*` include its profiles."""

    name: str
    project: str
    status: str
    """`Running`, `Ready` (running, and its guest said so), `Stopped`, `Frozen` or `Error`."""
    location: str
    profiles: tuple[str, ...]
    config: Mapping[str, str]
    devices: Mapping[str, Device]
    expanded_config: Mapping[str, str]
    expanded_devices: Mapping[str, Device]
    created_at: str
    last_used_at: str = ""
    """When it was started last."""
    architecture: str = ""

    @classmethod
    def from_api(cls, data: Mapping[str, Any], project: str) -> Instance:
        return cls(
            name=str(data["name"]),
            project=str(data.get("project") or project),
            status=str(data.get("status", "")),
            location=str(data.get("location", "")),
            profiles=tuple(data.get("profiles") or ()),
            config=data.get("config") or {},
            devices=data.get("devices") or {},
            expanded_config=data.get("expanded_config") or {},
            expanded_devices=data.get("expanded_devices") or {},
            created_at=str(data.get("created_at", "")),
            last_used_at=str(data.get("last_used_at", "")),
            architecture=str(data.get("architecture", "")),
        )

    @property
    def pool(self) -> str:
        """The storage pool of the root disk."""
        for device in self.expanded_devices.values():
            if device.get("type") == "disk" and device.get("path") == "/":
                return device.get("pool", "")
        return ""

    @property
    def is_unknown(self) -> bool:
        """Whether only its name and its place are known, since its member of the cluster is offline."""
        return self.status == "Error" and not self.config

    @property
    def is_running(self) -> bool:
        return self.status in {"Running", "Ready"}


class Network(Struct, frozen=True):
    """A network of the host, managed by Incus or not."""

    name: str
    project: str
    type: str
    managed: bool
    config: Mapping[str, str]
    description: str
    used_by: tuple[str, ...]
    status: str = "Created"

    @property
    def is_half_made(self) -> bool:
        """Whether its making was broken off: the daemon gives up, and takes its bridge away, but not its record, when
        whoever asked for it has gone before the half second that it takes is over (6.0.4, 7.0.2). On a cluster it is
        `Errored` where some member did not make it."""
        return self.managed and self.status in {"Pending", "Errored"}

    @classmethod
    def from_api(cls, data: Mapping[str, Any]) -> Network:
        return cls(
            name=str(data["name"]),
            project=str(data.get("project") or "default"),
            type=str(data.get("type", "")),
            managed=bool(data.get("managed")),
            config=data.get("config") or {},
            description=str(data.get("description", "")),
            used_by=tuple(data.get("used_by") or ()),
            status=str(data.get("status", "")),
        )


class Project(Struct, frozen=True):
    name: str
    description: str
    config: Mapping[str, str]
    used_by: tuple[str, ...]


class Pool(Struct, frozen=True):
    """A storage pool. Sizes are bytes, inside the pool."""

    name: str
    driver: str
    source: str
    """Path of the loop file, block device, dataset or folder that holds it, as the daemon sees it."""
    total: int
    used: int
    config: Mapping[str, str] = field(default_factory=dict)
    used_by: tuple[str, ...] = ()
    """URLs of everything that is on it or names it."""

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)

    @property
    def copy_on_write(self) -> bool:
        """Whether a copy of an instance shares its blocks with the source."""
        return self.driver in {"btrfs", "zfs", "ceph", "lvm", "lvmcluster", "truenas", "linstor"}


class About(Struct, frozen=True):
    """What a request is about: the segments of its path, and its parameters."""

    path: Sequence[str] = ()
    params: Mapping[str, str | int] = {}


class Reply(Struct, frozen=True):
    """An answer of the daemon."""

    metadata: Any
    """The decoded `metadata`, or the raw bytes of a body that is not JSON."""
    etag: str
    headers: Mapping[str, str]
    operation: str = ""
    """Path of the background operation, when the daemon started one."""
    about: About = field(default_factory=About)
    """Of the request that this answers."""

    @classmethod
    def of(cls, response: Any, about: About) -> Reply:
        """Read what `requests` got."""
        etag = str(response.headers.get("ETag", ""))
        try:
            decoded = response.json()
        except ValueError:
            return cls(response.content, etag, response.headers, about=about)
        operation = str(decoded.get("operation") or "") if decoded.get("type") == "async" else ""
        return cls(decoded.get("metadata"), etag, response.headers, operation, about)


class Member(Struct, frozen=True):
    """A member of a cluster."""

    name: str
    status: str
    """`Online`, `Offline`, `Evacuated` or `Blocked`."""
    address: str
    """Where its API listens; it may be a name."""

    @property
    def is_missing(self) -> bool:
        """Whether it does not answer now."""
        return self.status == "Offline"

    @property
    def is_usable(self) -> bool:
        """Whether instances may be made and started on it."""
        return self.status == "Online"


class Server(Struct, frozen=True):
    """What the daemon says of itself (`GET /1.0`)."""

    kind: str
    """`incus` or `lxd`."""
    version: str
    extensions: frozenset[str]
    storage_drivers: str
    clustered: bool
    fingerprint: str
    """SHA-256 of the daemon's certificate: tells one daemon from another. Members of a cluster share one."""
    trusted: bool
    name: str = ""
    """Of the host, or of the cluster member, that answers."""


class CommandResult(Struct, frozen=True):
    """How a command inside a container ended."""

    status: int
    stdout: str
    stderr: str
