"""A connection of HTTP to a service of the stage: no proxy, no redirect, no certificate that has to be known."""

from __future__ import annotations

import http.client
import ssl

from pytest_stagegbo.services.dial import way_to

__all__ = ["ServiceConnection"]


class ServiceConnection(http.client.HTTPConnection):
    """As `http.client` makes one, by the way that leads to the service. Certificates are not checked: their names are
    production's and their authority is private."""

    own_port = 0
    """From which port the service sees it; 0: it is not connected."""

    def __init__(self, host: str, port: int, timeout: float, *, tls: bool) -> None:
        super().__init__(host, port, timeout=timeout)
        self._seconds = timeout
        self._tls = tls

    def connect(self) -> None:
        way = way_to(self.host)
        if way is None:
            super().connect()
            self.own_port = int(self.sock.getsockname()[1])
        else:
            self.sock, self.own_port = way.connect(self.host, self.port, self._seconds)
            self.sock.settimeout(self._seconds)
        if self._tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

    def close(self) -> None:
        self.own_port = 0
        super().close()
