"""What may be written to, and the gate that every write passes.

A gate is bound to one stage: its project, its bridge and its access list. A request that is aimed at anything else is
not sent, whatever the settings or the caller say: production has no name that passes the gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pytest_stagegbo.errors import OperationFailed, ProductionProtected
from pytest_stagegbo.incus.retries import retried
from pytest_stagegbo.workers import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.records import Reply

__all__ = ["HOST_PROJECT", "Gate", "WriterScope"]

HOST_PROJECT = "default"
"""Bridges and their access lists live in project `default`, whichever projects use them."""


class WriterScope(Struct, frozen=True):
    """The only names that a `Writer` may write to.

    Raises:
        ProductionProtected: one of them is production's.
    """

    project: str
    network: str
    acl: str
    source_project: str
    production_networks: frozenset[str]
    """Bridges that production's instances or profiles use."""
    former_networks: frozenset[str] = frozenset()
    """Bridges that the stage had under another name. They may be deleted, and nothing else."""
    former_acls: frozenset[str] = frozenset()
    """Access lists, likewise."""
    pool: str = ""
    """The storage pool of the stage's own, if it has one."""
    production_pools: frozenset[str] = frozenset()
    """Storage pools that production's instances are on."""
    production: str = ""
    """Production's project, where `source_project` is that of golden clones."""
    member: str = ""
    """The cluster member that the stage is on; empty: the server is no cluster."""

    def __post_init__(self) -> None:
        if self.project in {self.source_project, self.production, HOST_PROJECT}:
            raise ProductionProtected(
                f"project {self.project} is where production lives",
                seen=f"source project {self.source_project}, stage project {self.project}",
                remedy="set another `project` for the stage",
            )
        if self.network in self.production_networks:
            raise ProductionProtected(
                f"network {self.network} is used by production",
                seen="production uses " + ", ".join(sorted(self.production_networks)),
                remedy="set another `network.name` for the stage",
            )
        if self.pool and self.pool in self.production_pools:
            raise ProductionProtected(
                f"pool {self.pool} is production's",
                seen="production is on " + ", ".join(sorted(self.production_pools)),
                remedy="set another `storage.pool`, or leave it out: the stage is on production's pool then",
            )


class Gate:
    """Sends writes to one stage, and no others. Safe to share between threads.

    Args:
        timeout: Seconds that one background operation may take.
        may_write: Called before each write; raises `LeaseLost` when the stage may be another host's by now.
    """

    def __init__(
        self, connection: Connection, scope: WriterScope, timeout: float, may_write: Callable[[], None] = lambda: None
    ) -> None:
        self._connection = connection
        self.scope = scope
        self._timeout = timeout
        self._may_write = may_write
        self._more: dict[str, Any] = {}
        """Further arguments of each request of this gate."""

    def _run(
        self,
        what: str,
        method: str,
        path: tuple[str, ...],
        *,
        body: Any = None,
        params: Mapping[str, str | int] | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> Any:
        reply = self._send(method, path, body=body, params=params)
        if on_progress is None:
            return self._connection.wait(reply, what, self._timeout)
        return self._connection.wait(reply, what, self._timeout, on_progress)

    def _send_patiently(self, method: str, path: tuple[str, ...], **more: Any) -> None:
        """As `_send`, and again where others come between; see `retried`."""
        retried(lambda: self._send(method, path, **more))

    def _send(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        body: Any = None,
        data: bytes | None = None,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        etag: str = "",
    ) -> Reply:
        project = self._project_of(method, path, body)
        sent = dict(headers or {})
        if etag:
            sent["If-Match"] = etag
        query = dict(params or {})
        if project:
            query["project"] = project
        return self._connection.request(method, path, params=query, body=body, data=data, headers=sent, **self._more)

    def _project_of(self, method: str, path: tuple[str, ...], body: Any) -> str:
        """The project to send a write to, or an error when it isn't one that the stage may make."""
        if interrupted():  # the stage's locks are given back by now
            raise OperationFailed("the run was interrupted, so nothing more is written", remedy="run it again")
        self._may_write()
        scope, body = self.scope, body or {}
        kind = path[0] if path else ""
        name = path[1] if len(path) > 1 else body.get("name", "")
        straight = not {"", ".", ".."} & set(path)  # HTTP clients resolve these: another path would be written to
        stays = body.get("project", scope.project) == scope.project  # Incus moves an instance to the one named here
        if straight and stays:
            if kind == "projects" and name == scope.project:
                return ""
            of_it = len(path) <= 2 or path[2] == "forwards"
            if kind == "networks" and name == scope.network and name not in scope.production_networks and of_it:
                return HOST_PROJECT
            own_pool = scope.pool and name == scope.pool and name not in scope.production_pools
            if kind == "storage-pools" and own_pool and len(path) <= 2:
                return HOST_PROJECT
            if kind == "network-acls" and name == scope.acl:
                return HOST_PROJECT
            former = {"networks": scope.former_networks - scope.production_networks, "network-acls": scope.former_acls}
            if method == "DELETE" and len(path) == 2 and name in former.get(kind, ()):
                return HOST_PROJECT
            if kind in {"instances", "profiles"} and scope.project not in {scope.source_project, HOST_PROJECT}:
                return scope.project
        raise ProductionProtected(
            f"{method} /1.0/{'/'.join(path)} is not a write to the stage",
            seen=f"the stage is project {scope.project}, network {scope.network}, access list {scope.acl}",
            remedy="this is a bug of pytest-stagegbo: please report it",
        )
