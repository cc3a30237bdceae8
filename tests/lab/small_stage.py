"""A small stage of its own for resets: cache, drive, tables, and a system with nothing but BotUI in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from tests.lab.pollution import ResetTarget

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.services import ask
from pytest_stagegbo.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import CommandResult
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.resets.resetter import Outcome
    from pytest_stagegbo.settings import Settings

PROJECT = "STAGE-RESET"
SETTINGS = """
project = "STAGE-RESET"
incus.endpoint = "{socket}"
network = {{ name = "resetbr0", address = "10.0.17.1/24" }}
timeouts.lock = 60
[containers]
vault = false
llm = false
[containers.system]
units = ["botui"]
needs = []
probes = [{{ protocol = "http", port = 5859, path = "/health" }}]
"""
THREE = ("cache", "drive", "system")

RESETTING = """
import sys
import time
from pathlib import Path
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.settings import load

Lab.find().join_network()
settings = load(Path(sys.argv[1]), Path(), {}).settings
engine = StageEngine(settings, Connection(settings.incus))
engine.reset(sys.argv[2:])
print("begin", flush=True)
while True:
    engine.execute("cache", ["touch", "/opt/gbo/data/valkey/dirty"])
    engine.reset(sys.argv[2:])
"""


class CleanStage:
    """The stage, for calls from a thread in the lab's network."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self.file = folder / "stagegbo.toml"
        self.file.write_text(SETTINGS.format(socket=lab.socket))
        self.settings: Settings = load(self.file, folder, {}).settings
        self.engine = StageEngine(self.settings, Connection(self.settings.incus))
        pool = Path(f"/proc/{lab.status().pid}/root/var/lib/incus/storage-pools/pool/containers")
        self.place = ResetTarget(
            hosts={name: str(self.settings.containers[name].address) for name in ("cache", "drive")},
            rootfs={name: pool / f"{PROJECT}_{name}" / "rootfs" for name in (*THREE, "tables")},
            secrets=lab.credentials(),
            execute=self.execute,
        )

    def provision(self) -> None:
        self.engine.provision()
        self.reset(*THREE)

    def reset(self, *names: str, engine: StageEngine | None = None) -> dict[str, Outcome]:
        return {outcome.name: outcome for outcome in (engine or self.engine).reset(names)}

    def ways(self, *names: str) -> dict[str, str]:
        """Reset; how each was reset."""
        return {name: outcome.way for name, outcome in self.reset(*names).items()}

    def another(self, **ways: str) -> StageEngine:
        """An engine that knows nothing of the first one; `cache="restart"` sets how one is reset."""
        containers = dict(self.settings.containers)
        for name, way in ways.items():
            containers[name] = replace(containers[name], reset=way)
        settings = replace(self.settings, containers=MappingProxyType(containers))
        return StageEngine(settings, Connection(settings.incus))

    def execute(self, name: str, command: list[str]) -> CommandResult:
        return self.engine.execute(name, command)

    def shell(self, name: str, script: str) -> str:
        """What a script printed; it has to succeed."""
        result = self.execute(name, ["sh", "-euc", f"cd /\n{script}"])
        assert result.status == 0, result.stderr
        return result.stdout.strip()

    def sql(self, *queries: str) -> str:
        """What psql printed, asked one after the other."""
        words = ["runuser", "-u", "postgres", "--", "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "botserver"]
        words += [word for query in queries for word in ("-c", query)]
        result = self.execute("tables", words)
        assert result.status == 0, result.stderr
        return result.stdout.strip()

    def start_resetting(self, *names: str) -> subprocess.Popen[str]:
        """A process that pollutes and resets until it is killed; it has done so once."""
        argv = [sys.executable, "-c", RESETTING, str(self.file), *names]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        return process

    def wait(self, *names: str) -> None:
        """Until the services answer."""
        for name in names:
            container = self.settings.containers[name]
            deadline = time.monotonic() + 60
            while not all(ask(probe, str(container.address)).ready for probe in container.probes):
                assert time.monotonic() < deadline, name
                time.sleep(0.01)

    def incus(self, *arguments: str) -> None:
        """Run the `incus` client on the stage's project."""
        argv = self._lab.exec_argv(["incus", "--project", PROJECT, *arguments])
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def state(self) -> Mapping[str, Any]:
        """What a user can tell of cache, drive and system, but for what differs from one start to the next."""
        cache = self.place.cache()
        try:
            found: dict[str, Any] = {
                "config": dict(zip(*[iter(cache.call("CONFIG", "GET", "*"))] * 2, strict=True)),
                "users": cache.call("ACL", "LIST"),
                "functions": cache.call("FUNCTION", "LIST"),
                "channels": cache.call("PUBSUB", "CHANNELS"),
                "slow": cache.call("SLOWLOG", "LEN"),
                "keyspace": cache.call("INFO", "keyspace"),
            }
            info = dict(line.partition(":")[::2] for line in cache.call("INFO", "everything").decode().splitlines())
            names = ("role", "connected_clients", "blocked_clients", "pubsub_channels", "number_of_cached_scripts")
            found |= {name: info[name] for name in (*names, "aof_enabled", "loading", "connected_slaves")}
        finally:
            cache.close()
        found["buckets"] = self.place.drive().buckets()
        for name in THREE:
            container = self.settings.containers[name]
            listing = "find " + " ".join(container.wipe) + r" -printf '%p %y %m %u %g\n' | sort"
            found[f"{name} files"] = self.shell(name, listing)
            units = " ".join(container.units)
            found[f"{name} units"] = self.shell(name, f"systemctl show -p ActiveState -p SubState {units}")
        return found


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()
