"""Every write to the daemon that this package can make. Each of them passes the gate (`gate.py`)."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import MemberAway, OperationFailed, ServerRefused
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.gate import HOST_PROJECT
from pytest_stagegbo.incus.instance_writer import InstanceWriter
from pytest_stagegbo.incus.retries import retried
from pytest_stagegbo.incus.start_log import not_started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.gate import WriterScope

__all__ = ["Writer"]


class Writer(InstanceWriter):
    """Writes to one stage. Safe to share between threads.

    Args:
        timeout: Seconds that one background operation may take.
        may_write: See `Gate`.
    """

    def __init__(
        self, connection: Connection, scope: WriterScope, timeout: float, may_write: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(connection, scope, timeout, may_write)
        self._restrictions = threading.Lock()

    # -- project, network, access list, profile

    def create_project(self, own_networks: Mapping[str, str], shared: Mapping[str, str], description: str) -> bool:
        """Make the project, with networks of its own where the server lets it have them; whether it does.

        Args:
            own_networks: Its config with networks of its own.
            shared: Its config with those of project `default`.
        """

        def create(config: Mapping[str, str]) -> None:
            body = {"name": self.scope.project, "description": description, "config": dict(config)}
            self._send("POST", ("projects",), body=body)

        try:
            create(own_networks)
        except ServerRefused as error:
            if not dialect.refuses_own_networks(error):
                raise
            create(shared)
            return False
        return True

    def replace_project(self, config: Mapping[str, str], description: str) -> None:
        """Write the whole project: Incus loses keys on PATCH. Fails when it changed in between."""
        etag = self._connection.get_reply("projects", self.scope.project).etag
        body = {"description": description, "config": dict(config)}
        self._send("PUT", ("projects", self.scope.project), body=body, etag=etag)

    def delete_project(self) -> None:
        self._send("DELETE", ("projects", self.scope.project))

    def create_network(self, config: Mapping[str, str], description: str, members: Iterable[str] = ()) -> None:
        """Make the bridge.

        Args:
            members: All of the cluster's. The bridge is announced for each first, by its name alone: a cluster makes
                no bridge that lacks one, and Incus 7.0 refuses a description then.
        """
        named = {"name": self.scope.network, "type": "bridge"}
        for member in members:
            self._send("POST", ("networks",), body={**named, "config": {}}, params={"target": member})
        self._send_patiently("POST", ("networks",), body={**named, "config": dict(config), "description": description})

    def replace_network(self, config: Mapping[str, str], description: str) -> None:
        etag = self._connection.get_reply("networks", self.scope.network, project=HOST_PROJECT).etag
        body = {"config": dict(config), "description": description}
        self._send("PUT", ("networks", self.scope.network), body=body, etag=etag)

    def delete_network(self, former: str = "") -> None:
        """The stage's bridge, or one that it had under another name."""
        self._send_patiently("DELETE", ("networks", former or self.scope.network))

    def create_forward(self, body: Mapping[str, Any]) -> None:
        """A network forward on the stage's bridge: of one member, in a cluster."""
        self._send("POST", ("networks", self.scope.network, "forwards"), body=dict(body), params=self._there())

    def delete_forward(self, listen: str) -> None:
        """One that is gone already is fine."""
        try:
            self._send("DELETE", ("networks", self.scope.network, "forwards", listen), params=self._there())
        except ServerRefused as error:
            if error.status != 404:
                raise

    def _there(self) -> dict[str, str | int]:
        return {"target": self.scope.member} if self.scope.member else {}

    def create_acl(self, body: Mapping[str, Any]) -> None:
        self._send("POST", ("network-acls",), body={**body, "name": self.scope.acl})

    def replace_acl(self, body: Mapping[str, Any]) -> None:
        path = ("network-acls", self.scope.acl)
        etag = retried(lambda: self._connection.get_reply(*path, project=HOST_PROJECT)).etag
        self._send_patiently("PUT", path, body=dict(body), etag=etag)

    def delete_acl(self, former: str = "") -> None:
        """The stage's access list, or one that it had under another name."""
        self._send_patiently("DELETE", ("network-acls", former or self.scope.acl))

    def replace_default_profile(self, config: Mapping[str, str], devices: Mapping[str, Any], description: str) -> None:
        body = {"config": dict(config), "devices": dict(devices), "description": description}
        self._send("PUT", ("profiles", "default"), body=body)

    # -- a pool of the stage's own

    def create_pool(self, driver: str, config: Mapping[str, str], description: str) -> None:
        body = {"name": self.scope.pool, "driver": driver, "config": dict(config), "description": description}
        self._send("POST", ("storage-pools",), body=body)

    def delete_pool(self) -> None:
        self._send("DELETE", ("storage-pools", self.scope.pool))

    # -- instances

    def copy_instance(
        self,
        name: str,
        source: str,
        *,
        config: Mapping[str, str],
        devices: Mapping[str, Any],
        target: str = "",
        architecture: str = "",
        project: str = "",
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """Clone an instance of the source project, without its snapshots.

        Config keys set to an empty string and devices of type `none` take the source's away: Incus merges the
        source's own config below what the request names. `allow_inconsistent` keeps Incus from freezing the
        source on pools without snapshots; on the others it changes nothing. A project's restrictions refuse low-level
        keys even in a request that takes them away: that one is lifted for the length of the copy.

        Args:
            architecture: The source's, which Incus wants to be told where it copies to another member of a cluster.
            project: Of the source, instead of the source project.
            on_progress: Called with the daemon's words on how much of a full copy is done. Such a copy may take as long
                as it makes progress.
        """
        body = {
            "name": name,
            "profiles": ["default"],
            "config": dict(config),
            "devices": dict(devices),
            "ephemeral": False,
            "source": {
                "type": "copy",
                "source": source,
                "project": project or self.scope.source_project,
                "instance_only": True,
                "allow_inconsistent": True,
            },
        }
        if architecture:
            body["architecture"] = architecture
        params = {"target": target} if target else {}

        def copy() -> None:
            self._run(
                f"copying {source} to {name}", "POST", ("instances",), body=body, params=params, on_progress=on_progress
            )

        self._with_low_level(copy)

    def refresh_instance(
        self,
        name: str,
        source: str,
        *,
        config: Mapping[str, str],
        devices: Mapping[str, Any],
        project: str = "",
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """Make the files of a stopped clone those that its source has now; only what differs is copied.

        Incus changes nothing of the clone's configuration. It may be repeated: what an earlier try has copied is there.

        Args:
            source: An instance, or a snapshot of one (`NAME/SNAPSHOT`).
            config: As for a copy: Incus does not set it, and yet refuses what the source has and the project may not.
            devices: Likewise.
            project: Of the source, instead of the source project.
        """
        body = {
            "name": name,
            "config": dict(config),
            "devices": dict(devices),
            "source": {
                "type": "copy",
                "source": source,
                "project": project or self.scope.source_project,
                "instance_only": True,
                "allow_inconsistent": True,
                "refresh": True,
            },
        }

        def refresh() -> None:
            self._run(f"refreshing {name} from {source}", "POST", ("instances",), body=body, on_progress=on_progress)

        self._with_low_level(refresh)

    def _with_low_level(self, request: Callable[[], None]) -> None:
        """Make a request, again without the restriction of low-level keys if that is what it is refused for."""
        try:
            request()
        except (OperationFailed, ServerRefused) as error:
            if not dialect.refuses_low_level(error):
                raise
            with self._low_level_allowed():
                request()

    @contextlib.contextmanager
    def _low_level_allowed(self) -> Iterator[None]:
        """Lift a restriction of the project while the block runs. If this process is killed in it, the next plan
        finds it lifted and puts it back."""
        with self._restrictions:
            found = self._connection.get("projects", self.scope.project)
            config, description = {**found["config"], dialect.LOW_LEVEL: "block"}, found.get("description", "")
            self.replace_project({**config, dialect.LOW_LEVEL: "allow"}, description)
            try:
                yield
            finally:
                self.replace_project(config, description)

    def set_instance_config(self, name: str, config: Mapping[str, str]) -> None:
        """Set config keys of an instance; an empty string unsets one."""
        self._run(f"changing {name}", "PATCH", ("instances", name), body={"config": dict(config)})

    def set_instance_devices(self, name: str, devices: Mapping[str, Any]) -> None:
        """Replace devices of an instance; those not named stay."""
        self._run(f"changing the devices of {name}", "PATCH", ("instances", name), body={"devices": dict(devices)})

    def set_state(self, name: str, action: str, *, force: bool = False, seconds: int = 30) -> None:
        """`start`, `stop`, `restart`, `freeze` or `unfreeze`. `seconds` is how long a clean stop may take. One that has
        stopped already, as a run that was killed had asked, is fine."""
        body = {"action": action, "force": force, "timeout": seconds}
        try:
            self._run(f"{action} of {name}", "PUT", ("instances", name, "state"), body=body)
        except (OperationFailed, ServerRefused) as error:
            if action == "stop" and dialect.is_stopped_already(error):
                return
            told = isinstance(error, MemberAway) or dialect.is_busy(error) or dialect.runs_already(error)
            if told or action not in {"start", "restart"}:
                raise
            raise not_started(self._connection, self.scope.project, name, error) from None

    def delete_instance(self, name: str) -> None:
        """Delete a stopped instance. One that is gone already is fine."""
        try:
            self._run(f"deleting {name}", "DELETE", ("instances", name))
        except ServerRefused as error:
            if error.status != 404:
                raise

    # -- snapshots

    def snapshot_instance(self, name: str, snapshot: str) -> None:
        """Take a snapshot of an instance. One of that name is an error."""
        body = {"name": snapshot, "stateful": False}
        self._run(f"taking snapshot {snapshot} of {name}", "POST", ("instances", name, "snapshots"), body=body)

    def restore_instance(self, name: str, snapshot: str) -> None:
        """Bring a stopped instance, its configuration included, back to a snapshot.

        Incus gives a restored instance a new `volatile.uuid.generation`, a low-level key, and refuses to restore one
        again that has another than its snapshot: the restriction is lifted for that.
        """

        def restore() -> None:
            self._run(f"restoring {name} to {snapshot}", "PUT", ("instances", name), body={"restore": snapshot})

        self._with_low_level(restore)
