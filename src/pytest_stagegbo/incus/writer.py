"""Every write to the daemon that this package can make. Each of them passes the gate (`gate.py`)."""

from __future__ import annotations

import contextlib
import posixpath
import threading
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import OperationFailed, ServerRefused
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.channel import MARK
from pytest_stagegbo.incus.gate import HOST_PROJECT, Gate
from pytest_stagegbo.incus.records import CommandResult
from pytest_stagegbo.incus.start_log import not_started
from pytest_stagegbo.workers import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pytest_stagegbo.incus.channel import Channel
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.gate import WriterScope
    from pytest_stagegbo.incus.message_socket import MessageSocket

__all__ = ["Writer"]

NOT_STARTED = {126: "it can't be executed", 127: "there is no such program"}
"""What a status means where nothing was printed. Incus takes these from shells."""
_SHELL = {
    "environment": {
        MARK: "1",
        "LC_ALL": "C",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    },
    "cwd": "/",
    "wait-for-websocket": True,
    "interactive": False,
}
"""The request for a command whose streams are connected."""


class Writer(Gate):
    """Writes to one stage. Safe to share between threads.

    Args:
        timeout: Seconds that one background operation may take.
    """

    def __init__(self, connection: Connection, scope: WriterScope, timeout: float) -> None:
        super().__init__(connection, scope, timeout)
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

    def create_network(self, config: Mapping[str, str], description: str) -> None:
        body = {"name": self.scope.network, "type": "bridge", "config": dict(config), "description": description}
        self._send_patiently("POST", ("networks",), body=body)

    def replace_network(self, config: Mapping[str, str], description: str) -> None:
        etag = self._connection.get_reply("networks", self.scope.network, project=HOST_PROJECT).etag
        body = {"config": dict(config), "description": description}
        self._send("PUT", ("networks", self.scope.network), body=body, etag=etag)

    def delete_network(self, former: str = "") -> None:
        """The stage's bridge, or one that it had under another name."""
        self._send_patiently("DELETE", ("networks", former or self.scope.network))

    def create_forward(self, body: Mapping[str, Any]) -> None:
        """A network forward on the stage's bridge."""
        self._send("POST", ("networks", self.scope.network, "forwards"), body=dict(body))

    def delete_forward(self, listen: str) -> None:
        """One that is gone already is fine."""
        try:
            self._send("DELETE", ("networks", self.scope.network, "forwards", listen))
        except ServerRefused as error:
            if error.status != 404:
                raise

    def create_acl(self, body: Mapping[str, Any]) -> None:
        self._send("POST", ("network-acls",), body={**body, "name": self.scope.acl})

    def replace_acl(self, body: Mapping[str, Any]) -> None:
        etag = self._connection.get_reply("network-acls", self.scope.acl, project=HOST_PROJECT).etag
        self._send("PUT", ("network-acls", self.scope.acl), body=dict(body), etag=etag)

    def delete_acl(self, former: str = "") -> None:
        """The stage's access list, or one that it had under another name."""
        self._send("DELETE", ("network-acls", former or self.scope.acl))

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
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """Clone an instance of the source project, without its snapshots.

        Config keys set to an empty string and devices of type `none` take the source's away: Incus merges the
        source's own config below what the request names. `allow_inconsistent` keeps Incus from freezing the
        source on pools without snapshots; on the others it changes nothing. A project's restrictions refuse low-level
        keys even in a request that takes them away: that one is lifted for the length of the copy.

        Args:
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
                "project": self.scope.source_project,
                "instance_only": True,
                "allow_inconsistent": True,
            },
        }
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
            if action not in {"start", "restart"} or dialect.is_busy(error) or dialect.runs_already(error):
                raise
            raise not_started(self._connection, self.scope.project, name, error) from None

    def delete_instance(self, name: str) -> None:
        """Delete a stopped instance. One that is gone already is fine."""
        try:
            self._run(f"deleting {name}", "DELETE", ("instances", name))
        except ServerRefused as error:
            if error.status != 404:
                raise

    # -- files and commands inside an instance

    def put_file(self, name: str, path: str, content: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Write a file, replacing one that exists. Its folder must exist."""
        headers = dialect.file_headers(type="file", mode=f"{mode:04o}", uid=str(uid), gid=str(gid), write="overwrite")
        self._send("POST", ("instances", name, "files"), params={"path": path}, data=content, headers=headers)

    def place_at_first_start(self, name: str, path: str, content: str, *, mode: int) -> None:
        """Have the daemon write a file of root's, and the folders that it is in, when a stopped instance with
        `dialect.FIRST_START` starts. It replaces all that the instance's image has of that kind.

        Other than `put_file` it takes no process of the daemon's and no write of the whole pool. The daemon follows
        links in the container as if they were the host's (before 6.0.6): no part of `path` may be one.
        """
        template = "stagegbo.tpl"
        written = {
            "when": list(dialect.FIRST_START.values()),
            "template": template,
            "mode": f"{mode:04o}",
            "uid": "0",
            "gid": "0",
        }
        self._send("PUT", ("instances", name, "metadata"), body={"templates": {path: written}})
        text = dialect.as_template(content).encode()
        self._send("POST", ("instances", name, "metadata", "templates"), params={"path": template}, data=text)

    def delete_file(self, name: str, path: str) -> None:
        """Delete a file, a link or an empty folder. One that is gone already is fine."""
        try:
            self._send("DELETE", ("instances", name, "files"), params={"path": path})
        except ServerRefused as error:
            if error.status != 404:
                raise

    def execute(self, name: str, command: Sequence[str], *, timeout: float | None = None) -> CommandResult:
        """Run a command in a running instance and return its output.

        The output is recorded by the daemon and deleted there once read. One round trip each for the start, the
        wait and the outputs; pylxd's own `execute` polls every 0.1 s.
        """
        body = {"command": list(command), "record-output": True, "wait-for-websocket": False, "interactive": False}
        reply = self._send("POST", ("instances", name, "exec"), body=body)
        what = f"{command[0]} in {name}"
        metadata = self._connection.wait(reply, what, self._timeout if timeout is None else timeout)
        if metadata is None:
            raise OperationFailed(f"{what} ended without a result", remedy="run it again")
        recorded = metadata.get("output") or {}
        texts = []
        for stream in ("1", "2"):
            file_name = posixpath.basename(recorded.get(stream, ""))
            texts.append(self._recorded(name, file_name) if file_name else "")
        status = int(metadata.get("return", -1))
        if status in NOT_STARTED and not any(texts):
            texts[1] = f"{command[0]}: {NOT_STARTED[status]}\n"
        return CommandResult(status, texts[0], texts[1])

    def feed(self, name: str, script: str, content: Iterable[bytes], *, patience: float) -> CommandResult:
        """Run a shell script in a running instance with something on its standard input, piece by piece.

        Not a file of the API: the daemon's own process for those writes everything on the pool to its disk in the end,
        production's data too (`syncfs`), and production waits for that.

        Args:
            content: Is not asked for more once the script has printed something.
            patience: Seconds without any progress.

        Raises:
            ChannelBroken: it could not be started.
            OperationFailed: it has no status: the instance stopped, perhaps.
        """
        from pytest_stagegbo.incus.channel import ChannelBroken

        body = {**_SHELL, "command": ["sh", "-c", script]}
        reply = self._send("POST", ("instances", name, "exec"), body=body)
        streams = self._connection.streams(reply)
        said = bytearray()
        try:
            with contextlib.suppress(ChannelBroken):  # its status tells why it ended
                for piece in content:
                    if interrupted():
                        raise OperationFailed(
                            "the run was interrupted, so nothing more is written", remedy="run it again"
                        )
                    streams[0].write(piece)
                    said += streams[1].read(0)
                    if said:
                        break
            with contextlib.suppress(ChannelBroken):  # which is how it ends
                while more := streams[1].read(patience):
                    said += more
        finally:
            for stream in streams:
                stream.close()
        what = f"a script in {name}"
        metadata = self._connection.wait(reply, what, self._timeout)
        if metadata is None:
            raise OperationFailed(f"{what} ended without a result", remedy="run it again")
        return CommandResult(int(metadata.get("return", -1)), said.decode("utf-8", "replace"), "")

    def channel(self, name: str) -> Channel:
        """A shell in a running instance that is kept open, for many commands. Takes 25 ms; close it in the end.

        Raises:
            ServerRefused: the instance is not there, or does not run.
            ChannelBroken: the shell can't be reached.
        """
        from pytest_stagegbo.incus.channel import Channel

        body = {**_SHELL, "command": ["sh"]}
        reply = self._send("POST", ("instances", name, "exec"), body=body)
        return Channel(name, self._connection.streams(reply))

    def sockets(self, name: str, command: Sequence[str]) -> tuple[MessageSocket, MessageSocket, MessageSocket]:
        """Start a command in a running instance; its standard input, output and errors, for who waits for many.

        Raises as `channel`."""
        reply = self._send("POST", ("instances", name, "exec"), body={**_SHELL, "command": list(command)})
        return self._connection.sockets(reply)

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

    def _recorded(self, name: str, file_name: str) -> str:
        path = ("instances", name, "logs", "exec-output", file_name)
        content = self._connection.read_bytes(*path, project=self.scope.project)
        self._send("DELETE", path)
        return content.decode("utf-8", "replace")
