"""The networks of a host, as its kernel knows them: addresses of all interfaces, and routes of all tables.

Asked by rtnetlink(7), which needs no privileges and no program, and takes less than a millisecond. Everything here is
about the network namespace that the calling thread is in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
import threading
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["HostNetwork", "call_inside", "enter", "read_networks", "read_way"]

T = TypeVar("T")

MAIN, LOCAL = 254, 255
"""Routing tables."""
_NAMES = {253: "default", MAIN: "main", LOCAL: "local"}
_UNICAST, _LOCAL = 1, 2
_BROADCASTS = {3, 4, 5}
"""Route types that name no network."""
_NOWHERE = {6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_LEARNT = {11, 12, 186, 187, 188, 189, 192}
"""Routing protocols: what a router was told by others is the internet's, not this host's."""
SHORTEST = 8
"""Bits of the shortest prefix that is a network. Shorter ones are ways out: VPNs halve the default route."""
_GET_ADDRESS, _GET_ROUTE = 22, 26
_DUMP = 0x301
_DONE, _ERROR = 3, 2
_CLONE_NEWNET = 0x40000000


class HostNetwork(Struct, frozen=True):
    """A network that the host has, by an address of an interface or by a route."""

    network: IPv4Network
    interface: str
    """Empty for a route that leads nowhere."""
    address: IPv4Address | None = None
    """The host's own; None: it is a route."""
    table: int = MAIN
    gateway: str = ""
    kind: str = ""
    """`blackhole` and its like; empty: it leads somewhere."""

    def __str__(self) -> str:
        if self.address is not None:
            return f"interface {self.interface} has {self.address}/{self.network.prefixlen}"
        way = f"{self.kind} route" if self.kind else f"route of interface {self.interface}"
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{way} to {self.network}{via} in table {_NAMES.get(self.table, self.table)}"


def read_networks() -> tuple[HostNetwork, ...]:
    """Every IPv4 network of the host but loopback's, addresses before routes. Raises `OSError`."""
    found = [*_addresses(), *_routes()]
    return tuple(dict.fromkeys(each for each in found if not each.network.network_address.is_loopback))


def read_way(address: IPv4Address) -> str | None:
    """The interface by which the host sends to an address, all rules and tables considered; None: it can't."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
    body += struct.pack("=HH4s", 8, 1, address.packed)
    try:
        for message in _ask(_GET_ROUTE, 1, body):
            return _interface(_attributes(message, 12).get(4))
    except OSError:
        return None  # unreachable, prohibited, a black hole
    return None


def call_inside(namespace: str | Path, function: Callable[[], T]) -> T:
    """Call `function` in a thread that is in another network namespace. Raises `OSError`, and what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            enter(namespace)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="stagegbo host network", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def enter(namespace: str | Path) -> None:
    """Move the calling thread into a network namespace, for good. Raises `OSError`."""
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if sys.version_info >= (3, 12):
            os.setns(descriptor, os.CLONE_NEWNET)
        elif ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespace))
    finally:
        os.close(descriptor)


def _addresses() -> Iterator[HostNetwork]:
    for message in _ask(_GET_ADDRESS, _DUMP, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
        prefix, index = message[1], struct.unpack_from("=I", message, 4)[0]
        found = _attributes(message, 8)
        name = _interface(struct.pack("=I", index))
        own = IPv4Address(found.get(2) or found[1])
        peer = IPv4Address(found[1])  # of a tunnel; else it is the address itself
        yield HostNetwork(IPv4Interface(f"{own}/{prefix}").network, name, own)
        if peer != own:
            yield HostNetwork(IPv4Interface(f"{peer}/{prefix}").network, name, own)


def _routes() -> Iterator[HostNetwork]:
    for message in _ask(_GET_ROUTE, _DUMP, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8)):
        _, bits, _, _, table, protocol, _, kind, _ = struct.unpack_from("=BBBBBBBBI", message)
        if bits < SHORTEST or kind in _BROADCASTS or (kind == _LOCAL and bits == 32):
            continue
        found = _attributes(message, 12)
        network = IPv4Network((found.get(1, bytes(4)), bits))
        if protocol in _LEARNT and network.is_global:
            continue
        yield HostNetwork(
            network,
            _interface(found.get(4) or found.get(9, b"")[4:8]),  # of several ways, the first
            table=struct.unpack("=I", found[15])[0] if 15 in found else table,
            gateway=str(IPv4Address(found[5])) if len(found.get(5, b"")) == 4 else "",
            kind=_NOWHERE.get(kind, ""),
        )


def _interface(index: bytes | None) -> str:
    if not index or len(index) != 4:
        return ""
    try:
        return socket.if_indextoname(struct.unpack("=I", index)[0])
    except OSError:
        return ""  # gone since


def _ask(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Send one request, and yield the bodies of its answers."""
    with contextlib.closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as link:
        link.settimeout(5)
        link.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        while True:
            data = link.recv(1 << 18)
            while len(data) >= 16:
                length, what = struct.unpack_from("=IH", data)
                if what == _DONE:
                    return
                if what == _ERROR:
                    number = -struct.unpack_from("=i", data, 16)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                yield data[16:length]
                data = data[(length + 3) & ~3 :]
            if flags != _DUMP:
                return


def _attributes(message: bytes, start: int) -> Mapping[int, bytes]:
    found = {}
    while start + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = message[start + 4 : start + length]
        start += (length + 3) & ~3
    return found
