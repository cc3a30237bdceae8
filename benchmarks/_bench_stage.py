"""The stage of a lab for benchmarks: made dirty, reset, and reset by hand."""

from __future__ import annotations

import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from benchmarks._bench_lab import POOL_PATH
from msgspec.structs import replace

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.lab.standin.botserver import Cache, Drive
from pytest_stagegbo.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks._bench_lab import BenchLab

    from pytest_stagegbo.resets.resetter import Outcome
    from pytest_stagegbo.settings import Settings

__all__ = ["THREE", "Bench"]

ROOT = Path(__file__).resolve().parent.parent
THREE = ("cache", "drive", "system")
UNITS = {"cache": "valkey", "drive": "minio", "system": "botserver botui"}
DATA = {"cache": "/opt/gbo/data/valkey", "drive": "/opt/gbo/data/minio", "system": "/opt/gbo/work"}


class Bench:
    """The stage of a lab, for calls from a thread in the lab's network.

    Args:
        engine: Of the stage; else one of the settings that the environment makes.
        pool: The folder of the pool that the stage is on.
    """

    def __init__(
        self,
        lab: BenchLab,
        engine: StageEngine | None = None,
        *,
        env: Mapping[str, str] | None = None,
        pool: str = POOL_PATH,
    ) -> None:
        self.lab = lab
        environ = {"STAGEGBO_INCUS__ENDPOINT": str(lab.lab.socket), **(env or {})}
        unseal = {"STAGEGBO_VAULT__UNSEAL_FILE": str(lab.lab.paths.vault_init)}
        self.settings: Settings = engine.settings if engine else load(None, ROOT, {**environ, **unseal}).settings
        self.engine = engine or self.another()
        self._secrets = lab.lab.credentials()
        self._pool = Path(f"/proc/{lab.lab.status().pid}/root{pool}/containers")

    def another(self, **ways: str) -> StageEngine:
        """An engine of its own; `tables="restore"` sets how a container is reset."""
        containers = dict(self.settings.containers)
        for name, way in ways.items():
            containers[name] = replace(containers[name], reset=way)
        settings = replace(self.settings, containers=MappingProxyType(containers))
        return StageEngine(settings, Connection(settings.incus))

    @property
    def _work(self) -> Path:
        return self._pool / f"{self.settings.project}_system" / "rootfs/opt/gbo/work"

    def _host(self, name: str) -> str:
        return str(self.settings.containers[name].address)

    # -- pollution

    def pollute(self, names: Sequence[str], number: int) -> None:
        for name in names:
            getattr(self, f"_{name}")(number)

    def _cache(self, number: int) -> None:
        cache = Cache({**self._secrets["cache"], "host": self._host("cache")})
        for each in range(10):
            cache.call("SET", f"key:{number}:{each}", "x" * 1000)
            cache.call("HSET", f"hash:{number}:{each}", "field", each)
        cache.call("SELECT", 1 + number % 15)
        cache.call("RPUSH", "list", *range(100))
        cache.close()

    def _drive(self, number: int) -> None:
        drive = Drive({**self._secrets["drive"], "host": self._host("drive")})
        drive.call("PUT", f"/bucket{number}")
        for each in range(10):
            drive.call("PUT", f"/bucket{number}/folder{each % 3}/object {each}", body=bytes(10_000))

    def _system(self, number: int) -> None:
        folder = self._work / f"bot{number}.gbai/bot{number}.gbdialog"
        folder.mkdir(parents=True)
        for each in range(20):
            (folder / f"{each}.ast").write_text("{}")
        (folder / ".hidden").write_text("x")

    def pollute_much(self, name: str, count: int) -> None:
        """Files in folders of 500, or objects of 100 bytes."""
        if name == "system":
            for number in range(count // 500):
                folder = self._work / f"bot{number}.gbai/bot{number}.gbdialog"
                folder.mkdir(parents=True)
                for each in range(500):
                    (folder / f"{each}.ast").touch()
            return
        clients = [Drive({**self._secrets["drive"], "host": self._host("drive")}) for _ in range(4)]
        clients[0].call("PUT", "/big")

        def fill(start: int) -> None:
            # One connection each: there are fewer ports than objects.
            with contextlib.closing(HTTPConnection(clients[start].host, clients[start].port, timeout=60)) as kept:
                clients[start].kept = kept
                for each in range(start, count, len(clients)):
                    path = f"/big/folder{each % 40}/object {each}"
                    clients[start].call("PUT", path, body=bytes(100))

        with ThreadPoolExecutor(len(clients)) as threads:
            list(threads.map(fill, range(len(clients))))

    def sql(self, *queries: str, database: str = "botserver") -> str:
        """What psql prints, as the superuser, on the stage's server."""
        words = ["runuser", "-u", "postgres", "--", "psql", "-Xq", database]
        result = self.engine.execute("tables", [*words, *(word for query in queries for word in ("-c", query))])
        if result.status:
            raise RuntimeError(result.stderr)
        return result.stdout

    def template(self, rounds: int) -> list[float]:
        """Seconds of `CREATE DATABASE ... TEMPLATE` and `DROP DATABASE` together, as the server says."""
        self.sql(
            "ALTER DATABASE botserver ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'botserver'",
            database="postgres",
        )
        round_ = ("CREATE DATABASE test TEMPLATE botserver", "DROP DATABASE test")
        shown = self.sql("\\timing on", *(round_ * rounds), database="postgres")
        self.sql("ALTER DATABASE botserver ALLOW_CONNECTIONS true", database="postgres")
        times = [float(time) / 1000 for time in re.findall(r"^Time: ([\d.]+) ms", shown, re.MULTILINE)]
        return [create + drop for create, drop in zip(times[::2], times[1::2], strict=True)]

    def _tables(self, number: int) -> None:
        query = (
            f"INSERT INTO message_history (user_id, content) SELECT 1, 'm' FROM generate_series(1, 1000); "
            f"CREATE TABLE left_over_{number} AS SELECT * FROM message_history; DELETE FROM bot_configuration"
        )
        self.sql(query)

    # -- ways

    def reset(self, names: Sequence[str], engine: StageEngine | None = None) -> tuple[float, tuple[Outcome, ...]]:
        """Seconds of one reset, its proof included, and how it went."""
        began = time.monotonic()
        outcomes = (engine or self.engine).reset(names)
        return time.monotonic() - began, outcomes

    def by_hand(self, names: Sequence[str]) -> float:
        """The documented reset: clear the folder, restart the container, wait until the service answers."""
        began = time.monotonic()
        for name in names:
            clear = f"systemctl stop {UNITS[name]}; rm -rf {DATA[name]}/* {DATA[name]}/.[!.]*"
            self.lab.run("incus", "exec", "--project=STAGE-GBO", name, "--", "sh", "-c", clear)
            self.lab.run("incus", "restart", "--project=STAGE-GBO", name)
            container = self.settings.containers[name]
            self.lab.wait_answering([(name, str(container.address), probe) for probe in container.probes])
        return time.monotonic() - began
