"""What a set of well-formed settings must also satisfy. Each check is a pure function from settings to problems."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from ipaddress import IPv4Interface
from posixpath import normpath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_stagegbo.settings.duration import parse_duration
from pytest_stagegbo.settings.size import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from ipaddress import IPv4Address, IPv4Network

    from pytest_stagegbo.settings.model import Settings

__all__ = ["MOST_SLOTS", "Problem", "check"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must be corrected before anything is done."""

    text: str
    keys: tuple[str, ...]
    """The dotted keys that take part in it, the one to look at first in front."""
    part: str = ""
    """Which part of the first key's value: `[0].port`. Empty: all of it."""


def check(settings: Settings) -> list[Problem]:
    """Every problem that `settings` have."""
    return [problem for rule in _CHECKS for problem in rule(settings)]


# Projects and networks ------------------------------------------------------------------------------------------


def projects(settings: Settings) -> Iterator[Problem]:
    for key, name in (("project", settings.project), ("source_project", settings.source_project)):
        if reason := _bad_project_name(name):
            yield Problem(f"{name!r} cannot name an Incus project: {reason}", (key,))
    if settings.project == settings.source_project:
        yield Problem(
            f"the stage's project {settings.project!r} is the source project too; give the stage its own",
            ("project", "source_project"),
        )
    elif settings.project == "default":
        yield Problem(
            "the stage cannot live in Incus's own project 'default'; name one that can go again", ("project",)
        )


def _bad_project_name(name: str) -> str:
    # The rules of Incus's `projectValidateName`, and no characters that nobody can see.
    if not name:
        return "it is empty"
    if not name.isprintable() or re.search(r"[\s/_'\"]", name):
        return "spaces, slashes, underscores, quotes and control characters are not allowed"
    return "it is reserved" if name in {"*", ".", ".."} else ""


def network_name(settings: Settings) -> Iterator[Problem]:
    name = settings.network.name
    if not re.fullmatch(r"[-_a-zA-Z0-9.]{2,15}", name) or name in {"..", "lo"} or name.startswith("-"):
        yield Problem(
            f"{name!r} cannot name a network interface: 2 to 15 letters, digits, '-', '_' or '.' (Linux's limit)",
            ("network.name",),
        )


def subnets(settings: Settings) -> Iterator[Problem]:
    network = settings.network
    subnet = network.subnet
    address = network.address.ip
    if address in network.production:
        yield Problem(
            f"the bridge's address {address} is inside production's network {network.production}",
            ("network.address", "network.production"),
        )
    elif subnet.overlaps(network.production):
        yield Problem(
            f"the stage's subnet {subnet} overlaps production's network {network.production}",
            ("network.address", "network.production"),
        )
    if subnet.prefixlen > 30:
        yield Problem(f"a subnet of {subnet} has no room for containers", ("network.address",))
    elif address in {subnet.network_address, subnet.broadcast_address}:
        yield Problem(
            f"{address} is the {_reserved_word(address, subnet)} address of {subnet}; the bridge needs one of its own, "
            f"such as {subnet.network_address + 1}/{subnet.prefixlen}",
            ("network.address",),
        )
    if address.is_loopback or address.is_multicast or address.is_link_local or address.is_reserved or not int(address):
        yield Problem(
            f"{address} cannot be given to a bridge; use a private one such as 10.0.3.1/24", ("network.address",)
        )


def _reserved_word(address: IPv4Address, subnet: IPv4Network) -> str:
    return "network" if address == subnet.network_address else "broadcast"


def endpoint(settings: Settings) -> Iterator[Problem]:
    value = settings.incus.endpoint
    if value.startswith("https://"):
        try:
            parts = urlsplit(value)
            valid = bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            yield Problem("this is not an address such as https://incus.example:8443", ("incus.endpoint",))
        elif "@" in parts.netloc:
            yield Problem(
                "an address must carry neither user nor password; Incus knows clients by certificate",
                ("incus.endpoint",),
            )
    elif value and not value.startswith("/"):
        hint = "; write the socket's path alone" if value.startswith("unix:") else ""
        yield Problem(
            f"{value!r} is neither the absolute path of a socket nor an https:// address{hint}", ("incus.endpoint",)
        )


def certificates(settings: Settings) -> Iterator[Problem]:
    incus = settings.incus
    if bool(incus.client_cert) != bool(incus.client_key):
        given, missing = ("client_cert", "client_key") if incus.client_cert else ("client_key", "client_cert")
        yield Problem(f"{given} needs {missing}, and that is not set", (f"incus.{given}", f"incus.{missing}"))


# Numbers, sizes and secrets -------------------------------------------------------------------------------------


def sizes(settings: Settings) -> Iterator[Problem]:
    limits = {"disk_limit": settings.disk_limit}
    limits |= {f"containers.{name}.disk_limit": c.disk_limit for name, c in settings.containers.items() if c.disk_limit}
    for key, text in (*limits.items(), ("disk_floor", settings.disk_floor)):
        try:
            size = parse_size(text)
        except ValueError as error:
            yield Problem(f"{text!r} is {error}", (key,))
        else:
            if not size and key in limits:
                yield Problem(f"{text!r} leaves no room at all", (key,))
    if not 0 <= settings.disk_floor_share < 1:
        yield Problem(f"{settings.disk_floor_share:g} is not a part of 1, such as 0.1", ("disk_floor_share",))


def timeouts(settings: Settings) -> Iterator[Problem]:
    limits = settings.timeouts
    for name, seconds in (("ready", limits.ready), ("lock", limits.lock), ("operation", limits.operation)):
        if not 0 < seconds < float("inf"):
            yield Problem(f"{seconds:g} is not a number of seconds above 0", (f"timeouts.{name}",))


def expose(settings: Settings) -> Iterator[Problem]:
    try:
        parse_duration(settings.expose.longest)
    except ValueError as error:
        yield Problem(f"{settings.expose.longest!r} is {error}", ("expose.longest",))


def unseal(settings: Settings) -> Iterator[Problem]:
    vault = settings.vault
    sources = {
        "vault.unseal_file": vault.unseal_file,
        "vault.unseal_env": vault.unseal_env,
        "vault.unseal_command": vault.unseal_command,
    }
    given = tuple(key for key, value in sources.items() if value)
    if len(given) > 1:
        yield Problem(f"unseal keys come from one place; {' and '.join(given)} are set", given)
    if vault.unseal_env and not _VARIABLE.fullmatch(vault.unseal_env):
        # Not repeated: it may be a key that someone put where its variable's name belongs.
        yield Problem("the value (not shown) is not the name of an environment variable", ("vault.unseal_env",))


def token(settings: Settings) -> Iterator[Problem]:
    vault = settings.vault
    if vault.token_env and vault.token_file:
        keys = ("vault.token_env", "vault.token_file")
        yield Problem(f"the token comes from one place; {' and '.join(keys)} are set", keys)
    if vault.token_env and not _VARIABLE.fullmatch(vault.token_env):
        yield Problem("the value (not shown) is not the name of an environment variable", ("vault.token_env",))
    parts = vault.kv_path.strip("/").split("/")
    if "" in parts or ".." in parts or "." in parts:
        yield Problem("this is not a mount and a folder such as secret/gbo", ("vault.kv_path",))
    if vault.env_file and not vault.env_file.startswith("/"):
        yield Problem("this is not an absolute path inside a container", ("vault.env_file",))


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def credentials(settings: Settings) -> Iterator[Problem]:
    for name, given in settings.credentials.items():
        if name not in settings.containers:
            there = ", ".join(sorted(settings.containers))
            yield Problem(f"{name!r} is not a container of the stage; there are {there}", (f"credentials.{name}",))
        questions: defaultdict[str, list[str]] = defaultdict(list)
        for key, value in given.items():
            dotted = f"credentials.{name}.{key}"
            base = key.removesuffix("_env").removesuffix("_file")
            questions[base].append(dotted)
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", base):
                yield Problem(f"{key!r} names no credential; write one such as password_env", (dotted,))
            elif base in {"host", "port", "url"}:
                yield Problem(
                    f"where a service is does not come from its credentials; see containers.{name}.address and .probes",
                    (dotted,),
                )
            if key.endswith("_env") and value and not _VARIABLE.fullmatch(value):
                yield Problem("the value (not shown) is not the name of an environment variable", (dotted,))
        for base, keys in questions.items():
            if len(keys) > 1:
                yield Problem(f"{base} comes from one place; {' and '.join(keys)} are set", tuple(keys))


def secrets(settings: Settings) -> Iterator[Problem]:
    if settings.secrets and not any(p.protocol == "vault" for c in settings.containers.values() for p in c.probes):
        yield Problem("no container of the stage has a vault probe, so there is no Vault", ("secrets",))
    for path, given in settings.secrets.items():
        keys = tuple(f"secrets.{path}.{key}" for key in given)
        parts = path.strip("/").split("/")
        if len(parts) < 2 or {"", ".", ".."} & set(parts):
            yield Problem(f"{path!r} is not the whole path of a secret, such as secret/gbo/mail", keys[:1])
        fields = [key.removesuffix("_env").removesuffix("_file") for key in given]
        for key, field, dotted in zip(given, fields, keys, strict=True):
            if not field:
                yield Problem(f"{key!r} names no field; write one such as password_env", (dotted,))
            if fields.count(field) > 1:
                yield Problem(f"{field} comes from one place; there are several", (dotted,))
            if key.endswith("_env") and not _VARIABLE.fullmatch(given[key]):
                yield Problem("the value (not shown) is not the name of an environment variable", (dotted,))


def slots(settings: Settings) -> Iterator[Problem]:
    found = settings.slots
    if found.count != "auto" and not 1 <= found.count <= MOST_SLOTS:
        yield Problem(f"{found.count} is no number of slots from 1 to {MOST_SLOTS}", ("slots.count",))
    for key, text in (("memory", found.memory), ("memory_floor", found.memory_floor), ("disk", found.disk)):
        try:
            parse_size(text)
        except ValueError as error:
            yield Problem(f"{text!r} is {error}", (f"slots.{key}",))
    if not 0 <= found.cores < float("inf"):
        yield Problem(f"{found.cores:g} is not a number of cores", ("slots.cores",))
    if found.network and "{slot}" not in found.network:
        yield Problem(f"{found.network!r} lacks {{slot}}: each slot has a bridge of its own", ("slots.network",))
    for key, text in (("address", found.address), ("golden_address", found.golden_address)):
        try:
            if text and "/" not in text:
                raise ValueError
            IPv4Interface(text or "10.0.4.1/24")
        except ValueError:
            yield Problem(
                f"{text!r} is not an IPv4 address with a prefix length, such as 10.0.4.1/24", (f"slots.{key}",)
            )
    for name in found.clean:
        if name != "all" and name not in settings.containers:
            there = ", ".join(sorted(settings.containers))
            yield Problem(f"{name!r} is not a container of the stage; there are {there}", ("slots.clean",))


MOST_SLOTS = 64
"""More are a mistake."""


# Containers -----------------------------------------------------------------------------------------------------


def some_containers(settings: Settings) -> Iterator[Problem]:
    if not settings.containers:
        yield Problem("no container is left; a stage needs at least one", ("containers",))


def container_names(settings: Settings) -> Iterator[Problem]:
    for name, container in settings.containers.items():
        if not _is_instance_name(name):
            yield Problem(f"{name!r} cannot name an Incus container: {_INSTANCE_NAME}", (f"containers.{name}",))
        if container.source and not _is_instance_name(container.source):
            yield Problem(
                f"{container.source!r} cannot name an Incus container: {_INSTANCE_NAME}", (f"containers.{name}.source",)
            )


_INSTANCE_NAME = "1 to 63 letters, digits and '-', no '-' at either end, not digits alone"


def _is_instance_name(name: str) -> bool:
    return re.fullmatch(r"(?![0-9]+$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", name) is not None


def addresses(settings: Settings) -> Iterator[Problem]:
    subnet = settings.network.subnet
    bridge = settings.network.address.ip
    for name, container in settings.containers.items():
        key = f"containers.{name}.address"
        address = container.address
        if address not in subnet:
            yield Problem(f"{address} is outside the stage's subnet {subnet}", (key, "network.address"))
        elif address == bridge:
            yield Problem(f"{address} is the bridge's own address", (key, "network.address"))
        elif address in {subnet.network_address, subnet.broadcast_address}:
            yield Problem(
                f"{address} is the {_reserved_word(address, subnet)} address of {subnet}", (key, "network.address")
            )
        source = container.production_address
        if source is not None and source not in settings.network.production:
            yield Problem(
                f"{source} is outside production's network {settings.network.production}",
                (f"containers.{name}.production_address", "network.production"),
            )


def twins(settings: Settings) -> Iterator[Problem]:
    for field, what in (
        ("address", "the address"),
        ("production_address", "the production address"),
        ("source", "the source"),
    ):
        users: defaultdict[object, list[str]] = defaultdict(list)
        for name, container in settings.containers.items():
            users[container.source_name if field == "source" else getattr(container, field)].append(name)
        for value, names in users.items():
            if value is not None and len(names) > 1:
                yield Problem(
                    f"{what} {value} is used by {' and '.join(names)}; each container needs its own",
                    tuple(f"containers.{name}.{field}" for name in names),
                )


def needs(settings: Settings) -> Iterator[Problem]:
    graph = {name: container.needs for name, container in settings.containers.items()}
    for name, others in graph.items():
        for other in others:
            if other not in graph:
                yield Problem(
                    f"{other!r} is not a container of the stage; there are {', '.join(sorted(graph))}",
                    (f"containers.{name}.needs",),
                )
    if cycle := _cycle(graph):
        yield Problem(
            f"containers wait for each other in a circle: {' needs '.join((*cycle, cycle[0]))}",
            tuple(f"containers.{name}.needs" for name in cycle),
        )


def _cycle(graph: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The first circle met, from the container that closes it; empty when there is none."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> tuple[str, ...]:
        if name in trail:
            return trail[trail.index(name) :]
        if name in done or name not in graph:
            return ()
        for other in graph[name]:
            if found := visit(other, (*trail, name)):
                return found
        done.add(name)
        return ()

    return next((found for name in graph if (found := visit(name, ()))), ())


_SYSTEM_TREES = ("/bin", "/boot", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys")
"""Nothing at or below these is anybody's data."""

# fmt: off
_SYSTEM_FOLDERS = frozenset((
    "/", "/etc", "/etc/network", "/etc/ssl", "/etc/systemd", "/home", "/media", "/mnt", "/opt", "/opt/gbo",
    "/opt/gbo/bin", "/opt/gbo/conf", "/root", "/srv", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64",
    "/usr/libexec", "/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/local/sbin", "/usr/sbin",
    "/usr/share", "/var", "/var/lib", "/var/lib/dpkg", "/var/lib/systemd"
))
# fmt: on
"""Data may be below these; they themselves hold what a container needs to start."""


def folders(settings: Settings) -> Iterator[Problem]:
    for name, container in settings.containers.items():
        for field, paths in (("wipe", container.wipe), ("logs", container.logs)):
            for index, path in enumerate(paths):
                if reason := _bad_folder(path, wiped=field == "wipe"):
                    yield Problem(f"{path!r} {reason}", (f"containers.{name}.{field}",), f"[{index}]")
        for log in container.logs:
            for path in container.wipe:
                if f"{log}/".startswith(f"{path}/") and not _bad_folder(path, wiped=True):
                    yield Problem(
                        f"wiping {path!r} would take the log folders in {log!r} away, and services fail without them; "
                        "leave it to `logs`",
                        (f"containers.{name}.wipe", f"containers.{name}.logs"),
                    )


def _bad_folder(path: str, *, wiped: bool) -> str:
    if not path.startswith("/"):
        return "is not an absolute path"
    if not path.isprintable():
        return "contains control characters"
    # POSIX lets two leading slashes mean something else, so normpath keeps them.
    if normpath(path) != path or path.startswith("//"):
        return f"is not written plainly; write {normpath('/' + path.lstrip('/'))!r} if that is what you mean"
    if path in _SYSTEM_FOLDERS or any(f"{path}/".startswith(f"{tree}/") for tree in _SYSTEM_TREES):
        return "is a folder that the container needs to work; name the folder with the data"
    if wiped and path == "/var/log":
        return "holds folders that services need; name it in `logs`, which keeps them"
    return ""


def units(settings: Settings) -> Iterator[Problem]:
    for name, container in settings.containers.items():
        for index, unit in enumerate(container.units):
            if (
                not re.fullmatch(r"[A-Za-z0-9:_.\\][A-Za-z0-9:_.\\@-]{0,254}", unit)
                or "@." in unit
                or unit.startswith(".")
            ):
                yield Problem(
                    f"{unit!r} is not the name of a systemd unit", (f"containers.{name}.units",), f"[{index}]"
                )


def probes(settings: Settings) -> Iterator[Problem]:
    for name, container in settings.containers.items():
        for index, probe in enumerate(container.probes):
            keys = (f"containers.{name}.probes",)
            if not 1 <= probe.port <= 65535:
                yield Problem(f"{probe.port} is not a port from 1 to 65535", keys, f"[{index}].port")
            if probe.protocol == "http" and not probe.path.startswith("/"):
                yield Problem(
                    f"an http probe needs a path that begins with '/', such as /health, not {probe.path!r}",
                    keys,
                    f"[{index}].path",
                )
            elif probe.protocol != "http" and probe.path:
                yield Problem(f"only http probes have a path; {probe.protocol} has none", keys, f"[{index}].path")


def resets(settings: Settings) -> Iterator[Problem]:
    known = {*settings.containers, "all", "none"}
    unknown = [name for name in settings.pytest.reset if name not in known]
    if unknown:
        yield Problem(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}", ("pytest.reset",))
    if "none" in settings.pytest.reset and len(settings.pytest.reset) > 1:
        yield Problem("none goes with no other name", ("pytest.reset",))
    for name in settings.pytest.reset:
        if name in settings.containers and not settings.containers[name].resettable:
            yield Problem(
                f"{name} keeps its data: nothing of it would be cleared", ("pytest.reset", f"containers.{name}.wipe")
            )


_HOT = ("valkey", "s3", "http")


def ways(settings: Settings) -> Iterator[Problem]:
    for name, container in settings.containers.items():
        protocol = container.probes[0].protocol if container.probes else ""
        if container.reset == "hot" and protocol and not container.data and protocol not in _HOT:
            yield Problem(
                f"a hot reset knows {', '.join(_HOT)} and, with `data`, postgresql, and the first probe of {name} is "
                f"{protocol}; write restart or restore",
                (f"containers.{name}.reset", f"containers.{name}.probes"),
            )
        if container.data and protocol != "postgresql":
            yield Problem(
                f"`data` is for PostgreSQL, and the first probe of {name} is {protocol or 'missing'}",
                (f"containers.{name}.data", f"containers.{name}.probes"),
            )
        if container.data and (reason := _bad_folder(container.data, wiped=False)):
            yield Problem(f"{container.data!r} {reason}", (f"containers.{name}.data",))
        for path in container.wipe:
            if container.data and f"{container.data}/".startswith(f"{path}/"):
                yield Problem(
                    f"{container.data!r} is kept for resets and wiped as {path!r}",
                    (f"containers.{name}.data", f"containers.{name}.wipe"),
                )


_CHECKS: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
    projects,
    network_name,
    subnets,
    endpoint,
    certificates,
    sizes,
    timeouts,
    expose,
    unseal,
    token,
    credentials,
    secrets,
    slots,
    some_containers,
    container_names,
    addresses,
    twins,
    needs,
    folders,
    units,
    probes,
    resets,
    ways,
)
