"""A lab for benchmarks alone, beside the one that people and tests use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.console import console_progress
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.services import ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_stagegbo.settings import ProbeSettings

__all__ = ["BenchLab", "Volume", "bench_lab"]

NAME = "bench"
POOL = "pool"
"""Of the lab's production."""
POOL_PATH = f"/var/lib/incus/storage-pools/{POOL}"
ASK_EVERY = 0.02


@dataclass(frozen=True, slots=True)
class Volume:
    """Bytes of one btrfs subvolume."""

    path: str
    """Below the pool: `containers/tables`, or `containers/STAGE-GBO_tables` in a project other than default."""
    referenced: int
    exclusive: int
    """Shared with no other subvolume."""


@contextlib.contextmanager
def bench_lab(*, keep: bool) -> Iterator[BenchLab]:
    """The lab `bench` (or `$STAGEGBO_LAB_NAME`), brought up.

    One that was there before stays; one made here is deleted afterwards, unless `keep`. It has ordinary quotas, as
    Incus sets up a pool anywhere, and since the bytes of sources are counted with them.
    """
    os.environ.setdefault("STAGEGBO_LAB_NAME", NAME)
    lab = Lab.find()
    existed = lab.paths.lab.exists()
    try:
        with console_progress() as progress:
            lab.up(progress, quota="" if existed else "ordinary")
        with ThreadPoolExecutor(1, initializer=lab.join_network) as inside:
            yield BenchLab(lab, inside)
    finally:
        if not (keep or existed):
            lab.down(purge=True)


class BenchLab:
    """What benchmarks do with a lab that is up.

    Args:
        inside: One thread, in the lab's network.
    """

    def __init__(self, lab: Lab, inside: ThreadPoolExecutor) -> None:
        self.lab = lab
        self._inside = inside
        self._pid = lab.status().pid

    def run(self, *argv: str, env: Mapping[str, str] | None = None, stdin: str = "", check: bool = True) -> str:
        """Run a command in the lab's network, aimed at its Incus; what it printed on standard output."""
        return self._run(self.lab.exec_argv(argv), env=env, stdin=stdin, check=check)

    def stagegbo(self, *arguments: str, env: Mapping[str, str] | None = None, check: bool = True) -> str:
        """Run `python -m pytest_stagegbo --lab`; what it printed on standard output."""
        return self.command(sys.executable, "-m", "pytest_stagegbo", "--lab", *arguments, env=env, check=check)

    def command(self, *argv: str, env: Mapping[str, str] | None = None, check: bool = True) -> str:
        """Run a command that joins the lab by itself; what it printed on standard output."""
        return self._run(argv, env=env, check=check)

    def wait_answering(self, wanted: Sequence[tuple[str, str, ProbeSettings]], timeout: float = 120) -> None:
        """Ask until every service is ready, from inside the lab's network.

        Args:
            wanted: Container, address and question.

        Raises:
            TimeoutError: not all did; says what they answered last.
        """
        self._inside.submit(_until_ready, wanted, timeout).result()

    def wait_quiet(self, timeout: float) -> float:
        """Wait until btrfs has cleaned up behind deleted clones, and the seconds that took.

        While it does, copies take many times as long. Gives up after `timeout` seconds.
        """
        began = time.monotonic()
        while time.monotonic() < began + timeout:
            self._in_lab("btrfs", "filesystem", "sync", POOL_PATH)
            if not self._in_lab("btrfs", "subvolume", "list", "-d", POOL_PATH).strip():
                break
            time.sleep(0.2)  # a poll with a deadline: btrfs tells nobody
        return time.monotonic() - began

    def volumes(self) -> list[Volume]:
        """Every container's volume, as btrfs quotas count it at this moment."""
        self._in_lab("btrfs", "filesystem", "sync", POOL_PATH)
        self._in_lab("btrfs", "quota", "rescan", "-w", POOL_PATH, check=False)
        found: list[Volume] = []
        for line in self._in_lab("btrfs", "qgroup", "show", "--raw", POOL_PATH).splitlines():
            fields = line.split()
            if len(fields) == 4 and fields[3].startswith("containers/"):
                found.append(Volume(fields[3], int(fields[1]), int(fields[2])))
        return found

    def _in_lab(self, *argv: str, check: bool = True) -> str:
        """Run a command of the lab's Debian, where the pool is mounted."""
        return self._run(["nsenter", f"--target={self._pid}", "--mount", "--", *argv], check=check)

    def _run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "", check: bool = True
    ) -> str:
        environ = {**os.environ, **(env or {})}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with which each command would compile the package for itself
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, env=environ, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{argv[0]} ... {argv[-1]}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def _until_ready(wanted: Sequence[tuple[str, str, ProbeSettings]], timeout: float) -> None:
    waiting = list(wanted)
    deadline = time.monotonic() + timeout
    while True:
        answers = [(name, address, probe, ask(probe, address)) for name, address, probe in waiting]
        waiting = [(name, address, probe) for name, address, probe, answer in answers if not answer.ready]
        if not waiting:
            return
        if time.monotonic() > deadline:
            seen = "; ".join(f"{name} {answer}" for name, _, _, answer in answers if not answer.ready)
            raise TimeoutError(f"not all services answered in {timeout:.0f} s: {seen}")
        time.sleep(ASK_EVERY)  # a poll with a deadline, of services that have no event
