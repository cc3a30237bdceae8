"""Programs that run as if on hosts of their own: each has a folder of locks, a clock on the wall, and the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

OWN_LOCKS = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o mode=1777 none /run/lock && exec "$@"', "sh"]
"""Begins a command that has the kernel's locks to itself, as on another host."""

PRELUDE = """
import json, os, sys, time
from pathlib import Path
from pytest_stagegbo import clocks, locks
from pytest_stagegbo.engine.leasing import host_lease_of
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import LeaseLost, StageGboError
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.settings import IncusSettings, Settings, TimeoutSettings

given = json.loads(sys.argv[1])
locks.PARENTS = (Path(given["locks"]),)
wall = clocks.now
clocks.now = lambda: wall() + given["clock"]
settings = Settings(
    project=given["project"],
    incus=IncusSettings(endpoint=given["endpoint"]),
    timeouts=TimeoutSettings(lease=given["seconds"], lock=given["patience"]),
)
engine = StageEngine(settings, Connection(settings.incus))

def say(*words):
    print(*words, flush=True)
"""


class HostProgram:
    """A program on a host of its own; its lines are read as they come."""

    def __init__(self, folder: Path, project: str, script: str, **given: Any) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)
        values: dict[str, Any] = {"clock": 0, "seconds": 60.0, "patience": 60.0}
        values |= {"locks": str(folder), "project": project, **given}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script, json.dumps(values)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )

    def line(self) -> str:
        """The next line. An empty one: it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, text: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Close its standard input, and wait for its end; its status."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return self.process.wait(60)


class Line:
    """A way to the daemon's socket that can be cut: nothing gets through then, and nobody is told."""

    def __init__(self, path: Path, endpoint: str) -> None:
        self.path = path
        self._endpoint = endpoint
        self._whole = threading.Event()
        self._whole.set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(20)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.mend()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        """Connect when there is something to send: a client that connects and is silent keeps all others waiting."""
        far = socket.socket(socket.AF_UNIX)
        self._sockets.append(far)
        connected = False
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                self._whole.wait()
                if not connected:
                    far.connect(self._endpoint)
                    connected = True
                    threading.Thread(target=self._answer, args=(far, near), daemon=True).start()
                far.sendall(data)
        far.close()

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                self._whole.wait()
                near.sendall(data)
            near.shutdown(socket.SHUT_WR)
