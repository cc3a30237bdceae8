"""Checks well-formed settings for contradictions. Each check is a pure function from settings to problems.

Checks of containers are in `container_checks`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_stagegbo.settings.container_checks import CONTAINER_CHECKS, reserved_word
from pytest_stagegbo.settings.duration import parse_duration
from pytest_stagegbo.settings.problem import Problem
from pytest_stagegbo.settings.size import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_stagegbo.settings.model import Settings

__all__ = ["MOST_SLOTS", "check"]


def check(settings: Settings) -> list[Problem]:
    """Return every problem of the settings."""
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
            f"{address} is the {reserved_word(address, subnet)} address of {subnet}; the bridge needs one of its own, "
            f"such as {subnet.network_address + 1}/{subnet.prefixlen}",
            ("network.address",),
        )
    if address.is_loopback or address.is_multicast or address.is_link_local or address.is_reserved or not int(address):
        yield Problem(
            f"{address} cannot be given to a bridge; use a private one such as 10.0.3.1/24", ("network.address",)
        )


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


_ALLOWANCE = re.compile(r"(?:[1-9]\d?|100)%|[1-9]\d*ms/[1-9]\d*ms")
MOST_PROCESSES = 1 << 22
"""The most that Linux has (`PID_MAX_LIMIT`)."""


def limits(settings: Settings) -> Iterator[Problem]:
    found = settings.limits
    if found.cpu_allowance and not _ALLOWANCE.fullmatch(found.cpu_allowance):
        text = f"{found.cpu_allowance!r} is neither a percentage such as 50% nor a time such as 25ms/100ms"
        yield Problem(text, ("limits.cpu_allowance",))
    for name, priority in (("cpu_priority", found.cpu_priority), ("disk_priority", found.disk_priority)):
        if not 0 <= priority <= 10:
            yield Problem(f"{priority} is not a number from 0 to 10", (f"limits.{name}",))
    if not 0 <= found.processes <= MOST_PROCESSES:
        yield Problem(f"{found.processes} is not a number from 0 to {MOST_PROCESSES}", ("limits.processes",))


def timeouts(settings: Settings) -> Iterator[Problem]:
    limits = settings.timeouts
    for name, seconds in (("ready", limits.ready), ("lock", limits.lock), ("operation", limits.operation)):
        if not 0 < seconds < float("inf"):
            yield Problem(f"{seconds:g} is not a number of seconds above 0", (f"timeouts.{name}",))
    if limits.lease and not SHORTEST_LEASE <= limits.lease < float("inf"):
        text = f"{limits.lease:g} is neither 0 nor a number of seconds from {SHORTEST_LEASE:g}"
        yield Problem(text, ("timeouts.lease",))


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
    if settings.secrets and settings.vault_probe is None:
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


_NO_INTERFACE = "{} is not an IPv4 address with a prefix length, such as 10.0.4.1/24"


def _is_interface(text: str) -> bool:
    try:
        IPv4Interface(text)
    except ValueError:
        return False
    return "/" in text


def capsules(settings: Settings) -> Iterator[Problem]:
    found = settings.capsules
    if found.count < 1:
        yield Problem(f"{found.count} is no number of capsules from 1", ("capsules.count",))
    for key, text, parse in (("size", found.size, parse_size), ("age", found.age, parse_duration)):
        try:
            parse(text)
        except ValueError as error:
            yield Problem(f"{text!r} is {error}", (f"capsules.{key}",))
    if found.address and not _is_interface(found.address):
        yield Problem(_NO_INTERFACE.format(repr(found.address)), ("capsules.address",))


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
        if text and not _is_interface(text):
            yield Problem(_NO_INTERFACE.format(repr(text)), (f"slots.{key}",))
    if not all(found.members):
        yield Problem("an empty text is no member of a cluster", ("slots.members",))
    for name in found.clean:
        if name != "all" and name not in settings.containers:
            there = ", ".join(sorted(settings.containers))
            yield Problem(f"{name!r} is not a container of the stage; there are {there}", ("slots.clean",))


def storage(settings: Settings) -> Iterator[Problem]:
    found = settings.storage
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", found.pool):
        yield Problem(f"{found.pool!r} is not a name that Incus takes for a storage pool", ("storage.pool",))
    if not found.create:
        return
    if not found.own:
        yield Problem("a pool that is created needs a name: set storage.pool", ("storage.create", "storage.pool"))
    try:
        if parse_size(found.create) < SMALLEST_POOL:
            yield Problem(f"{found.create!r} is too small for a pool: 1GiB at least", ("storage.create",))
    except ValueError as error:
        yield Problem(f"{found.create!r} is {error}", ("storage.create",))


SMALLEST_POOL = 1 << 30
"""Bytes."""
SHORTEST_LEASE = 1.0
"""Seconds."""
MOST_SLOTS = 64
"""More are a mistake."""


_CHECKS: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
    projects,
    network_name,
    subnets,
    endpoint,
    certificates,
    sizes,
    limits,
    timeouts,
    expose,
    unseal,
    token,
    credentials,
    secrets,
    capsules,
    slots,
    storage,
    *CONTAINER_CHECKS,
)
