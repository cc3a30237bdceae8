"""What can be set, with the defaults of a General Bots production.

The defaults of the containers (names, addresses, units, ports, paths) are those of General Bots' public
operations documents and of its staging guide.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 (the keys are read off the resolved annotations)
from ipaddress import IPv4Interface, IPv4Network
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct, field

from pytest_stagegbo.settings.container import (
    Boot,
    ContainerSettings,
    ProbeSettings,
    Protocol,
    Reset,
    default_containers,
)

__all__ = [
    "Access",
    "Boot",
    "CapsuleSettings",
    "ContainerSettings",
    "ExposeSettings",
    "IncusSettings",
    "LimitSettings",
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

Provision = Literal["auto", "never", "recreate"]
Access = Literal["refuse", "allow"]
Capsule = Literal["none", "failed"]
Way = Literal["auto", "direct", "forward"]


class IncusSettings(Struct, frozen=True):
    """How to reach the daemon."""

    endpoint: str = ""
    """Path of Incus's Unix socket, or its `https://` address. If empty, `$INCUS_SOCKET` and then the usual places are
    tried."""
    client_cert: str = ""
    """Path of the client certificate (PEM), for an `https://` endpoint."""
    client_key: str = ""
    """Path of the key (PEM) that belongs to the client certificate."""
    server_cert: str = ""
    """Path of the certificate (PEM) that the server must present. If empty, the authorities that this machine trusts
    decide."""


class NetworkSettings(Struct, frozen=True):
    """The stage's bridge, and the network of production that it must keep away from."""

    name: str = "stagebr0"
    """Name of the stage's bridge, a network interface of the host: at most 15 characters."""
    address: IPv4Interface = IPv4Interface("10.0.3.1/24")
    """Address of the host on the stage's bridge. Its prefix length defines the stage's subnet."""
    nat: bool = True
    """Whether the bridge has NAT, as the staging guide requires. NAT alone lets nothing out: see `network.internet`."""
    internet: bool = False
    """Whether the stage may connect to public addresses. By default it may not, because a cloned BotServer would send
    real mail."""
    twins: bool = True
    """Whether production's addresses lead to the clones inside the stage, so that copied configuration works
    unchanged."""
    production: IPv4Network = IPv4Network("10.0.2.0/24")
    """Production's subnet."""
    reach: Way = "auto"
    """How this machine connects to the clones' services. `direct`: to their addresses. `forward`: through the daemon,
    which needs no route. `auto`: directly where the stage's bridge is an interface of this machine, else `forward`."""

    @property
    def subnet(self) -> IPv4Network:
        return self.address.network


class VaultSettings(Struct, frozen=True):
    """Where the unseal keys of Vault come from, and how its secrets are read.

    At most one of the three sources of unseal keys is set. If none is, Vault stays sealed.
    """

    unseal_file: str = ""
    """Path of a file with the unseal keys: an `init.json`, as `vault operator init -format=json` prints it, or one key
    per line."""
    unseal_env: str = ""
    """Name of an environment variable that holds the unseal keys, separated by white space or commas."""
    unseal_command: tuple[str, ...] = ()
    """A command that prints the unseal keys, in one of the forms of `vault.unseal_file`."""
    token_env: str = ""
    """Name of an environment variable that holds the token for reading the stage's credentials."""
    token_file: str = ""
    """Path of a file that holds the token for reading the stage's credentials. If neither this nor `vault.token_env` is
    set, the token is the `VAULT_TOKEN` in `vault.env_file`."""
    kv_path: str = "secret/gbo"
    """Where Vault has the credentials: the mount of a KV store, version 2, and the folder in it that has a secret for
    each container."""
    env_container: str = "system"
    """Name of the clone that has `vault.env_file`."""
    env_file: str = "/opt/gbo/bin/.env"
    """Path of the file from which BotServer reads its token, inside the clone `vault.env_container`."""


class TimeoutSettings(Struct, frozen=True):
    """How long to wait for what."""

    ready: float = 120.0
    """How many seconds a service may take to answer in its own protocol, counted from its container's start."""
    lock: float = 900.0
    """How many seconds to wait for another process that holds the stage."""
    operation: float = 600.0
    """How many seconds one Incus operation may take. A full copy on a pool without copy-on-write takes long."""
    lease: float = 60.0
    """How many seconds a host keeps the stage from other hosts after it has died, slept or lost the daemon. It renews
    its lease while it lives. `0`: no leases, for a daemon that only one host uses."""


class PytestSettings(Struct, frozen=True):
    """What a pytest session does with the stage."""

    provision: Provision = "auto"
    """`auto`: provision what is missing. `never`: fail if something is missing. `recreate`: copy production again, once
    a session; with `storage.pool`, make new clones of the golden copy on that pool."""
    reset: tuple[str, ...] = ()
    """Containers that are reset before each test that uses them. `all`: those whose data the stage wipes. `none`: no
    container. tables, vault and llm are reset only if they are named."""
    deploy: tuple[str, ...] = ()
    """Builds that every stage of the run gets before its first test: `botserver=FILE`, or `CONTAINER:/PATH=FILE`. In a
    settings file, FILE is relative to that file; on the command line and in ini, to pytest's root folder."""
    keep: bool = False
    """End the session at the first failed test that used the stage, and leave the stage as that test left it."""
    changes: bool = False
    """Report for every test what it changed in the containers that it used, also for tests that pass. Failed tests
    report it anyway."""
    capsule: Capsule = "none"
    """`failed`: keep what each failed test left in the containers that it used, as a capsule, for
    `stagegbo capsule open`. `none`: keep nothing."""
    production_access: Access = "refuse"
    """Whether the pytest process may connect to production's addresses (`network.production`)."""
    quiet: bool = False
    """While a test runs, freeze the containers that it does not ask for and that may write to those it asks for
    (`containers.<name>.writes_to`), as the marker `stage_quiet` does."""
    verify: bool = False
    """Prove the stage's isolation at the beginning and at the end of a session, as `stagegbo verify` does. If that
    fails at the beginning, the tests that need the stage fail. If it fails at the end, the session fails."""


class ExposeSettings(Struct, frozen=True):
    """What `expose` may do."""

    longest: str = "24h"
    """Longest time for which a port of the stage may be exposed: a number and `s`, `m`, `h` or `d`."""


class CapsuleSettings(Struct, frozen=True):
    """How many capsules of failed tests a stage keeps. The oldest go first."""

    count: int = 10
    """Most capsules that a stage has. Each slot has its own."""
    size: str = "10GB"
    """Most space that they may take, with copies of replaced containers that are kept for them. Blocks that they share
    with the containers are counted, too, so they take less."""
    age: str = "7d"
    """How long one is kept: a number and `s`, `m`, `h` or `d`. Older ones go at the beginning of a session with
    capsules, and with `stagegbo capsule prune`."""
    address: str = ""
    """Address of the host on the bridge of the first opened capsule, written like `network.address`. Each further one
    has the next subnet. If empty, the first one has the subnet that comes 150 after the stage's."""


class SlotSettings(Struct, frozen=True):
    """Further stages for workers that run at once, copied from a golden copy of production."""

    count: int | Literal["auto"] = 1
    """Number of stages, the first included. `auto`: one for each worker, or as many as fit."""
    network: str = ""
    """Name of the bridge of each further slot, with `{slot}` in place of the slot's number. If empty, the bridges are
    named after the stage's: `stagebr1`, `stagebr2`, ..."""
    address: str = ""
    """Address of the host on the bridge of slot 1, written like `network.address`. Each further slot has the next
    subnet. If empty, slot 1 has the subnet after the stage's."""
    golden_address: str = ""
    """Address of the host on the golden copy's bridge, written like `network.address`. If empty, the golden copy has
    the subnet that comes a hundred after the stage's."""
    memory: str = "1GiB"
    """Memory assumed for each running stage when slots are counted. It is an estimate, because the kernel's figures
    include file cache."""
    memory_floor: str = "1GiB"
    """Memory of the host that must stay available."""
    disk: str = "1GB"
    """Disk space assumed for each further stage when slots are counted, in addition to `disk_floor`."""
    cores: float = 0.5
    """Processor cores assumed for each stage when slots are counted. With 0, cores do not limit the number of slots."""
    members: tuple[str, ...] = ()
    """Members of an Incus cluster that new slots may be on. If empty, any member may have them. A slot that exists
    stays where it is."""
    clean: tuple[str, ...] = ()
    """Containers that are reset and proven clean before a slot goes from one test to the next (`stage_fresh`). If
    empty, these are the containers whose data the stage wipes, and databases that have `data`."""


class StorageSettings(Struct, frozen=True):
    """Where the stage's disks are."""

    pool: str = "auto"
    """Storage pool of the stage, its slots and its golden copy. `auto`: production's pool. Any other pool gets one full
    copy of production, and all clones are copied from that one, so production's pool is left alone."""
    create: str = ""
    """Size of the pool, such as `20GB`, if provisioning may create it. It is then a btrfs pool in a file of that size,
    and `destroy --pool` removes it. If empty, the pool must exist."""

    @property
    def own(self) -> str:
        """The name of the stage's own pool, or an empty text if the stage is on production's."""
        return "" if self.pool == "auto" else self.pool


class LimitSettings(Struct, frozen=True):
    """What each clone may use of the host, beside its disk. A limit that production's container has is kept instead."""

    cpu_allowance: str = "50%"
    """Incus's `limits.cpu.allowance`. A percentage is a weight: where cores are wanted by others, production and the
    daemon included, a clone gets so much less, and idle cores are all its own. `25ms/100ms` is a hard limit. If empty,
    there is none."""
    cpu_priority: int = 10
    """Incus's `limits.cpu.priority`, from 0 to 10. Its effect is close to none; `cpu_allowance` is the one that
    helps."""
    disk_priority: int = 5
    """Incus's `limits.disk.priority`, from 0 to 10. Incus refuses any other value than 5 if the kernel has no
    `blkio.weight` (or `io.weight`)."""
    processes: int = 10000
    """Processes and threads that each clone may have, Incus's `limits.processes`. With 0, there is no limit: a test
    that starts processes without end then takes those of production, too."""


class Settings(Struct, frozen=True):
    """Everything that can be set, built once and never changed."""

    source_project: str = "default"
    """Incus project of production."""
    project: str = "STAGE-GBO"
    """Incus project of the stage."""
    disk_limit: str = "10GB"
    """Size of each clone's root disk, in Incus's notation (`10GB`, `512MiB`)."""
    disk_floor: str = "5GB"
    """Space that must stay free on the pool, and on the file system below a pool that is a file. Provisioning and
    sessions stop before less is free."""
    disk_floor_share: float = 0.1
    """Part of the pool's size that must stay free, from 0 to below 1. The larger of this and `disk_floor` counts, for
    provisioning, slots and sessions."""
    incus: IncusSettings = field(default_factory=IncusSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    vault: VaultSettings = field(default_factory=VaultSettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    pytest: PytestSettings = field(default_factory=PytestSettings)
    expose: ExposeSettings = field(default_factory=ExposeSettings)
    capsules: CapsuleSettings = field(default_factory=CapsuleSettings)
    slots: SlotSettings = field(default_factory=SlotSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    containers: Mapping[str, ContainerSettings] = field(default_factory=default_containers)
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """Credentials by container, such as `password_env = "MY_PW"`. They take precedence over those in Vault. A key that
    ends with `_env` names an environment variable, and one that ends with `_file` names a file. Write down a value
    itself only if it protects nothing."""
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """Secrets of the stage's Vault that are replaced before anything that reads Vault starts. Each is named by its
    whole path: `[secrets."secret/gbo/mail"]` with `password_env = "STAGE_MAIL"`. The keys are written as for
    `credentials`, and each names a field that the secret has."""

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
