"""A shell that is kept open in a container, for commands that must not cost a process of the daemon's each.

A recorded `exec` takes three requests and 15 ms; a call over a kept shell takes one message each way, 0.4 ms and
whatever the command itself takes. The daemon ends the shell when its sockets close, however their process died.
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import TYPE_CHECKING, Protocol

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import OperationFailed
from pytest_stagegbo.workers import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MARK", "STANDARD_STREAMS", "Channel", "ChannelBroken", "Stream", "framed"]

MARK = "STAGEGBO_OWN"
"""A variable in the environment of this tool's own long-lived processes in a container: they are nothing that a test
has left."""
STANDARD_STREAMS = ("0", "1", "2")
"""Sockets that the daemon wants connected before it starts the command; the one for signals it does not wait for."""


def framed(script: str, *, behind: bool = False) -> str:
    """POSIX shell that runs a script in a subshell without standard input, and leaves its status in `$status`.

    Args:
        behind: The script calls `answer` once it is known how it went: the status is 0 then, and the script goes on. It
            stays a child of this shell, so that the container's first process, which would get it otherwise, sleeps on:
            that it slept is how resets know that nobody has started anything.
    """
    if not behind:
        return f"(:\n{script}\n) </dev/null 2>&1; status=$?\n"
    # A signal ends `wait`, but is lost before it: so it is sent to a shell that sleeps.
    return f"""answered=; trap answered=1 USR1
answer() {{
    exec >/dev/null 2>&1
    while read -r shell_pid shell_name shell_state rest </proc/$$/stat && [ "$shell_state" != S ]; do :; done
    kill -s USR1 $$
}}
(:
{script}
) </dev/null 2>&1 &
wait $!
status=$?
[ -z "$answered" ] || status=0
"""


class ChannelBroken(OperationFailed):
    """The shell is gone. Whether the last command was done, nobody knows."""


class Stream(Protocol):
    """One of the sockets of a command that runs in a container."""

    def write(self, data: bytes) -> None: ...

    def read(self, timeout: float) -> bytes:
        """Some bytes; empty when there are none within `timeout` seconds. Raises `ChannelBroken` at the end."""

    def close(self) -> None: ...


class Channel:
    """A POSIX shell in a container, run as root. Safe to share between threads: one command at a time.

    After a fork it belongs to the parent: the child gets `ChannelBroken`, and the parent's sockets stay as they are.

    Args:
        streams: Standard input, output and errors of the shell.
        may_write: Called before each command; raises `LeaseLost` when the stage may be another host's by now.
    """

    def __init__(
        self, name: str, streams: tuple[Stream, Stream, Stream], may_write: Callable[[], None] = lambda: None
    ) -> None:
        self._name = name
        self._streams = streams
        self._may_write = may_write
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._open = True
        self._library = ""

    @property
    def is_open(self) -> bool:
        """Whether a command may be tried. That the shell still lives only the command itself can tell."""
        return self._open and self._owner == os.getpid()

    def run(
        self,
        script: str,
        timeout: float,
        *,
        behind: bool = False,
        library: str = "",
        meanwhile: Callable[[bytes], None] | None = None,
    ) -> tuple[int, bytes]:
        """Run a script in a subshell without standard input.

        Args:
            behind: The script may go on after its answer (`framed`).
            library: Functions, and nothing else, that the script calls. The shell is sent them once: to send and to
                parse them takes longer than most calls.
            meanwhile: Gets what the script has printed so far, each time that there is more.

        Returns:
            Its status, and what it wrote to standard output and standard error.

        Raises:
            ChannelBroken: the shell died, or did not answer within `timeout` seconds: the command may have been
                done, or go on. The channel is closed.
        """
        with self._lock:
            if not self.is_open:
                raise ChannelBroken(f"the shell in {self._name} is closed")
            if interrupted():  # the stage's locks are given back by now
                raise ChannelBroken("the run was interrupted, so nothing more is done", remedy="run it again")
            self._may_write()
            mark = secrets.token_hex(8)
            text = f"{framed(script, behind=behind)}printf '\\n%s %d\\n' {mark} $status\n"
            if library and library != self._library:
                text = f"{library}\n{text}"
            try:
                self._streams[0].write(text.encode())
                found = self._answer(f"\n{mark} ".encode(), clocks.monotonic() + timeout, meanwhile)
            except BaseException:
                self.close()
                raise
            self._library = library or self._library
            return found

    def _answer(self, mark: bytes, deadline: float, meanwhile: Callable[[bytes], None] | None) -> tuple[int, bytes]:
        data, searched = bytearray(), 0
        while True:
            found = data.find(mark, searched)
            if found >= 0 and data.endswith(b"\n", found + len(mark)):
                return int(data[found + len(mark) :]), bytes(data[:found])
            searched = found if found >= 0 else max(0, len(data) - len(mark))
            left = deadline - clocks.monotonic()
            more = self._streams[1].read(left) if left > 0 else b""
            if not more:
                raise ChannelBroken(
                    f"a command in the kept shell of {self._name} did not end in time",
                    seen=bytes(data[-200:]).decode("utf-8", "replace"),
                    remedy="look at the load of the host, and at `incus operation list`",
                )
            data += more
            if meanwhile is not None and mark not in data:
                meanwhile(bytes(data))

    def close(self) -> None:
        """End the shell. Closing twice is fine."""
        self._open = False
        if self._owner == os.getpid():
            for stream in self._streams:
                stream.close()
