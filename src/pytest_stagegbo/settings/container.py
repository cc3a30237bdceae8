"""What can be set of one container, and the six containers of a General Bots production."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 (the keys are read off the resolved annotations)
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Literal

from msgspec import Struct, field

__all__ = ["Boot", "ContainerSettings", "ProbeSettings", "Protocol", "Reset", "default_containers"]

Protocol = Literal["postgresql", "valkey", "vault", "s3", "http", "tcp"]
Boot = Literal["units", "full"]
Reset = Literal["hot", "restart", "restore"]


class ProbeSettings(Struct, frozen=True):
    """A question that a ready service answers in its own protocol."""

    protocol: Protocol
    """Protocol in which the probe asks. `tcp` only checks that the port is open."""
    port: int
    """Port that the probe connects to, from 1 to 65535."""
    path: str = ""
    """For `http` only: the page that answers 200 when the service is ready."""
    tls: bool = False
    """Whether the service speaks TLS. Its certificate is not checked, because it has production's names and a private
    authority."""


class ContainerSettings(Struct, frozen=True):
    """One container of production and its clone in the stage."""

    name: str
    """Name of the container in the stage."""
    address: IPv4Address
    """Address on the stage's subnet. The addresses of the default containers follow `network.address`."""
    production_address: IPv4Address | None = None
    """Address of the source on production's subnet. The addresses of the default containers follow
    `network.production`."""
    source: str = ""
    """Name of the container in the source project. If empty, it has the same name there."""
    units: tuple[str, ...] = ()
    """systemd services that the container exists for. A unit that the container does not have is ignored, but a
    container with a probe must have at least one of its units."""
    wipe: tuple[str, ...] = ()
    """Folders that are emptied, hidden files included. The folders themselves stay, with their owners and modes."""
    logs: tuple[str, ...] = ("/opt/gbo/logs",)
    """Folders below which all files are deleted. Folders below them stay, with their owners and modes."""
    system_logs: bool = True
    """Whether production's system logs are removed, too: files below `/var/log` are emptied, and journals are
    deleted."""
    probes: tuple[ProbeSettings, ...] = ()
    """Probes that must be answered before the container counts as ready."""
    needs: tuple[str, ...] = ()
    """Containers whose services must answer before the services of this container start."""
    writes_to: tuple[str, ...] = ()
    """Containers whose data this container may change by itself. It is frozen while a quiet test uses one of them."""
    hooks: tuple[str, ...] = ()
    """Files of your own that run in each new clone, while it has no network and nothing else uses it. psql runs `.sql`
    files as the superuser. Anything else runs as a program, as root. Paths are relative to the settings file."""
    database: str = "botserver"
    """Database that `.sql` hooks run in."""
    reset: Reset = "restart"
    """Method of a reset. `hot`: the data is removed while the service runs, if that leaves the same as a restart;
    otherwise the service is restarted. This works for Valkey, S3 and HTTP, and for PostgreSQL with `data`. `restart`:
    the service is stopped, the folders in `wipe` are emptied, and the service is started. `restore`: the clone returns
    to its snapshot from before its first boot. Provisioning takes that snapshot for `restore`, and for `hot` with
    `data`."""
    data: str = ""
    """Data folder of a PostgreSQL cluster. The first boot keeps a copy of it for hot resets, if the file system shares
    blocks between copies."""
    state: tuple[str, ...] = ()
    """Folders whose content a capsule keeps, beside those in `data` and `wipe`."""
    boot: Boot = "units"
    """`units`: only `units` and what they require start, so no cron job, timer or mail queue of production runs in the
    clone. `full`: after the first boot, everything starts that starts in production."""
    disk_limit: str = ""
    """Size of this clone's root disk. If empty, it is the stage's `disk_limit`."""
    deploy: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Path, in the container, of a file that `stagegbo deploy` replaces, under a name of your choice."""
    held: bool = False
    """Not a setting: the container is one of an opened capsule. Its services don't start before they are asked for."""

    @property
    def resettable(self) -> bool:
        """Whether a reset that names it has something to do."""
        return bool(self.wipe) or self.may_restore or (self.held and self.reset == "hot" and bool(self.data))

    @property
    def may_restore(self) -> bool:
        """Whether a reset may go back to a snapshot: provisioning takes one then."""
        return not self.held and (self.reset == "restore" or (self.reset == "hot" and bool(self.data)))

    @property
    def source_name(self) -> str:
        return self.source or self.name


def default_containers() -> Mapping[str, ContainerSettings]:
    """The six containers of a General Bots production, keyed by their name in the stage."""

    def stage(last: int) -> IPv4Address:
        return IPv4Address(f"10.0.3.{last}")

    def production(last: int) -> IPv4Address:
        return IPv4Address(f"10.0.2.{last}")

    containers = (
        ContainerSettings(
            "system",
            stage(10),
            production(10),
            units=("botserver.service", "botui.service"),
            wipe=("/opt/gbo/work",),
            probes=(ProbeSettings("http", 5858, "/health"), ProbeSettings("http", 5859, "/health")),
            needs=("tables", "vault", "cache", "drive", "llm"),
            writes_to=("tables", "cache", "drive"),
            reset="hot",
            deploy=MappingProxyType({"botserver": "/opt/gbo/bin/botserver", "botui": "/opt/gbo/bin/botui"}),
        ),
        ContainerSettings(
            "tables",
            stage(11),
            production(11),
            units=("postgresql.service",),
            probes=(ProbeSettings("postgresql", 5432),),
            reset="hot",
            data="/opt/gbo/data/pgdata",
        ),
        ContainerSettings(
            "vault",
            stage(12),
            production(12),
            units=("vault.service",),
            state=("/opt/gbo/data/vault",),
            probes=(ProbeSettings("vault", 8200),),
            reset="restore",
        ),
        ContainerSettings(
            "cache",
            stage(13),
            production(13),
            units=("valkey.service",),
            wipe=("/opt/gbo/data/valkey",),
            probes=(ProbeSettings("valkey", 6379),),
            reset="hot",
        ),
        ContainerSettings(
            "drive",
            stage(14),
            production(14),
            units=("minio.service", "drive.service"),
            wipe=("/opt/gbo/data/minio",),
            probes=(ProbeSettings("s3", 9100),),
            reset="hot",
        ),
        ContainerSettings(
            "llm",
            stage(15),
            production(15),
            units=("llm.service",),
            probes=(ProbeSettings("http", 8081, "/health"),),
            reset="restore",
        ),
    )
    return MappingProxyType({container.name: container for container in containers})
