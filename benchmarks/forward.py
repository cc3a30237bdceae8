#!/usr/bin/env python3
"""What a connection through the daemon costs beside a direct one: the first byte, and bytes each way, in turns.

Needs root; brings up a lab of its own with a stage in it. Clients are processes of their own, in the lab's network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._bench_lab import bench_lab
from benchmarks._finish import add_outputs, finish
from benchmarks._measure import ProcessorTime, idle_line, percentile
from benchmarks._table import TableReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks._bench_lab import BenchLab
    from rich.console import Console

NAME, ADDRESS, PORT = "cache", "10.0.3.13", 7777
DIRECT, FORWARD = WAYS = "direct", "forward"
AIMS = {"first byte": "< 50 ms", "from the service": "> 150 MB/s", "to the service": "> 150 MB/s", "memory": ""}
IDLE, LONGEST_WAIT = 0.95, 20.0
COLUMNS = ("", *WAYS, "aim")

SERVER = r"""
use strict; use Socket;
my ($port, $seconds) = @ARGV; $SIG{CHLD} = "IGNORE";
socket(my $s, PF_INET, SOCK_STREAM, 0); setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
bind($s, sockaddr_in($port, INADDR_ANY)) or die "bind: $!"; listen($s, 512) or die "listen: $!";
exit if fork;
open STDIN, "</dev/null"; open STDOUT, ">/dev/null"; open STDERR, ">/dev/null"; alarm $seconds;
while (accept(my $c, $s)) {
  next if fork;
  my ($line, $byte) = ("", "");
  while (sysread($c, $byte, 1) && $byte ne "\n") { $line .= $byte; }
  my ($word, $n) = split / /, $line;
  my $block = "x" x 262144;
  if ($word eq "source") {
    while ($n > 0) { my $w = syswrite($c, $block, $n < length $block ? $n : length $block) or last; $n -= $w; }
  } else { my $total = 0; while (my $r = sysread($c, $block, 262144)) { $total += $r; } syswrite($c, "$total\n"); }
  exit;
}
"""
"""Listens in the clone: `source N` sends so many bytes, anything else counts those that come."""
CLIENT = r"""
import json, socket, sys, time
host, port, size, connections = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def ask(line):
    found = socket.create_connection((host, port), 30)
    found.sendall(line)
    return found

with ask(b"source 1\n") as one:
    one.recv(1)
first = []
for _ in range(connections):
    began = time.perf_counter()
    with ask(b"source 1\n") as one:
        assert one.recv(1)
    first.append(time.perf_counter() - began)
buffer, total, began = bytearray(1 << 20), 0, time.perf_counter()
with ask(b"source %d\n" % size) as one:
    while got := one.recv_into(buffer):
        total += got
assert total == size
down = size / (time.perf_counter() - began)
began = time.perf_counter()
with ask(b"sink\n") as one:
    for _ in range(size >> 20):
        one.sendall(buffer)
    one.shutdown(socket.SHUT_WR)
    assert int(one.recv(100)) == size >> 20 << 20
print(json.dumps({"first": first, "down": down, "up": size / (time.perf_counter() - began)}))
"""


class Report(TableReport):
    """Rounds by way."""

    columns = COLUMNS
    title = "A further connection, p50; one connection's bytes, p50"

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        self.idle: list[float] = []
        self.memory = 0
        """Bytes that the forwarding process had at most."""

    def headlines(self) -> list[str]:
        return [idle_line(self.idle)]

    def rows(self) -> list[list[str]]:
        firsts = {way: [each for one in self.rounds[way] for each in one["first"]] for way in WAYS}
        first = [f"{percentile(firsts[way], 50) * 1000:.2f} ms" for way in WAYS]
        down, up = (
            [f"{percentile([one[key] for one in self.rounds[way]], 50) / 1e6:.0f} MB/s" for way in WAYS]
            for key in ("down", "up")
        )
        memory = ["", f"{self.memory / 1e6:.0f} MB"]
        cells = dict(zip(AIMS, (first, down, up, memory), strict=True))
        return [[name, *cells[name], AIMS[name]] for name in AIMS]

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "incus": self.version,
            "idle_before": self.idle,
            "memory": self.memory,
            "rounds": self.rounds,
        }


@contextlib.contextmanager
def _forwarding(lab: BenchLab) -> Iterator[tuple[int, int]]:
    """The command `forward`: its process, and its port."""
    argv = [sys.executable, "-m", "pytest_stagegbo", "--lab", "forward", f"{NAME}:{PORT}", "--env"]
    assert lab.lab.paths.name
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            lines = dict(process.stdout.readline().strip().split("=", 1) for _ in range(3))
            yield process.pid, int(lines[f"STAGEGBO_ENDPOINT_{NAME.upper()}_PORT"])
        finally:
            process.terminate()


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _measure(lab: BenchLab, console: Console, rounds: int, size: int, connections: int) -> Report:
    lab.stagegbo("provision")
    lab.stagegbo("exec", NAME, "--", "perl", "-e", SERVER, str(PORT), "900")
    report = Report(lab.lab.status().incus_version)
    with _forwarding(lab) as (pid, port):
        places = {DIRECT: (ADDRESS, PORT), FORWARD: ("127.0.0.1", port)}
        for number in range(rounds):
            report.idle.append(ProcessorTime.wait_idle(IDLE, LONGEST_WAIT))
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                words = [places[way][0], str(places[way][1]), str(size), str(connections)]
                report.rounds[way].append(json.loads(lab.run(sys.executable, "-c", CLIENT, *words)))
            shown = "; ".join(
                f"{way} {report.rounds[way][-1]['down'] / 1e6:.0f} and {report.rounds[way][-1]['up'] / 1e6:.0f} MB/s"
                for way in WAYS
            )
            console.print(f"round {number + 1}: {shown}", markup=False)
        report.memory = _peak(pid)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each way (default 5)")
    parser.add_argument("--size", type=int, default=1000, help="megabytes each way in a round (default 1000)")
    parser.add_argument("--connections", type=int, default=100, help="in a round, one after the other (default 100)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.size, arguments.connections) < 1:
        parser.error("--rounds, --size and --connections must be at least 1")
    os.environ.pop("STAGEGBO_NETWORK__REACH", None)

    def measure(console: Console) -> Report:
        with bench_lab(keep=arguments.keep) as lab:
            return _measure(lab, console, arguments.rounds, arguments.size * 1_000_000, arguments.connections)

    return finish(measure, arguments, "forward")


if __name__ == "__main__":
    sys.exit(main())
