"""Checks a request to expose a port, as a person writes it, and finds reasons against it. It only reads."""

from __future__ import annotations

import errno
import socket
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.desired.exposure import Exposure
from pytest_stagegbo.errors import NotOurs, ProductionProtected, SettingsError
from pytest_stagegbo.settings.duration import parse_duration

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from typing import Any

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["new_exposure", "refuse"]


def new_exposure(settings: Settings, target: str, listen: str, length: str) -> Exposure:
    """Return the exposure that a person asks for, checked against the settings. Pure, but for the clock.

    Args:
        target: `CONTAINER`, `CONTAINER:PORT` or `CONTAINER:PROTOCOL`, the protocol of one of its probes.
        listen: `ADDRESS` or `ADDRESS:PORT`; without a port, the clone's.
        length: How long, such as `2h`; at most `expose.longest`.

    Raises:
        SettingsError: it can't be that.
        ProductionProtected: the address is production's.
    """
    name, port = _target(settings, target)
    host, _, listen_port = listen.partition(":")
    try:
        address, number = IPv4Address(host), int(listen_port or port)
    except (AddressValueError, ValueError):
        raise SettingsError(
            f"--listen {listen}: not an IPv4 address, or one with :PORT behind it",
            remedy="for example 198.51.100.7:8443",
        ) from None
    if not 1 <= number <= 65535:
        raise SettingsError(f"{number} is not a port from 1 to 65535", remedy="for example 198.51.100.7:8443")
    if address in settings.network.production:
        raise ProductionProtected(
            f"{address} is in production's network {settings.network.production}",
            remedy="name an address of the host that production does not use",
        )
    if address in settings.network.subnet or address.is_unspecified or address.is_loopback or address.is_multicast:
        raise SettingsError(
            f"--listen {address}: must be one non-loopback address of this host",
            remedy="name a single address of the host, not all of them (0.0.0.0), loopback or the stage's own",
        )
    try:
        seconds = parse_duration(length)
    except ValueError as error:
        raise SettingsError(f"--for {length}: {error}", remedy="for example --for 2h") from None
    if seconds > parse_duration(settings.expose.longest):
        raise SettingsError(
            f"--for {length} is longer than expose.longest, {settings.expose.longest}",
            remedy="expose it again when the time is over, or raise that setting",
        )
    clone = str(settings.containers[name].address)
    return Exposure(name, clone, port, str(address), number, int(clocks.now()) + seconds)


def _target(settings: Settings, target: str) -> tuple[str, int]:
    name, _, wanted = target.partition(":")
    if name not in settings.containers:
        raise SettingsError.unknown("no container", [name], settings.containers)
    probes = settings.containers[name].probes
    if wanted.isdigit() and 1 <= int(wanted) <= 65535:
        return name, int(wanted)
    ports = {probe.port for probe in probes if wanted in {"", probe.protocol}}
    if len(ports) != 1:
        known = ", ".join(f"{name}:{probe.port} ({probe.protocol})" for probe in probes)
        raise SettingsError(
            f"{target} does not name one port", remedy=f"name one port: {known}" if known else f"{name}:PORT"
        )
    return name, ports.pop()


def refuse(reader: Reader, facts: Facts, settings: Settings, wanted: Exposure, addresses: Collection[str]) -> None:
    """Raise the error that keeps `wanted` from being opened, if there is one. Reads only.

    Args:
        addresses: Of the host.

    Raises:
        NotOurs: something that this tool did not make has that address on the stage's bridge.
        ProductionProtected: the address or the port is production's.
        SettingsError: the address is not the host's, or exposes something already.
    """
    for each in facts.exposed:
        if each.listen == wanted.listen:
            raise SettingsError(
                f"{wanted.listen} is exposed already: {each}",
                remedy=f"close it with `stagegbo expose --close {wanted.listen}`, or name another address",
            )
    for network, forward in _forwards(reader):
        if forward["listen_address"] == wanted.listen:
            raise NotOurs(
                f"network {network} has a forward of {wanted.listen} that was not made by pytest-stagegbo",
                remedy="name another address, or delete it yourself: `incus network forward delete`",
            )
    if wanted.listen not in addresses:
        raise SettingsError(
            f"{wanted.listen} is not an address of the host",
            seen="it has " + ", ".join(addresses),
            remedy="name one of those, or give the host that address first: `ip address add`",
        )
    if any(IPv4Address(wanted.listen) in network for network in facts.production_subnets(settings)):
        raise ProductionProtected(f"{wanted.listen} is in a network of production", remedy="name another address")
    for source in facts.production_instances.values():
        for name, device in source.expanded_devices.items():
            if device.get("type") == "proxy" and _names_port(device.get("listen", ""), wanted.listen_port):
                raise ProductionProtected(
                    f"production uses port {wanted.listen_port} of the host",
                    seen=f"device {name} of {source.name} listens at {device['listen']}",
                    remedy="name another port: --listen ADDRESS:PORT",
                )
    if reader.is_here:
        _refuse_taken(wanted)


def _forwards(reader: Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, network in reader.networks().items():
        if network.managed:
            for forward in reader.forwards(name):
                yield name, forward


def _names_port(listen: str, port: int) -> bool:
    """Whether a proxy's `tcp:0.0.0.0:80,8000-8010` names a port. Pure."""
    for part in listen.rpartition(":")[2].split(","):
        low, _, high = part.partition("-")
        if low.isdigit() and int(low) <= port <= int(high if high.isdigit() else low):
            return True
    return False


def _refuse_taken(wanted: Exposure) -> None:
    """Raise an error if something listens on the port, which a forward would take away. Known on the daemon's host
    only."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has only just ended is no listener
        try:
            probe.bind((wanted.listen, wanted.listen_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SettingsError(
                    f"port {wanted.listen_port} of {wanted.listen} is in use on this host",
                    remedy="name another port: --listen ADDRESS:PORT",
                ) from None
