"""Keeps the process of the tests from production: connecting to an address of its subnet raises an error.

Python reports every `connect`, `sendto` and `sendmsg` of a socket to audit hooks (PEP 578) before the kernel hears of
it, whoever calls: `socket.create_connection`, asyncio, `requests`, a client written in C that uses Python's sockets, a
test that has replaced functions of `socket`. A hook can't be taken away again, so a process gets one, the first time
that one is wanted, and it asks a switch of this module.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pytest_stagegbo.errors import ProductionAccessError
from pytest_stagegbo.session import libpq
from pytest_stagegbo.session.requirements import PRODUCTION_ACCESS

if TYPE_CHECKING:
    from pytest_stagegbo.settings import Settings

__all__ = ["ProductionGuard"]

EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
"""Looking a name up is none of them: nothing of production hears of it."""

_active: ProductionGuard | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    active = _active
    if active is not None and event in EVENTS:
        try:
            active.look(arguments[0], arguments[1])
        except ProductionAccessError:
            if event == "socket.connect":  # clients close it after an OSError only, which this must not be: they retry
                arguments[0].close()
            raise


class ProductionGuard:
    """Refuses connections of this process to production. For all threads at once.

    Production is what `network.production` holds; all of `containers.NAME.production_address` is in it. The only
    exception is Incus's own API, where `incus.endpoint` names an address of that subnet.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._endpoint = _endpoint(settings.incus.endpoint)
        self._test = ""
        self._lifted = False
        self._outer: ProductionGuard | None = None
        self._began = False
        self._judge = lru_cache(1024)(self._of_production)

    def begin(self) -> None:
        """Refuse connections to production from now on, until `end`. Calling it again does nothing."""
        global _active, _hooked
        if self._began:
            return
        self._began = True
        self._outer, _active = _active, self
        if not _hooked:
            _hooked = True
            sys.addaudithook(_hook)
        libpq.watch(_look_at_libpq)

    def end(self) -> None:
        """Restore what held before `begin`: a test of a plugin may run pytest within its own process."""
        global _active
        if self._began:
            self._began = False
            _active = self._outer
            if _active is None:
                libpq.unwatch()

    def now(self, test: str, *, lifted: bool) -> None:
        """Name this test in errors from now on. If `lifted`, refuse nothing."""
        self._test, self._lifted = test, lifted

    def look(self, connecting: Any, address: object) -> None:
        """Raise `ProductionAccessError` if a socket's address is production's. About a microsecond.

        Args:
            connecting: The socket; only its family is looked at, and only for names.
        """
        if self._lifted or not isinstance(address, tuple) or len(address) < 2:
            return  # a Unix socket, or one that is connected already
        host, port = address[0], address[1]
        if isinstance(host, (bytes, bytearray)):
            host = host.decode("ascii", "replace")
        if not isinstance(host, str):
            return
        found = self._judge(host)
        if found == "name":
            found = self._look_up(connecting, host)
        if found is not None:
            self.refuse(found, port)

    def look_at(self, host: str, port: int) -> None:
        """Raise `ProductionAccessError` if an address or a name is production's, for connections without Python's
        sockets."""
        if not self._lifted and not host.startswith(("/", "@")):  # which are Unix sockets to libpq
            found = self._judge(host)
            if found == "name":
                found = self._resolve(host)
            if found is not None:
                self.refuse(found, port)

    def refuse(self, address: ipaddress.IPv4Address, port: int) -> None:
        if (address, port) == self._endpoint:
            return
        who = self._test or "this process"
        raise ProductionAccessError(
            f"{who} would connect to production: {address}:{port}",
            seen=f"{address} is in production's network {self._settings.network.production}; nothing was sent",
            remedy=f"{self._twin(address, port)}; a test that must reach production says so with "
            f'@pytest.mark.{PRODUCTION_ACCESS}(reason="..."), a run with --stage-production-access=allow',
        )

    def _twin(self, address: ipaddress.IPv4Address, port: int) -> str:
        """Say which address to connect to instead."""
        for container in self._settings.containers.values():
            if container.production_address == address:
                ports = [probe.port for probe in container.probes]
                place = f"{container.address}:{port}" if port in ports or not ports else str(container.address)
                known = "" if port in ports or not ports else f", where {' and '.join(map(str, ports))} answer"
                return f"its twin in the stage is {container.name} at {place}{known} (fixture stage_{container.name})"
        return "no container of the stage stands for this address"

    def _of_production(self, host: str) -> ipaddress.IPv4Address | Literal["name"] | None:
        try:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return "name" if host not in {"", "<broadcast>"} else None
        v4 = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else address
        return v4 if v4 is not None and v4 in self._settings.network.production else None

    def _look_up(self, connecting: Any, host: str) -> ipaddress.IPv4Address | None:
        """A name that a socket is to connect to. Clients look names up first, so this is rare."""
        if getattr(connecting, "family", None) not in {socket.AF_INET, socket.AF_INET6}:
            return None
        return self._resolve(host)

    def _resolve(self, host: str) -> ipaddress.IPv4Address | None:
        try:
            answers = socket.getaddrinfo(host, None, socket.AF_INET)
        except (OSError, UnicodeError):
            return None  # then connecting fails as well
        found = (self._judge(str(answer[4][0])) for answer in answers)
        return next((each for each in found if isinstance(each, ipaddress.IPv4Address)), None)


def _look_at_libpq(host: str, port: int) -> None:
    active = _active
    if active is not None:
        active.look_at(host, port)


def _endpoint(endpoint: str) -> tuple[ipaddress.IPv4Address, int] | None:
    if not endpoint.startswith("https://"):
        return None
    parts = urlsplit(endpoint)
    try:
        return ipaddress.IPv4Address(parts.hostname or ""), parts.port or 8443
    except ValueError:
        return None
