"""Programs that run as if on hosts of their own: each has a folder of locks, a clock on the wall, and the daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

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

    def __init__(self, folder: Path, endpoint: str, project: str, script: str, **given: Any) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)
        values: dict[str, Any] = {"clock": 0, "seconds": 60.0, "patience": 60.0}
        values |= {"locks": str(folder), "endpoint": endpoint, "project": project, **given}
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
