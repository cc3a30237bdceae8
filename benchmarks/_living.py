"""A production that lives while a benchmark runs: it writes to its disk and counts on its cores."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._bench_lab import POOL_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks._bench_lab import BenchLab

__all__ = ["Production", "rate"]

LIVING = "tables"
"""The container of production that the writer and the counters run in."""
FOLDER = "/var/lib/stagegbo-bench"
LONGEST = 3600.0
"""Seconds after which the programs in production end by themselves."""
EVERY = 0.02

# As PostgreSQL writes its log: 8 KiB at a time, over and over in the same file, each waited for.
WRITER = """
import json, os, sys, time
folder, longest, every = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
file = os.open(folder + "/wal", os.O_RDWR | os.O_CREAT, 0o600)
data, found, end = os.urandom(8192), [], time.monotonic() + longest
while not os.path.exists(folder + "/end") and time.monotonic() < end:
    began = time.monotonic()
    os.pwrite(file, data, len(found) % 2048 * 8192)
    os.fsync(file)
    took = time.monotonic() - began
    found.append((began, took))
    time.sleep(max(0, every - took))  # as seldom as PostgreSQL commits
with open(folder + "/writer.new", "w") as stream:
    json.dump(found, stream)
os.rename(folder + "/writer.new", folder + "/writer.json")
"""
COUNTER = """
import json, os, sys, time
folder, longest, name = sys.argv[1], float(sys.argv[2]), sys.argv[3]
count, found, now = 0, [], time.monotonic()
end, due = now + longest, now
while not os.path.exists(folder + "/end") and now < end:
    found.append((now, count))
    due += 0.1
    while now < due:
        for _ in range(5000):
            count += 1
        now = time.monotonic()
    due = max(due, now - 0.1)
with open(f"{folder}/{name}.new", "w") as stream:
    json.dump(found, stream)
os.rename(f"{folder}/{name}.new", f"{folder}/{name}.json")
"""


class Production:
    """What runs in production all the while."""

    def __init__(self, lab: BenchLab, counters: int) -> None:
        self._lab = lab
        self._names = [f"counter{number}" for number in range(counters)]
        self._folder = Path(f"/proc/{lab.lab.status().pid}/root{POOL_PATH}/containers/{LIVING}/rootfs{FOLDER}")
        self._running: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def living(self) -> Iterator[None]:
        self._lab.run("incus", "exec", LIVING, "--", "sh", "-c", f"rm -rf {FOLDER}; mkdir {FOLDER}")
        programs = [[WRITER, FOLDER, str(LONGEST), str(EVERY)]]
        programs += [[COUNTER, FOLDER, str(LONGEST), name] for name in self._names]
        try:
            for script, *words in programs:
                argv = self._lab.lab.exec_argv(["incus", "exec", LIVING, "--", "python3", "-c", script, *words])
                self._running.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))
            yield
        finally:
            (self._folder / "end").touch()
            for process in self._running:
                process.wait(60)

    def latencies(self) -> list[tuple[float, float]]:
        """When each fsync began, and its seconds."""
        return [(began, took) for began, took in json.loads((self._folder / "writer.json").read_text())]

    def counts(self) -> list[list[tuple[float, int]]]:
        """Of each counter, how far it was when."""
        files = [self._folder / f"{name}.json" for name in self._names]
        return [[(at, count) for at, count in json.loads(file.read_text())] for file in files]


def rate(counts: Sequence[tuple[float, int]], begin: float, end: float) -> float:
    """Counted per second between two moments."""
    inside = [each for each in counts if begin <= each[0] <= end]
    if len(inside) < 2:
        return 0.0
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])
