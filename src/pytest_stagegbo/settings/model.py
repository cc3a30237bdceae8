"""What can be set, with the defaults of a General Bots production.

The defaults of the containers (names, addresses, units, ports, paths) are those of General Bots' public
operations documents and of its staging guide.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 (the keys are read off the resolved annotations)
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct, field

__all__ = [
    "Access",
    "Boot",
    "ContainerSettings",
    "ExposeSettings",
    "IncusSettings",
    "NetworkSettings",
    "ProbeSettings",
    "Protocol",
    "Provision",
    "PytestSettings",
    "Reset",
    "Settings",
    "SlotSettings",
    "StorageSettings",
    "TimeoutSettings",
    "VaultSettings",
    "default_containers",
]

Protocol = Literal["postgresql", "valkey", "vault", "s3", "http", "tcp"]
Boot = Literal["units", "full"]
Provision = Literal["auto", "never", "recreate"]
Access = Literal["refuse", "allow"]
Reset = Literal["hot", "restart", "restore"]


class IncusSettings(Struct, frozen=True):
    """How to reach the daemon."""

    endpoint: str = ""
    """Path of a Unix socket or an `https://` address. Empty: `$INCUS_SOCKET`, then the usual places."""
    client_cert: str = ""
    """Path of the client certificate (PEM) for an `https://` endpoint."""
    client_key: str = ""
    """Path of the client key (PEM)."""
    server_cert: str = ""
    """Path of the certificate (PEM) that the server must present."""


class NetworkSettings(Struct, frozen=True):
    """The stage's bridge, and the network of production that it must keep away from."""

    name: str = "stagebr0"
    """Name of the bridge. The host sees it as a network interface: at most 15 characters."""
    address: IPv4Interface = IPv4Interface("10.0.3.1/24")
    """The host's own address on the stage's bridge, which makes the subnet."""
    nat: bool = True
    """Masquerade what the stage sends to other networks (the staging guide asks for a NAT network)."""
    internet: bool = False
    """Let the stage reach addresses that are not private. Closed by default: a cloned BotServer sends mail."""
    twins: bool = True
    """Inside the stage, production's addresses belong to the clones, so that unchanged configuration works."""
    production: IPv4Network = IPv4Network("10.0.2.0/24")
    """Production's subnet."""

    @property
    def subnet(self) -> IPv4Network:
        return self.address.network


class VaultSettings(Struct, frozen=True):
    """Where the unseal keys of Vault come from (at most one is set; none: Vault stays sealed), and how its secrets are
    read."""

    unseal_file: str = ""
    """Path of an `init.json` as `vault operator init -format=json` prints it, or one key a line."""
    unseal_env: str = ""
    """Name of an environment variable that holds the keys, separated by white space or commas."""
    unseal_command: tuple[str, ...] = ()
    """A command that prints either of these forms."""
    token_env: str = ""
    """Name of an environment variable that holds the token to read the stage's credentials with."""
    token_file: str = ""
    """Path of a file that holds the token. Neither: the `VAULT_TOKEN` of `env_file`."""
    kv_path: str = "secret/gbo"
    """Mount of a KV store, version 2, and the folder in it with a secret for each container."""
    env_container: str = "system"
    """The clone whose `env_file` is read."""
    env_file: str = "/opt/gbo/bin/.env"
    """Path, inside that clone, of the file that BotServer has its token from."""


class TimeoutSettings(Struct, frozen=True):
    """How long to wait for what."""

    ready: float = 120.0
    """Seconds for a service to answer in its own protocol, counted from its container's start."""
    lock: float = 900.0
    """Seconds for another process to let go of the stage."""
    operation: float = 600.0
    """Seconds for one Incus operation (a full copy on a pool without copy-on-write takes long)."""


class PytestSettings(Struct, frozen=True):
    """What a pytest session does with the stage."""

    provision: Provision = "auto"
    """`auto`: provision what is missing. `never`: fail when something is. `recreate`: copy production again, once a
    session; with `storage.pool`, copy the golden copy on that pool again."""
    reset: tuple[str, ...] = ()
    """Containers that are reset before each test that uses them; `all`: those whose data the stage wipes; `none`.
    tables, vault and llm are reset only when they are named."""
    deploy: tuple[str, ...] = ()
    """Builds that every stage of the run gets before its first test: `botserver=FILE`, or `CONTAINER:/PATH=FILE`. Files
    are relative to the settings file; on the command line and in ini, to pytest's root folder."""
    keep: bool = False
    """After a failed test, leave the stage as the test left it: no later reset of what it used."""
    production_access: Access = "refuse"
    """Whether the process of the tests may connect to addresses of production (`network.production`)."""
    quiet: bool = False
    """While a test runs, freeze the containers that it does not ask for and that may write to those it asks for
    (`containers.<name>.writes_to`), as the marker `stage_quiet` does."""
    verify: bool = False
    """Prove the stage's isolation at both ends of a session, as the command `verify` does. Red at the beginning fails
    the tests that need the stage, red at the end fails the session."""


class ExposeSettings(Struct, frozen=True):
    """What `expose` may do."""

    longest: str = "24h"
    """Longest time that a port of the stage may be exposed for: a number and `s`, `m`, `h` or `d`."""


class SlotSettings(Struct, frozen=True):
    """Further stages for workers that run at once, copied from a golden copy of production."""

    count: int | Literal["auto"] = 1
    """How many stages there are, the first included; `auto`: as many as there are workers and as fit."""
    network: str = ""
    """Bridges of the further stages, with `{slot}` for the number. Empty: the stage's bridge, with its number added
    (`stagebr1`)."""
    address: str = ""
    """The host's address on the bridge of slot 1, as `network.address`; further ones are a subnet further each. Empty:
    the subnet after the stage's."""
    golden_address: str = ""
    """Likewise of the golden copy, which is booted once. Empty: a hundred subnets after the stage's."""
    memory: str = "1GiB"
    """What a running stage is counted with. The counts of the kernel hold its file cache too, so it is not measured."""
    memory_floor: str = "1GiB"
    """What must stay available of the host's memory."""
    disk: str = "1GB"
    """What a further stage is counted with on the disk, beyond `disk_floor`."""
    cores: float = 0.5
    """Processor cores that a stage is counted with. 0: they don't count."""
    clean: tuple[str, ...] = ()
    """Containers that are reset, and proven clean, before a slot that a test had for itself goes to the next one.
    Empty: those whose data the stage wipes, and databases that have `data`."""


class StorageSettings(Struct, frozen=True):
    """Where the stage's disks are."""

    pool: str = "auto"
    """Storage pool of the stage, its slots and its golden copy. `auto`: production's. Any other pool gets one full copy
    of production, from which everything else is copied there, so that production's pool is left alone."""
    create: str = ""
    """Size of the pool, such as `20GB`, if provisioning may create it: a btrfs pool in a file of that size, which
    `destroy --pool` removes. Empty: the pool must exist."""

    @property
    def own(self) -> str:
        """The name of the pool that is not production's; empty: there is none."""
        return "" if self.pool == "auto" else self.pool


class ProbeSettings(Struct, frozen=True):
    """A question that a ready service answers in its own protocol."""

    protocol: Protocol
    """What to speak. `tcp` asks for no more than an open port."""
    port: int
    """1 to 65535."""
    path: str = ""
    """For `http` only: answers 200 when ready."""
    tls: bool = False
    """Speak TLS; the certificate is not checked, since its names are production's and its authority private."""


class ContainerSettings(Struct, frozen=True):
    """One container of production and its clone in the stage."""

    name: str
    """In the stage."""
    address: IPv4Address
    """On the stage's subnet. The default containers move along when `network.address` names another subnet."""
    production_address: IPv4Address | None = None
    """The source's address on production's subnet. Those of the default containers move with `network.production`."""
    source: str = ""
    """Name in the source project; empty: the same name."""
    units: tuple[str, ...] = ()
    """systemd services that make up the container's purpose. Units that the container lacks are passed over,
    but one of those with a probe must exist."""
    wipe: tuple[str, ...] = ()
    """Folders that are emptied, dot files included; the folder itself, its owner and its mode stay."""
    logs: tuple[str, ...] = ("/opt/gbo/logs",)
    """Folders whose files are removed and whose folders stay, with owners and modes."""
    system_logs: bool = True
    """Whether production's own system logs are emptied as well: files below `/var/log` stay, with nothing in them, and
    journals are removed."""
    probes: tuple[ProbeSettings, ...] = ()
    """What must answer before the container counts as ready."""
    needs: tuple[str, ...] = ()
    """Containers whose services must answer before this one's are started."""
    writes_to: tuple[str, ...] = ()
    """Containers whose data this one may change by itself: a quiet test that uses one of them has this one frozen."""
    hooks: tuple[str, ...] = ()
    """Files of your own that are run in each new clone before anything else sees it, without a network: `.sql` by psql
    as the superuser, anything else as a program, as root. Paths are relative to the settings file."""
    database: str = "botserver"
    """Database that `.sql` hooks run in."""
    reset: Reset = "restart"
    """How it is made clean. `hot`: while its service runs, where that leaves what a restart would, and otherwise by a
    restart (Valkey, S3, HTTP; PostgreSQL by a copy of `data`). `restart`: the service is stopped, `wipe` emptied, the
    service started. `restore`: back to a snapshot of the clone from before its first boot, which is taken where this is
    the way, or what a hot reset of a database may have to fall back to."""
    data: str = ""
    """Folder of a PostgreSQL cluster. The first boot keeps a copy of it for hot resets, where the file system shares
    blocks between copies."""
    boot: Boot = "units"
    """`units`: only `units` and what they require are started, so that no cron job, timer or mail queue of
    production runs in the clone. `full`: the container's own default target."""
    disk_limit: str = ""
    """Overrides the stage's limit for this container."""
    deploy: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Files of a build that `stagegbo deploy` replaces, by a name of your choice: their paths in the container."""

    @property
    def resettable(self) -> bool:
        """Whether a reset that names it has something to do."""
        return bool(self.wipe) or self.may_restore

    @property
    def may_restore(self) -> bool:
        """Whether a reset may go back to a snapshot: provisioning takes one then."""
        return self.reset == "restore" or (self.reset == "hot" and bool(self.data))

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


class Settings(Struct, frozen=True):
    """Everything that can be set, built once and never changed."""

    source_project: str = "default"
    """Incus project that production lives in."""
    project: str = "STAGE-GBO"
    """Incus project of the stage."""
    disk_limit: str = "10GB"
    """Size of each clone's root disk, in Incus's notation (`10GB`, `512MiB`)."""
    disk_floor: str = "5GB"
    """Provisioning stops before the pool, or the file system under it, has less than this left."""
    disk_floor_share: float = 0.1
    """Part of the pool's size that must stay free as well, 0 to below 1: the larger of the two counts, for
    provisioning, slots and sessions alike."""
    incus: IncusSettings = field(default_factory=IncusSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    vault: VaultSettings = field(default_factory=VaultSettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    pytest: PytestSettings = field(default_factory=PytestSettings)
    expose: ExposeSettings = field(default_factory=ExposeSettings)
    slots: SlotSettings = field(default_factory=SlotSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    containers: Mapping[str, ContainerSettings] = field(default_factory=default_containers)
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """Credentials by container, such as `password_env = "MY_PW"`, over those in Vault. A key that ends with `_env`
    names an environment variable, one that ends with `_file` a file. A value that is written down itself is for
    throwaway passwords only."""
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """Secrets of the stage's Vault that are replaced before anything that reads Vault starts, by their whole path:
    `[secrets."secret/gbo/mail"]` with `password_env = "STAGE_MAIL"`. Keys as for `credentials`; each names a field that
    the secret has."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What is printed: not credentials and secrets, some of which may be written down as they are."""
        shown = (name for name in self.__struct_fields__ if name not in {"credentials", "secrets"})
        return [(name, getattr(self, name)) for name in shown]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    @property
    def vault_probe(self) -> tuple[ContainerSettings, ProbeSettings] | None:
        """The first container that speaks Vault's protocol, and the probe that says where; None: there is no Vault."""
        found = ((each, probe) for each in self.containers.values() for probe in each.probes)
        return next(((each, probe) for each, probe in found if probe.protocol == "vault"), None)
