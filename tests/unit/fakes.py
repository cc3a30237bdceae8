"""Stand-ins for the world around the engine: strict, written by hand, and typed as what they stand for."""

from __future__ import annotations

import ssl
import sys
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from pytest_stagegbo.desired import marks, objects
from pytest_stagegbo.desired.allowlist import CloneConfig, clone_config
from pytest_stagegbo.errors import ServerRefused
from pytest_stagegbo.facts.facts import Facts
from pytest_stagegbo.facts.space import Room
from pytest_stagegbo.incus import Instance, Network, Pool, Project
from pytest_stagegbo.incus.channel import ChannelBroken
from pytest_stagegbo.incus.records import Reply, Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.settings import Settings

GIB = 2**30

SERVER = Server(
    kind="incus",
    version="6.0.4",
    extensions=frozenset(),
    storage_drivers="btrfs",
    clustered=False,
    fingerprint="f00d",
    trusted=True,
)
PRODUCTION_PROFILE = {
    "root": {"type": "disk", "path": "/", "pool": "tank"},
    "eth0": {"type": "nic", "name": "eth0", "network": "prodbr0"},
}


def source(
    name: str = "tables",
    *,
    config: Mapping[str, str] | None = None,
    devices: Mapping[str, dict[str, str]] | None = None,
    profile_config: Mapping[str, str] | None = None,
    profile_devices: Mapping[str, dict[str, str]] = PRODUCTION_PROFILE,
    project: str = "default",
    location: str = "none",
) -> Instance:
    """A running container of production, with its profile's part apart from its own."""
    own_config, own_devices = dict(config or {}), {key: dict(value) for key, value in (devices or {}).items()}
    return Instance(
        name=name,
        project=project,
        status="Running",
        location=location,
        profiles=("default",),
        config=own_config,
        devices=own_devices,
        expanded_config={**(profile_config or {}), **own_config},
        expanded_devices={**profile_devices, **own_devices},
        created_at="2026-01-01T00:00:00Z",
    )


def copied(origin: Instance, overrides: CloneConfig, settings: Settings) -> Instance:
    """What Incus makes of a copy request: the source's own configuration below the request, the stage's profile
    below both; a key set to nothing is unset."""
    config = {key: value for key, value in origin.config.items() if not key.startswith("volatile.")}
    config = {key: value for key, value in {**config, **overrides.config}.items() if value}
    devices = {**origin.devices, **overrides.devices}
    profile = objects.profile_devices(settings, origin.pool, managed=True)
    return replace(
        origin,
        project=settings.project,
        status="Stopped",
        config=config,
        devices=devices,
        expanded_config=config,
        expanded_devices={**profile, **devices},
    )


def clone(name: str, settings: Settings, *, status: str = "Running", **config: str) -> Instance:
    """A clone as a finished run leaves it; `config` takes keys of `user.stagegbo`, an empty value takes one away."""
    container = settings.containers[name]
    origin = source(container.source_name, project=settings.source_project)
    made = copied(origin, clone_config(origin, container, settings, managed=True, golden=False), settings)
    marked = {**made.config, marks.STATE: marks.PREPARED, marks.PROVEN: "true"}
    marked |= {f"user.stagegbo.{key}": value for key, value in config.items()}
    marked = {key: value for key, value in marked.items() if value}
    return replace(made, name=name, status=status, config=marked, expanded_config=marked)


def network(name: str, address: str, **config: str) -> Network:
    return Network(
        name=name,
        project="default",
        type="bridge",
        managed=True,
        config={"ipv4.address": address, **config},
        description="",
        used_by=(),
    )


def project(name: str, **config: str) -> Project:
    return Project(name, "", config, ())


def pool(name: str = "tank", *, driver: str = "btrfs", free: int = 100 * GIB) -> Pool:
    return Pool(
        name=name, driver=driver, source=f"/var/lib/incus/disks/{name}.img", total=200 * GIB, used=200 * GIB - free
    )


def bare_host(settings: Settings, **changes: Any) -> Facts:
    """A host with production on it and no stage."""
    names = [container.source_name for container in settings.containers.values()]
    sources = {name: source(name, project=settings.source_project) for name in names}
    facts = Facts(
        server=SERVER,
        projects={"default": project("default")},
        sources=sources,
        clones={},
        networks={"prodbr0": network("prodbr0", "10.0.2.1/24")},
        acl=None,
        profile=None,
        rooms={"tank": Room(pool(), None)},
    )
    return replace(facts, **changes)


def finished(settings: Settings, **changes: Any) -> Facts:
    """A host with production and a stage that is as the settings want it."""
    facts = bare_host(settings)
    bridge = Network(
        name=settings.network.name,
        project="default",
        type="bridge",
        managed=True,
        config=objects.network(settings),
        description=objects.DESCRIPTION,
        used_by=(),
    )
    stage = Project(settings.project, objects.DESCRIPTION, objects.project(settings, own_networks=False), ())
    facts = replace(
        facts,
        projects={**facts.projects, settings.project: stage},
        networks={**facts.networks, bridge.name: bridge},
        acl={"name": objects.acl_name(settings), **objects.acl(settings)},
        profile={
            "name": "default",
            "config": objects.profile_config(settings),
            "devices": objects.profile_devices(settings, "tank", managed=True),
        },
        clones={name: clone(name, settings) for name in settings.containers},
    )
    return replace(facts, **changes)


class Journal:
    """A `Progress` that keeps what it was told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.begun: list[str] = []
        self.ended: dict[str, BaseException | None] = {}
        self.notes: list[str] = []

    def begin(self, key: str, text: str) -> None:
        with self._lock:
            assert text
            self.begun.append(key)

    def end(self, key: str, error: BaseException | None = None) -> None:
        with self._lock:
            assert key in self.begun, f"{key} ended without a beginning"
            self.ended[key] = error

    def note(self, text: str) -> None:
        with self._lock:
            self.notes.append(text)


class Patient:
    """Put before a server of `socketserver`: clients that hang up before an answer are part of the tests, and on a busy
    machine any may. Whatever else goes wrong in a handler is printed."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError, ssl.SSLError)):
            super().handle_error(request, client_address)  # type: ignore[misc]


class PatientServer(Patient, ThreadingHTTPServer):
    """A server of HTTP, with a thread for each client."""


@dataclass(frozen=True)
class Sent:
    """A request as it left."""

    method: str
    path: tuple[str, ...]
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: Any = None
    data: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Ended:
    """A stream of a command that has ended, and has taken what it was given."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def read(self, timeout: float) -> bytes:
        raise ChannelBroken(f"ended, not in {timeout} s")

    def close(self) -> None: ...


class StrictConnection:
    """A `Connection` that answers only what a test has laid out, and keeps every request.

    Args:
        replies: What is answered to which method and path; an exception is raised. A request that nobody laid out
            fails the test, and so does an answer that nobody asked for, when `check` is called.
    """

    endpoint = "/nowhere/unix.socket"
    is_local = True

    def __init__(self, replies: Mapping[tuple[str, str], Any] | None = None) -> None:
        self._replies = dict(replies or {})
        self._unused = set(self._replies)
        self.sent: list[Sent] = []
        self.waited: list[tuple[str, float]] = []

    def check(self) -> None:
        assert not self._unused, f"laid out and never asked for: {self._unused}"

    def request(
        self,
        method: str,
        path: Sequence[str],
        *,
        params: Mapping[str, str | int] | None = None,
        body: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        self.sent.append(Sent(method, tuple(path), dict(params or {}), body, data, dict(headers or {})))
        return self._answer(method, path)

    def get_reply(self, *path: str, **params: str | int) -> Reply:
        self.sent.append(Sent("GET", path, dict(params)))
        return self._answer("GET", path)

    def get(self, *path: str, **params: str | int) -> Any:
        return self.get_reply(*path, **params).metadata

    def read_bytes(self, *path: str, **params: str | int) -> bytes:
        content = self.get_reply(*path, **params).metadata
        assert isinstance(content, bytes)
        return content

    def read_pieces(self, *path: str, **params: str | int) -> Iterator[bytes]:
        yield self.read_bytes(*path, **params)

    def streams(self, reply: Reply) -> Any:
        """Of a command that a test starts and does not speak to."""
        assert reply is not None
        return (Ended(), Ended(), Ended())

    sockets = streams

    def wait(self, reply: Reply, what: str, timeout: float, moved: object = None) -> Any:  # noqa: ARG002
        self.waited.append((what, timeout))
        return reply.metadata

    def _answer(self, method: str, path: Sequence[str]) -> Reply:
        key = (method, "/".join(path))
        assert key in self._replies, f"nobody expected {key}"
        self._unused.discard(key)
        answer = self._replies[key]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(answer, "", {})

    def as_connection(self) -> Connection:
        return cast("Connection", self)


def refused(status: int, seen: str = "") -> ServerRefused:
    return ServerRefused("Incus refused", status=status, seen=seen or str(status))
