"""A daemon on another host, over HTTPS: how it is recognised, and how this client is known to it.

Incus makes itself a certificate when it is installed, for the names that the host has then, and no authority signs
it. So a server is known by the certificate alone (`incus.server_cert`), whatever name or address leads to it, which is
also what the `incus` client does. Without one, the authorities that this machine trusts decide, and names count.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from pytest_stagegbo.errors import ServerUnreachable, SettingsError

if TYPE_CHECKING:
    from pytest_stagegbo.settings import IncusSettings

__all__ = ["certificate_trouble", "fingerprint", "pinned", "session", "untrusted", "websocket_options"]

_FETCH_SECONDS = 5.0
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_MISMATCH = re.compile(r'Fingerprints did not match\. Expected "(\w+)", got "(?:b\')?(\w+)')  # of urllib3

HOW_TO_PIN = (
    "set incus.server_cert to a copy of the server's certificate, on its host /var/lib/incus/server.crt (`incus remote "
    "add` keeps one in ~/.config/incus/servercerts), after comparing its fingerprint with the certificate_fingerprint "
    "that `incus info` says there"
)


class _Pinned(HTTPAdapter):
    """Takes a server for the right one by its certificate, and by nothing else."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        super().__init__()

    def send(self, request: Any, **arguments: Any) -> requests.Response:  # type: ignore[override]
        # $REQUESTS_CA_BUNDLE would otherwise take the place of what the session says.
        return super().send(request, **{**arguments, "verify": False})

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        conn.assert_fingerprint = self._fingerprint


def session(settings: IncusSettings) -> requests.Session:
    """A session for `settings.endpoint`.

    Raises:
        SettingsError: a certificate or key can't be read, or they don't belong together.
    """
    made = requests.Session()
    if settings.client_cert:
        _check_client(settings)
        made.cert = (settings.client_cert, settings.client_key)
    if settings.server_cert:
        made.mount("https://", _Pinned(pinned(settings)))
    return made


def websocket_options(settings: IncusSettings) -> dict[str, Any]:
    """What ws4py needs for a websocket of this daemon's. Where the server is known by its certificate they check
    nothing, and whoever connects has to compare `pinned` before it sends anything."""
    options: dict[str, Any] = {}
    if settings.client_cert:
        options |= {"certfile": settings.client_cert, "keyfile": settings.client_key}
    if not settings.server_cert:
        options |= {"ca_certs": DEFAULT_CA_BUNDLE_PATH, "cert_reqs": ssl.CERT_REQUIRED}
    return options


def pinned(settings: IncusSettings) -> str:
    """The fingerprint that the server's certificate must have; empty where authorities decide."""
    return fingerprint(settings.server_cert, "incus.server_cert") if settings.server_cert else ""


def fingerprint(path: str, setting: str) -> str:
    """SHA-256 of the first certificate in a file, as Incus shows it.

    Raises:
        SettingsError: the file can't be read, or has no certificate.
    """
    try:
        found = _PEM.search(Path(path).read_text(encoding="ascii", errors="replace"))
        if found is None:
            raise ValueError("no line -----BEGIN CERTIFICATE-----")
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).hexdigest()
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{setting}: {path} is no certificate that can be read",
            seen=str(error),
            remedy=f"name a file in PEM form with {setting}",
        ) from None


def _check_client(settings: IncusSettings) -> None:
    def no_password() -> str:
        raise ValueError("the key is encrypted")  # OpenSSL would ask at the terminal, once for each thread

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            settings.client_cert, settings.client_key, password=no_password
        )
    except (OSError, ValueError) as error:
        missing = [path for path in (settings.client_cert, settings.client_key) if not Path(path).is_file()]
        raise SettingsError(
            f"incus.client_cert {settings.client_cert} with incus.client_key {settings.client_key} can't be used",
            seen=f"no file {', '.join(missing)}" if missing else str(error),
            remedy="name a certificate and the key that belongs to it, both in PEM form, the key without a password; "
            "the incus client's own are ~/.config/incus/client.crt and client.key",
        ) from None


def untrusted(settings: IncusSettings, endpoint: str, auth: object) -> ServerUnreachable:
    """The error for a daemon that answers over HTTPS and does not know this client."""
    if settings.client_cert:
        name = fingerprint(settings.client_cert, "incus.client_cert")
        seen = f"auth is {auth!r}; this client's certificate {settings.client_cert} has the fingerprint {name}"
        remedy = (
            "on the server: `incus config trust add-certificate` with a copy of it; `incus config trust list` says "
            "which are trusted"
        )
    else:
        seen = f"auth is {auth!r}, and no client certificate is set"
        remedy = (
            "set incus.client_cert and incus.client_key, and on the server add the certificate with `incus config "
            "trust add-certificate`; the incus client's own are ~/.config/incus/client.crt and client.key"
        )
    return ServerUnreachable(f"the daemon at {endpoint} does not trust this client", seen=seen, remedy=remedy)


def certificate_trouble(settings: IncusSettings, endpoint: str, text: str) -> ServerUnreachable | None:
    """The error for a server whose certificate was refused, if that is what `text` says."""
    if found := _MISMATCH.search(text):
        return ServerUnreachable(
            f"the server at {endpoint} is not the one that incus.server_cert names",
            seen=f"its certificate has the fingerprint {found[2]}; {settings.server_cert} has {found[1]}",
            remedy="if the server was set up again, " + HOW_TO_PIN + "; otherwise something is in between",
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or text[:200]
        return ServerUnreachable(
            f"the certificate of the server at {endpoint} is not trusted on this machine",
            seen=f"{reason}; its fingerprint is {_presented(endpoint)}",
            remedy=HOW_TO_PIN,
        )
    return None


def _presented(endpoint: str) -> str:
    """The fingerprint of whatever certificate the server shows now; for people to compare."""
    parts = urlsplit(endpoint)
    with contextlib.suppress(OSError, ValueError):
        pem = ssl.get_server_certificate((parts.hostname or "", parts.port or 443), timeout=_FETCH_SECONDS)
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    return "unknown"
