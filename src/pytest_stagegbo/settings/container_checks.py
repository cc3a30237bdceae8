"""Checks the settings of containers for contradictions: each container by itself, and all of them together."""

from __future__ import annotations

import re
from collections import defaultdict
from posixpath import normpath
from typing import TYPE_CHECKING

from pytest_stagegbo.settings.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from ipaddress import IPv4Address, IPv4Network

    from pytest_stagegbo.settings.model import Settings

__all__ = ["CONTAINER_CHECKS", "reserved_word"]


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
                f"{address} is the {reserved_word(address, subnet)} address of {subnet}", (key, "network.address")
            )
        source = container.production_address
        if source is not None and source not in settings.network.production:
            yield Problem(
                f"{source} is outside production's network {settings.network.production}",
                (f"containers.{name}.production_address", "network.production"),
            )


def reserved_word(address: IPv4Address, subnet: IPv4Network) -> str:
    """Return `network` or `broadcast` if an address of a subnet is reserved for that, and an empty text otherwise."""
    return "network" if address == subnet.network_address else "broadcast"


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
    for name, container in settings.containers.items():
        for field, others in (("needs", container.needs), ("writes_to", container.writes_to)):
            for other in others:
                if other not in graph:
                    yield Problem(
                        f"{other!r} is not a container of the stage; there are {', '.join(sorted(graph))}",
                        (f"containers.{name}.{field}",),
                    )
    if cycle := _cycle(graph):
        yield Problem(
            f"containers wait for each other in a circle: {' needs '.join((*cycle, cycle[0]))}",
            tuple(f"containers.{name}.needs" for name in cycle),
        )


def _cycle(graph: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the first circle of containers that need each other, or nothing if there is none."""
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
        for field, paths in (("wipe", container.wipe), ("logs", container.logs), ("state", container.state)):
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


CONTAINER_CHECKS: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
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
