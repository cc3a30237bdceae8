"""Reads what a production is like: by the daemon's API, and, as root on the daemon's host, from the host's kernel.

Nothing runs in a container and nothing is sent to one. Of the API only those requests are used that leave no event: a
file of a container, for example, is never read by it. See `incus.guestview`.
"""

from __future__ import annotations

import contextlib
import os
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.discovery.programs import Command, Files, environment, service_of, unit_command
from pytest_stagegbo.discovery.records import DEFAULT_FOLDERS, Source, Survey
from pytest_stagegbo.errors import ServerRefused
from pytest_stagegbo.incus import Instance
from pytest_stagegbo.incus.guestview import guest_of_process, guest_of_rootfs
from pytest_stagegbo.incus.localhost import pool_folder
from pytest_stagegbo.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pytest_stagegbo.discovery.records import Environment, Service
    from pytest_stagegbo.incus import Network, Pool, Project, Reader
    from pytest_stagegbo.incus.guestview import GuestProcess, GuestView
    from pytest_stagegbo.incus.localhost import LocalHost

__all__ = ["survey"]

_UNIT_FOLDERS = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
"""Where units are, in systemd's order; /lib is a link to /usr/lib, and links are not followed."""
_AT_ONCE = 4


def survey(reader: Reader) -> Survey:
    """Look at everything that production may be in."""
    projects = reader.projects()
    networks = reader.networks()
    host = reader.host()
    known = host.networks()
    stages = {name for name, project in projects.items() if marks.is_ours(project.config)}
    found = [
        Instance.from_api(item, "default")
        for item in reader.documents("instances", **{"all-projects": "true"})
        if item.get("type", "container") == "container" and item.get("project") not in stages
    ]
    pools = dict(_pools(reader, {each.pool for each in found if each.pool}))
    with Workers(_AT_ONCE, "stagegbo survey") as threads:
        sources = list(threads.map(lambda each: _source(reader, host, pools, each), found))
    by_project: dict[str, tuple[Source, ...]] = {}
    for source in sources:
        by_project[source.project] = (*by_project.get(source.project, ()), source)
    return Survey(
        projects=by_project,
        networks=networks,
        host=known if known is not None else reader.host_networks(),
        pools=pools,
        pool_names=frozenset(str(each["name"]) for each in reader.documents("storage-pools")),
        stages={name: _bridge(projects[name], networks) for name in stages},
        foreign=frozenset(projects.keys() - stages),
    )


def _pools(reader: Reader, names: Iterable[str]) -> Iterator[tuple[str, Pool]]:
    for name in sorted(names):
        with contextlib.suppress(ServerRefused):  # a pool that is not available now
            yield name, reader.pool(name)


def _bridge(project: Project, networks: Mapping[str, Network]) -> tuple[str, str]:
    found = networks.get(project.config.get("restricted.networks.access", ""))
    return ("", "") if found is None else (found.name, found.config.get("ipv4.address", ""))


def _source(reader: Reader, host: LocalHost, pools: Mapping[str, Pool], instance: Instance) -> Source:
    state: Mapping[str, Any] = {}
    if instance.is_running:
        try:
            state = reader.document("instances", instance.name, "state", project=instance.project)
        except ServerRefused:  # it was stopped or removed meanwhile
            state = {}
    view = _view(reader, host, pools, instance, int(state.get("pid") or 0))
    addresses = tuple(_addresses(instance, state, view))
    plain = Source(
        project=instance.project,
        name=instance.name,
        status=instance.status,
        pool=instance.pool,
        addresses=addresses,
        sight="names",
        used=int((((state.get("disk") or {}).get("root")) or {}).get("usage") or 0),
        blind="" if view is not None else _blindness(reader, instance),
    )
    if view is None:
        return plain
    files = Files(view.text, view.names, view.has)
    processes = view.listeners()
    units = dict(_units(files, (each.unit for each in processes)))
    commands = [_running(each, units) for each in processes]
    commands += [each for name, each in units.items() if name not in {process.unit for process in processes}]
    services = _services(commands, files)
    return replace(
        plain,
        sight="running" if instance.is_running else "files",
        services=services,
        connections=frozenset(
            (each.address, each.port) for each in view.connections() if isinstance(each.address, IPv4Address)
        ),
        environment=_environment(commands, files),
        folders=frozenset(folder for folder in DEFAULT_FOLDERS if view.has(folder)),
    )


def _blindness(reader: Reader, instance: Instance) -> str:
    if not reader.is_local:
        return "the daemon is on another host"
    if os.geteuid():
        return "only root on the daemon's host may look into it"
    if instance.location not in {"", "none", reader.server().name}:
        return f"it is on cluster member {instance.location}"
    return (
        "it does not run, and its files are not mounted" if not instance.is_running else "it could not be looked into"
    )


def _view(reader: Reader, host: LocalHost, pools: Mapping[str, Pool], instance: Instance, pid: int) -> GuestView | None:
    if instance.location not in {"", "none", reader.server().name}:
        return None  # that number is of another host's process
    if instance.is_running:
        return guest_of_process(host, pid)
    pool = pools.get(instance.pool)
    volume = instance.name if instance.project == "default" else f"{instance.project}_{instance.name}"
    return None if pool is None else guest_of_rootfs(host, f"{pool_folder(pool)}/containers/{volume}/rootfs")


def _addresses(instance: Instance, state: Mapping[str, Any], view: GuestView | None) -> Iterator[IPv4Interface]:
    """Addresses by the kernel where it runs; else those that its devices and its files name."""
    found = [
        f"{each['address']}/{each.get('netmask') or 32}"
        for name, interface in (state.get("network") or {}).items()
        if name != "lo"
        for each in interface.get("addresses") or ()
        if each.get("family") == "inet" and each.get("scope") == "global"
    ]
    if not found and view is not None:
        found = list(_configured(view.text("/etc/network/interfaces") or ""))
    if not found:
        devices = (each for each in instance.expanded_devices.values() if each.get("type") == "nic")
        found = [address for each in devices if (address := each.get("ipv4.address", "")) not in {"", "none"}]
        found = [address if "/" in address else f"{address}/24" for address in found]
    for text in found:
        try:
            yield IPv4Interface(text)
        except ValueError:
            continue


def _configured(text: str) -> Iterator[str]:
    """Addresses in a file of ifupdown."""
    address = ""
    for line in (*text.splitlines(), "iface"):
        words = line.split() or [""]
        if words[0] == "address" and len(words) > 1:
            address = words[1]
        elif words[0] == "netmask" and address and len(words) > 1:
            address = f"{address.partition('/')[0]}/{words[1]}"
        elif words[0] == "iface" and address:
            yield address if "/" in address else f"{address}/24"
            address = ""


def _units(files: Files, running: Iterable[str]) -> Iterator[tuple[str, Command]]:
    """Units that are enabled, or run."""
    names = {*running}
    for folder in _UNIT_FOLDERS[:1]:
        for entry in files.names(folder):
            if entry.endswith((".target.wants", ".target.requires")):
                names.update(files.names(f"{folder}/{entry}"))
    for name in sorted(name for name in names if name.endswith(".service")):
        template = f"{name.partition('@')[0]}@.service" if "@" in name else ""
        for folder in _UNIT_FOLDERS:
            text = files.text(f"{folder}/{name}") or (files.text(f"{folder}/{template}") if template else None)
            command = unit_command(name, text, files) if text else None
            if command is not None:
                yield name, command
                break


def _running(process: GuestProcess, units: Mapping[str, Command]) -> Command:
    unit = units.get(process.unit)
    return Command(
        program=process.program,
        argv=process.argv,
        unit=process.unit,
        folder=process.folder,
        ports=process.ports,
        home="/root" if unit is None else unit.home,
        configured=() if unit is None else unit.argv,
        logs=() if unit is None else unit.logs,
        requires=() if unit is None else unit.requires,
        environment=() if unit is None else unit.environment,
    )


def _services(commands: Iterable[Command], files: Files) -> tuple[Service, ...]:
    """Those that run first."""
    found = [(not command.runs, service_of(command, files)) for command in commands]
    known = [(later, each) for later, each in found if each is not None]
    return tuple(each for _, each in sorted(known, key=lambda one: (one[0], one[1].port)))


def _environment(commands: Iterable[Command], files: Files) -> Environment | None:
    for command in commands:
        if command.unit == "botserver.service" or command.program == "botserver":
            return environment(command, files)
    return None
