"""Writes of files, and commands, inside the instances of one stage."""

from __future__ import annotations

import contextlib
import posixpath
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import OperationFailed, ServerRefused
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.channel import MARK
from pytest_stagegbo.incus.gate import Gate
from pytest_stagegbo.incus.records import CommandResult
from pytest_stagegbo.workers import interrupted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_stagegbo.incus.channel import Channel
    from pytest_stagegbo.incus.message_socket import MessageSocket

__all__ = ["InstanceWriter"]

NOT_STARTED = {126: "it can't be executed", 127: "there is no such program"}
"""What a status means where nothing was printed. Incus takes these from shells."""

_ENDED = "\nended\n"
_AND_WAIT = f"\nstatus=$?\nprintf '{_ENDED}'\ncat >/dev/null\nexit $status"
"""After a script in a subshell: says that it has ended, and waits for the end of the input."""
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


class InstanceWriter(Gate):
    """Writes files and runs commands inside instances of one stage. Safe to share between threads."""

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

    def execute(
        self, name: str, command: Sequence[str], *, timeout: float | None = None, record: bool = True
    ) -> CommandResult:
        """Run a command in a running instance and return its output.

        The output is recorded by the daemon and deleted there once read. One round trip each for the start, the
        wait and the outputs; pylxd's own `execute` polls every 0.1 s.

        Args:
            record: False where nobody wants the output: two requests instead of six.
        """
        body = {"command": list(command), "record-output": record, "wait-for-websocket": False, "interactive": False}
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

        The daemon may lose what a command prints at its end. So the shell says that the script has ended, and waits for
        the end of its input before it ends itself.

        Args:
            content: Is not asked for more once the script has printed something.
            patience: Seconds without any progress.

        Raises:
            ChannelBroken: it could not be started.
            OperationFailed: it has no status: the instance stopped, perhaps.
        """
        from pytest_stagegbo.incus.channel import ChannelBroken

        body = {**_SHELL, "command": ["sh", "-c", f"(\n{script}\n){_AND_WAIT}"]}
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
                while True:
                    if said:  # it wants no more, but may wait for the end of what it was sent
                        streams[0].close()
                    if not (more := streams[1].read(patience)):
                        break
                    said += more
        finally:
            for stream in streams:
                stream.close()
        what = f"a script in {name}"
        metadata = self._connection.wait(reply, what, self._timeout)
        if metadata is None:
            raise OperationFailed(f"{what} ended without a result", remedy="run it again")
        printed = said.decode("utf-8", "replace").removesuffix(_ENDED)
        return CommandResult(int(metadata.get("return", -1)), printed, "")

    def output(self, name: str, script: str, size: int, *, patience: float) -> Iterator[bytes]:
        """The bytes that a shell script in a running instance prints, piece by piece.

        The script is kept from ending until all of them are here: the daemon may lose what a command prints at its end.

        Args:
            size: How many they are.
            patience: Seconds without any progress.

        Raises:
            ChannelBroken: it could not be started, or ended before.
            OperationFailed: it printed nothing for so long, or failed.
        """
        from pytest_stagegbo.incus.channel import ChannelBroken

        body = {**_SHELL, "command": ["sh", "-c", f"(\n{script}\n) && read -r _"]}
        reply = self._send("POST", ("instances", name, "exec"), body=body)
        streams = self._connection.streams(reply)
        left, more = size, b"-"
        try:
            while left > 0 and more:
                more = streams[1].read(patience)
                left -= len(more)
                yield more
            streams[0].write(b"\n")
            with contextlib.suppress(ChannelBroken):  # which is how it ends
                while streams[1].read(patience):
                    pass
        finally:
            for stream in streams:
                stream.close()
        metadata = self._connection.wait(reply, f"a script in {name}", self._timeout)
        if left or metadata is None or metadata.get("return"):
            raise OperationFailed(f"a script in {name} did not print {size} bytes", remedy="run it again")

    def channel(self, name: str) -> Channel:
        """A shell in a running instance that is kept open, for many commands. Takes 25 ms; close it in the end.

        Raises:
            ServerRefused: the instance is not there, or does not run.
            ChannelBroken: the shell can't be reached.
        """
        from pytest_stagegbo.incus.channel import Channel

        body = {**_SHELL, "command": ["sh"]}
        reply = self._send("POST", ("instances", name, "exec"), body=body)
        return Channel(name, self._connection.streams(reply), self._may_write)

    def sockets(self, name: str, command: Sequence[str]) -> tuple[MessageSocket, MessageSocket, MessageSocket]:
        """Start a command in a running instance; its standard input, output and errors, for who waits for many.

        Raises as `channel`."""
        reply = self._send("POST", ("instances", name, "exec"), body={**_SHELL, "command": list(command)})
        return self._connection.sockets(reply)

    def _recorded(self, name: str, file_name: str) -> str:
        path = ("instances", name, "logs", "exec-output", file_name)
        content = self._connection.read_bytes(*path, project=self.scope.project)
        self._send("DELETE", path)
        return content.decode("utf-8", "replace")
