"""Slots: a clean whole stage from the pool, a second stage, and four workers with a stage each.

    sudo python benchmarks/slots.py [--rounds N] [--rival-rounds N] [--suites N] [--tests N] [--json FILE]
                                    [--markdown docs/benchmarks.md] [--keep]

Each against its rival in the same run: a reset in place and by hand, the set-up by hand, one stage for all workers.
Runs on a lab of its own (or `$STAGEGBO_LAB_NAME`), which it brings up and deletes again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a script, and its modules are found by type checkers too

from benchmarks._bench_lab import POOL, BenchLab, bench_lab
from benchmarks._bench_stage import THREE, Bench
from benchmarks._finish import add_outputs, finish
from benchmarks._measure import ProcessorTime, alternate, idle_line, percentile
from benchmarks._table import TableReport
from benchmarks.provision import remove_hand

from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.settings import load
from pytest_stagegbo.slots.fleet import Fleet
from pytest_stagegbo.slots.pool import Pool

if TYPE_CHECKING:
    from rich.console import Console

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.settings import Settings

POOLED = 3
"""Whole stages in the pool, of about 1 GB of memory each."""
WORKERS = 4
POLLUTED = (*THREE, "tables")
AIM_CLEAN = 0.05
AIM_SECOND, HOPE_SECOND = 8, 15
AIM_SHARE = 0.02
IDLE = 0.9
LONGEST_WAIT = 60.0
"""Seconds. For resets, which end."""
HAND = {"PROJECT": "STAGE-HAND", "BRIDGE": "handbr0", "SUBNET": "10.0.90", "POOL": POOL}
SUITE = """
import os, socket, time
import pytest

def ask(service, *words):
    with socket.create_connection((service.host, service.port), 30) as connection:
        for line in (["AUTH", os.environ["BENCH_CACHE"]], words):
            parts = [f"${len(str(word))}\\r\\n{word}\\r\\n" for word in line]
            connection.sendall(f"*{len(parts)}\\r\\n{''.join(parts)}".encode())
            answer = connection.recv(100)
        return answer.decode().strip()

@pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))
@pytest.mark.stage_reset("cache", "drive")
def test_it(number, stage_cache, stage_drive):
    assert ask(stage_cache, "DBSIZE") == ":0"
    ask(stage_cache, "SET", f"key:{number}", "x" * 1000)
    stage_drive.exec("sh", "-c", "mkdir /opt/gbo/data/minio/bucket; echo x >/opt/gbo/data/minio/bucket/object")
    time.sleep(float(os.environ["BENCH_WAIT"]))  # what a test waits for: BotServer compiles, a schedule runs
    assert ask(stage_cache, "DBSIZE") == ":1"
"""
SMALL = """
project = "STAGE-FOUR"
network = {{ name = "fourbr0", address = "10.0.20.1/24" }}
incus.endpoint = "{socket}"
disk_floor = "1GB"
disk_floor_share = 0.0
slots.cores = 0.25
[containers]
system = false
tables = false
vault = false
llm = false
[credentials]
cache = {{ password_env = "BENCH_CACHE" }}
"""


class PoolBench:
    """The pool of a lab, for calls from a thread in the lab's network."""

    def __init__(self, lab: BenchLab) -> None:
        environ = {
            "STAGEGBO_INCUS__ENDPOINT": str(lab.lab.socket),
            "STAGEGBO_VAULT__UNSEAL_FILE": str(lab.lab.paths.vault_init),
            "STAGEGBO_SLOTS__COUNT": str(POOLED),
        }
        settings: Settings = load(None, ROOT, environ).settings
        self.fleet = Fleet(settings, Connection(settings.incus))
        self.fleet.provision(POOLED)
        engines = {number: self.fleet.engine(number) for number in range(POOLED)}
        self.benches = {number: Bench(lab, engine) for number, engine in engines.items()}
        self.pool = Pool(engines, None, _ensured, settings.timeouts.lock)
        self.pool.prepare()
        self.pool.settle(LONGEST_WAIT)

    def rounds(self, rounds: int, *, warm: bool) -> list[float]:
        """Seconds until a clean whole stage is there, its proof included.

        Args:
            warm: Before each round the pool is as it is while tests take longer than resets. Otherwise as fast as
                stages can be had, used up and given back: seconds of a round.
        """
        found = []
        for number in range(rounds):
            if warm:
                self.pool.settle(LONGEST_WAIT)
            began = time.monotonic()
            slot = self.pool.take(f"round {number}")
            taken = time.monotonic() - began
            self.benches[slot.number].pollute(POLLUTED, number)
            self.pool.give_back(slot)
            found.append(taken if warm else time.monotonic() - began)
        self.pool.settle(LONGEST_WAIT)
        if self.pool.failures:
            raise next(iter(self.pool.failures.values()))
        return found

    def in_place(self, rounds: int) -> list[float]:
        """The rival: the same containers of one stage, reset while the test waits."""
        bench = self.benches[0]
        bench.reset(POLLUTED)
        found = []
        for number in range(rounds):
            bench.pollute(POLLUTED, number)
            found.append(bench.reset(POLLUTED)[0])
        return found

    def by_hand(self, rounds: int) -> list[float]:
        """The documented reset of cache, drive and system; it has none for tables."""
        found = []
        for number in range(rounds):
            self.benches[0].pollute(THREE, number)
            found.append(self.benches[0].by_hand(THREE))
        return found


def _ensured(_: StageEngine) -> None:
    """They were provisioned."""


class SecondStage:
    """A second stage, from nothing but the first and the golden copy, and by hand."""

    def __init__(self, lab: BenchLab, patience: float) -> None:
        self._lab = lab
        self._patience = patience
        init = json.loads(lab.lab.vault_init.read_text())
        self._keys = "\n".join(init["unseal_keys_b64"][: init["unseal_threshold"]]) + "\n"
        self.bytes: list[tuple[int, int, int]] = []
        """Of each round: exclusive bytes of the slot's clones, of those by hand, and what production's reference."""
        self._exclusive = {"slot": 0, "hand": 0}

    def slot(self) -> float:
        self._remove("STAGE-GBO-1", "stagebr1")
        self._calm()
        began = time.monotonic()
        self._lab.stagegbo("provision", "--slots", "2")
        seconds = time.monotonic() - began
        self._exclusive["slot"] = self._own("STAGE-GBO-1")
        return seconds

    def by_hand(self) -> float:
        remove_hand(self._lab, HAND)
        self._calm()
        began = time.monotonic()
        self._lab.run("bash", str(ROOT / "benchmarks" / "by_hand.sh"), env=HAND, stdin=self._keys)
        containers = load(None, ROOT, {}).settings.containers.values()
        places = [(each, f"{HAND['SUBNET']}.{each.address.packed[-1]}") for each in containers]
        self._lab.wait_answering([(each.name, place, probe) for each, place in places for probe in each.probes])
        seconds = time.monotonic() - began
        self._exclusive["hand"] = self._own(HAND["PROJECT"])
        remove_hand(self._lab, HAND)
        return seconds

    def note(self) -> None:
        """After a round of both."""
        referenced = sum(each.referenced for each in self._lab.volumes() if "_" not in each.path)
        self.bytes.append((self._exclusive["slot"], self._exclusive["hand"], referenced))

    def _own(self, project: str) -> int:
        return sum(each.exclusive for each in self._lab.volumes() if each.path.startswith(f"containers/{project}_"))

    def _calm(self) -> None:
        self._lab.wait_quiet(self._patience)
        ProcessorTime.wait_idle(IDLE, self._patience)

    def _remove(self, project: str, bridge: str) -> None:
        if project in self._lab.run("incus", "project", "list", "--format", "csv", "--columns", "n").split():
            listed = self._lab.run("incus", "list", "--project", project, "--format", "csv", "--columns", "n")
            if names := listed.split():
                self._lab.run("incus", "delete", "--force", "--project", project, *names)
            self._lab.run("incus", "project", "delete", project)
        if bridge in self._lab.run("incus", "network", "list", "--format", "csv"):
            self._lab.run("incus", "network", "delete", bridge)
            self._lab.run("incus", "network", "acl", "delete", f"{bridge}-isolation")


class Suites:
    """The same tests with a stage for each of four workers, and with one for all."""

    def __init__(self, lab: BenchLab, folder: Path, tests: int) -> None:
        self._folder = folder
        password = lab.lab.credentials()["cache"]["password"]
        self._environ = {**os.environ, "BENCH_CACHE": password, "BENCH_TESTS": str(tests)}
        (folder / "stagegbo.toml").write_text(SMALL.format(socket=lab.lab.socket))
        (folder / "test_suite.py").write_text(SUITE)

    def run(self, slots: int, wait: float) -> float:
        """Seconds of a whole run of pytest."""
        began = time.monotonic()
        argv = [sys.executable, "-m", "pytest", "-q", "--stage-lab", "-p", "no:cacheprovider", "-n", str(WORKERS)]
        done = subprocess.run(
            [*argv, f"--stage-slots={slots}"],
            cwd=self._folder,
            env={**self._environ, "BENCH_WAIT": str(wait)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return time.monotonic() - began

    def destroy(self) -> None:
        argv = [sys.executable, "-m", "pytest_stagegbo", "--lab", "destroy", "--yes"]
        subprocess.run(argv, cwd=self._folder, env=self._environ, capture_output=True, check=True)


class Report(TableReport):
    """What was measured, in seconds and bytes, and what follows from it."""

    def __init__(
        self, times: dict[str, list[float]], sizes: list[tuple[int, int, int]], idle: list[float], version: str
    ) -> None:
        self.times = times
        self.sizes = sizes
        self.idle = idle
        super().__init__(version)

    def headlines(self) -> list[str]:
        def p50(name: str) -> float:
            return percentile(self.times[name], 50)

        clean = self.times["clean stage from the pool"]
        own, hand, referenced = (percentile([each[place] for each in self.sizes], 50) for place in range(3))
        ratio = p50("second stage by hand") / p50("second stage, a slot")
        return [
            f"a clean whole stage from the pool, proof included: p50 {_ms(percentile(clean, 50))}, p95 "
            f"{_ms(percentile(clean, 95))} (aim {_ms(AIM_CLEAN)})",
            f"a second stage is ready {ratio:.1f} times as fast as by hand (medians; aim {AIM_SECOND}, hope "
            f"{HOPE_SECOND})",
            f"it costs {own / 1e6:.0f} MB of the {referenced / 1e6:.0f} MB that its sources reference: "
            f"{own / referenced:.1%} (aim {AIM_SHARE:.0%}); by hand {hand / 1e6:.0f} MB",
            *(
                f"{WORKERS} slots and -n {WORKERS}, {kind}: "
                f"{p50(f'one stage, {kind}') / p50(f'{WORKERS} slots, {kind}'):.1f} times as fast as one stage and "
                f"-n {WORKERS} (medians)"
                for kind in KINDS
            ),
            idle_line(self.idle),
        ]

    columns = ("what", "rounds", "p50", "p95", "fastest", "slowest")

    def rows(self) -> list[list[str]]:
        return [
            [name, str(len(times)), *map(_ms, (percentile(times, 50), percentile(times, 95), min(times), max(times)))]
            for name, times in self.times.items()
        ]

    def to_json(self) -> dict[str, Any]:
        machine = self.machine.to_json()
        return {
            "machine": machine, "incus": self.version, "times": self.times, "bytes": self.sizes, "idle": self.idle
        }  # fmt: skip


KINDS = {"tests that work": 0.0, "tests that wait 0.5 s": 0.5}
"""Suites, and the seconds that each of their tests waits."""


def _ms(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _measure(lab: BenchLab, console: Console, arguments: argparse.Namespace) -> Report:
    times: dict[str, list[float]] = {}
    idle: list[float] = []

    def tell(name: str) -> None:
        console.print(f"{name}: {_ms(percentile(times[name], 50))} ({idle[-1]:.0%} of the cores idle before)")

    lab.stagegbo("destroy", "--yes")
    second = SecondStage(lab, arguments.patience)
    lab.stagegbo("provision", "--slots", "2")
    slots, hands = [], []
    idle.append(ProcessorTime.wait_idle(IDLE, arguments.patience))
    for slot, hand in alternate(arguments.rival_rounds, second.slot, second.by_hand):
        slots.append(slot)
        hands.append(hand)
        second.note()
    times["second stage, a slot"], times["second stage by hand"] = slots, hands
    tell("second stage, a slot")
    tell("second stage by hand")

    with ThreadPoolExecutor(1, initializer=lab.lab.join_network) as inside:
        bench = inside.submit(PoolBench, lab).result()

        def measure(name: str, call: Any, *args: Any, **options: Any) -> None:
            idle.append(ProcessorTime.wait_idle(IDLE, arguments.patience))
            times[name] = inside.submit(call, *args, **options).result()
            tell(name)

        measure("clean stage from the pool", bench.rounds, arguments.rounds, warm=True)
        measure("one after the other, without a pause", bench.rounds, arguments.rounds, warm=False)
        measure("reset in place", bench.in_place, min(arguments.rounds, 20))
        measure("reset by hand (not tables)", bench.by_hand, arguments.rival_rounds)
        inside.submit(bench.pool.close).result()
    lab.stagegbo("destroy", "--yes")

    with tempfile.TemporaryDirectory(prefix="stagegbo-bench-") as folder:
        suites = Suites(lab, Path(folder), arguments.tests)
        suites.run(WORKERS, 0.0)  # provisions
        for kind, wait in KINDS.items():
            idle.append(ProcessorTime.wait_idle(IDLE, arguments.patience))
            pairs = list(
                alternate(
                    arguments.suites,
                    lambda wait=wait: suites.run(WORKERS, wait),  # type: ignore[misc]
                    lambda wait=wait: suites.run(1, wait),  # type: ignore[misc]
                )
            )
            times[f"{WORKERS} slots, {kind}"] = [own for own, _ in pairs]
            times[f"one stage, {kind}"] = [one for _, one in pairs]
            tell(f"{WORKERS} slots, {kind}")
            tell(f"one stage, {kind}")
        suites.destroy()
    return Report(times, second.bytes, idle, lab.lab.status().incus_version)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="of the pool (default 200)")
    parser.add_argument("--rival-rounds", type=int, default=10, help="by hand, and of a second stage (default 10)")
    parser.add_argument("--suites", type=int, default=5, help="runs of each suite (default 5)")
    parser.add_argument("--tests", type=int, default=100, help="in a suite (default 100)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for idle cores (default 60)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.rival_rounds, arguments.suites, arguments.tests) < 1:
        parser.error("--rounds, --rival-rounds, --suites and --tests must be at least 1")

    def measure(console: Console) -> Report:
        with bench_lab(keep=arguments.keep) as lab:
            return _measure(lab, console, arguments)

    return finish(measure, arguments, "slots")


if __name__ == "__main__":
    sys.exit(main())
