"""A Vault on the loopback, and stages whose services are there."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from fakes import PatientServer, clone
from msgspec.structs import replace

from pytest_stagegbo.incus import CommandResult
from pytest_stagegbo.settings import ProbeSettings, Settings, VaultSettings
from pytest_stagegbo.stage import Stage

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_stagegbo.credentials import Credentials
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance, Reader
    from pytest_stagegbo.settings.model import Protocol

HERE = "127.0.0.1"
TOKEN = "hvs.TheTokenOfTheStage"
PASSWORD = "p@ss/word of tables"
TABLES = {"host": "10.0.2.11", "port": 5432, "username": "gbuser", "password": PASSWORD, "database": "botserver"}
SECRETS: Mapping[str, Mapping[str, object]] = {
    "tables": TABLES,
    "cache": {"host": "10.0.2.13", "port": 6379, "password": "password-of-cache"},
    "drive": {"host": "10.0.2.14", "port": 9100, "access_key": "access-of-drive", "secret_key": "secret-of-drive"},
    "llm": {"host": "10.0.2.15", "port": 8081, "url": "http://10.0.2.15:8081"},
}


class Vault:
    """Answers like Vault with a key-value store at `secret`, and one folder `gbo` in it."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.secrets: dict[str, Mapping[str, object]] = dict(SECRETS)
        self.sealed = False
        self.may_list = False
        self.forbidden: set[str] = set()
        self.asked: list[str] = []
        vault = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, document = vault.answer(self.path, self.headers.get("X-Vault-Token", ""))
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = PatientServer((HERE, 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def answer(self, path: str, token: str) -> tuple[int, object]:
        self.asked.append(path)
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if token != TOKEN:
            return 403, {"errors": ["permission denied", f"bad token {token}"]}
        if path.startswith("/v1/secret/metadata/gbo") and path.endswith("?list=true"):
            if not self.may_list:
                return 403, {"errors": ["1 error occurred: permission denied"]}
            folder = path.removeprefix("/v1/secret/metadata/gbo").removesuffix("?list=true").strip("/")
            start = f"{folder}/" if folder else ""
            below = [name.removeprefix(start) for name in self.secrets if name.startswith(start)]
            names = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in below})
            return (200, {"data": {"keys": names}}) if names else (404, {"errors": []})
        name = path.removeprefix("/v1/secret/data/gbo/")
        if name in self.forbidden:
            return 403, {"errors": ["1 error occurred: permission denied"]}
        if name not in self.secrets:
            return 404, {"errors": []}
        return 200, {"data": {"data": self.secrets[name], "metadata": {"version": 1}}}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Vault]:
    vault = Vault(context)
    try:
        yield vault
    finally:
        vault.close()


class FakeReader:
    """Gives the files that a test has laid out."""

    def __init__(self, env: str | None = f"PORT=5858\nVAULT_ADDR=http://10.0.2.12:8200\nVAULT_TOKEN={TOKEN}\n") -> None:
        self.env = env
        self.asked: list[tuple[str, str, str]] = []

    def file(self, project: str, instance: str, path: str) -> bytes | None:
        self.asked.append((project, instance, path))
        return None if self.env is None else self.env.encode()

    def as_reader(self) -> Reader:
        return cast("Reader", self)


class Direct:
    """The way of a machine that is on the stage's network."""

    is_direct = True

    def place(self, host: str, port: int) -> tuple[str, int]:
        return host, port


@dataclass
class FakeEngine:
    """An engine whose clones run, and do what a test says."""

    settings: Settings
    reader: FakeReader = field(default_factory=FakeReader)
    result: CommandResult = field(default_factory=lambda: CommandResult(0, "", ""))
    status: str = "Running"
    executed: list[tuple[str, tuple[str, ...], float | None]] = field(default_factory=list)
    resets: list[tuple[str, ...]] = field(default_factory=list)

    way = Direct()

    def clone(self, name: str) -> Instance:
        return clone(name, Settings(), status=self.status)

    def clone_writer(self) -> FakeEngine:
        return self

    def execute(self, name: str, argv: Sequence[str], *, timeout: float | None) -> CommandResult:
        self.executed.append((name, tuple(argv), timeout))
        return self.result

    def stage(self, credentials: Credentials | None = None) -> Stage:
        def reset(names: tuple[str, ...]) -> None:
            self.resets.append(names)

        return Stage(cast("StageEngine", self), credentials=credentials, reset=reset)


def settings_for(
    vault: Vault | None, *, tls: bool = False, credentials: Mapping[str, Mapping[str, str]] | None = None, **more: Any
) -> Settings:
    """The default settings, with Vault where the fake one is."""
    settings = replace(Settings(), credentials=MappingProxyType(dict(credentials or {})))
    if vault is not None:
        settings = at(settings, "vault", "vault", vault.port, tls=tls)
    return replace(settings, vault=replace(VaultSettings(), **more))


def at(settings: Settings, name: str, protocol: Protocol, port: int, *, tls: bool = False) -> Settings:
    """`settings` with a service on the loopback."""
    probe = ProbeSettings(protocol, port, "/health" if protocol == "http" else "", tls)
    container = replace(settings.containers[name], address=IPv4Address(HERE), probes=(probe,))
    return replace(settings, containers=MappingProxyType({**settings.containers, name: container}))
