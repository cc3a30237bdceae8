"""Provision against the published set-up by hand: both from nothing to six services that answer.

    sudo python benchmarks/provision.py [--rounds N] [--json FILE] [--markdown docs/benchmarks.md] [--keep]

Runs on a lab of its own, which it brings up and deletes again. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a script, and its modules are found by type checkers too

from benchmarks._bench_lab import POOL, BenchLab, bench_lab
from benchmarks._finish import add_outputs, finish
from benchmarks._measure import Machine, ProcessorTime, alternate, percentile
from benchmarks._steps import critical_path, kinds

from pytest_stagegbo.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from pytest_stagegbo.settings import ProbeSettings

SETTINGS = Settings()
HAND = {"PROJECT": "STAGE-HAND", "BRIDGE": "handbr0", "SUBNET": "10.0.4", "POOL": POOL}
"""Names of their own, so that neither way meets what the other left."""
LONGEST_WAIT = 60.0
"""Seconds, for each of the things that are waited for between rounds."""
IDLE = 0.9
"""Share of the cores that has to be idle before a round."""
AIM_RATIO = 8
AIM_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Round:
    """One way, once."""

    seconds: float
    """Wall time, from nothing to the last service's answer."""
    busy: float
    """Core-seconds of work meanwhile, by everybody on the machine."""
    idle_share: float
    """Of the cores, meanwhile."""
    idle_before: float
    """Share of the cores that was idle in the second before it: below 1, others were at work."""
    quiet_seconds: float
    """How long btrfs cleaned up before it."""
    result: dict[str, Any] | None = None
    """What `provision --json` printed."""
    exclusive: int = 0
    """Bytes that the six clones share with nothing."""
    referenced: int = 0
    """Bytes that their sources reference."""


class Ways:
    """The two ways to a stage, each from nothing."""

    def __init__(self, lab: BenchLab) -> None:
        self._lab = lab
        init = json.loads(lab.lab.vault_init.read_text())
        self._keys = "\n".join(init["unseal_keys_b64"][: init["unseal_threshold"]]) + "\n"
        self.after: dict[str, list[str]] = {}
        """What each step of provision waits for, by key."""

    def by_hand(self) -> Round:
        found = self._measure(
            lambda: self._lab.run("bash", str(ROOT / "benchmarks" / "by_hand.sh"), env=HAND, stdin=self._keys), HAND
        )
        self.clean()
        return found

    def provision(self) -> Round:
        plan = json.loads(self._lab.stagegbo("provision", "--dry-run", "--json"))
        self.after = {step["key"]: step["after"] for step in plan["steps"]}
        found = self._measure(lambda: self._lab.stagegbo("provision", "--json"), None)
        self.clean()
        return found

    def clean(self) -> None:
        """Remove what either way made; production stays."""
        self._lab.stagegbo("destroy", "--yes")
        remove_hand(self._lab, HAND)

    def _measure(self, way: Callable[[], str], hand: dict[str, str] | None) -> Round:
        quiet = self._lab.wait_quiet(LONGEST_WAIT)
        idle_before = ProcessorTime.wait_idle(IDLE, LONGEST_WAIT)
        before, began = ProcessorTime.now(), time.monotonic()
        printed = way()
        self._lab.wait_answering(_questions(hand["SUBNET"] if hand else None))
        seconds, after = time.monotonic() - began, ProcessorTime.now()
        exclusive = referenced = 0
        if hand is None:
            volumes = {volume.path: volume for volume in self._lab.volumes()}
            for container in SETTINGS.containers.values():
                exclusive += volumes[f"containers/{SETTINGS.project}_{container.name}"].exclusive
                referenced += volumes[f"containers/{container.source_name}"].referenced
        return Round(
            seconds=seconds,
            busy=after.busy_since(before),
            idle_share=after.idle_share_since(before),
            idle_before=idle_before,
            quiet_seconds=quiet,
            result=None if hand else json.loads(printed),
            exclusive=exclusive,
            referenced=referenced,
        )


def remove_hand(lab: BenchLab, names: dict[str, str]) -> None:
    """Remove what `by_hand.sh` made under these names."""
    project, bridge = names["PROJECT"], names["BRIDGE"]
    if project in lab.run("incus", "project", "list", "--format", "csv", "--columns", "n").split():
        listed = lab.run("incus", "list", "--project", project, "--format", "csv", "--columns", "n")
        if containers := listed.split():
            lab.run("incus", "delete", "--force", "--project", project, *containers)
        # `profile device add` changed the default profile, which goes with its project
        lab.run("incus", "project", "delete", project)
    if bridge in lab.run("incus", "network", "list", "--format", "csv"):
        lab.run("incus", "network", "delete", bridge)


def _questions(subnet: str | None) -> list[tuple[str, str, ProbeSettings]]:
    """Container, address and question of every service; in another subnet the last number stays."""
    found: list[tuple[str, str, ProbeSettings]] = []
    for container in SETTINGS.containers.values():
        last = container.address.packed[-1]
        address = IPv4Address(f"{subnet}.{last}") if subnet else container.address
        found.extend((container.name, str(address), probe) for probe in container.probes)
    return found


class Report:
    """What all rounds say together."""

    def __init__(self, rounds: Sequence[tuple[Round, Round]], after: dict[str, list[str]], version: str) -> None:
        self.hand = [hand for hand, _ in rounds]
        self.own = [own for _, own in rounds]
        self.after = after
        self.machine = Machine.this()
        self.version = version
        middle = percentile([own.seconds for own in self.own], 50)
        self.typical = min(self.own, key=lambda own: abs(own.seconds - middle))
        """The round of `provision` nearest to the median."""

    @property
    def ratio(self) -> float:
        return percentile([r.seconds for r in self.hand], 50) / percentile([r.seconds for r in self.own], 50)

    @property
    def share(self) -> float:
        """Of the sources' bytes, the largest part that a fresh stage cost."""
        return max(own.exclusive / own.referenced for own in self.own)

    def sections(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, columns and rows of each table."""
        return [
            (
                "From nothing to six answers",
                ["way", "rounds", "p50", "p95", "fastest", "slowest"],
                [_row("by hand", self.hand), _row("provision", self.own)],
            ),
            (
                "What the machine did meanwhile (medians)",
                ["way", "core-seconds of work", "cores idle", "cores idle just before"],
                [_load_row("by hand", self.hand), _load_row("provision", self.own)],
            ),
            (
                "Steps of provision, all rounds",
                ["kind", "steps", "p50", "longest"],
                [
                    [kind.name, str(kind.count), _seconds(kind.p50), _seconds(kind.longest)]
                    for kind in kinds([_timings(own) for own in self.own])
                ],
            ),
            (
                "Critical path of a median round",
                ["step", "began", "took"],
                self._path_rows(),
            ),
        ]

    def _path_rows(self) -> list[list[str]]:
        timings = _timings(self.typical)
        path = critical_path(timings, self.after)
        began = {timing["key"]: timing["began"] for timing in timings}
        rows = [[step.key, _seconds(began[step.key]), _seconds(step.seconds)] for step in path]
        ended = max(timing["ended"] for timing in timings)
        rows.append(["before and after the steps: Python, facts, checks, verify", "", _seconds(self._outside(ended))])
        return rows

    def _outside(self, ended: float) -> float:
        return self.typical.seconds - ended

    def headlines(self) -> list[str]:
        worst = max(self.own, key=lambda own: own.exclusive / own.referenced)
        ratio = f"provision is {self.ratio:.1f} times as fast as by hand (medians; aim {AIM_RATIO})"
        size = (
            f"a fresh stage costs {worst.exclusive / 1e6:.0f} MB of the {worst.referenced / 1e6:.0f} MB that its "
            f"sources reference: {self.share:.1%} (limit {AIM_SHARE:.0%})"
        )
        return [ratio, size]

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "incus": self.version,
            "ratio": self.ratio,
            "share": self.share,
            "after": self.after,
            "by_hand": [asdict(hand) for hand in self.hand],
            "provision": [asdict(own) for own in self.own],
        }

    def print(self, console: Console) -> None:
        console.print(f"{self.machine}; Incus {self.version}")
        for title, columns, rows in self.sections():
            table = Table(title=title, title_justify="left")
            for number, column in enumerate(columns):
                table.add_column(column, justify="right" if number else "left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        for line in self.headlines():
            console.print(line, soft_wrap=True)

    def markdown(self) -> str:
        parts = [
            f"Measured on {self.machine}; Incus {self.version}.",
            "\n".join(f"- {line[0].upper()}{line[1:]}." for line in self.headlines()),
        ]
        for title, columns, rows in self.sections():
            lines = [f"**{title}**", "", f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            parts.append("\n".join(lines))
        return "\n\n".join(parts)


def _timings(own: Round) -> list[dict[str, Any]]:
    return list((own.result or {}).get("timings", ()))


def _row(name: str, rounds: Sequence[Round]) -> list[str]:
    times = [r.seconds for r in rounds]
    figures = (percentile(times, 50), percentile(times, 95), min(times), max(times))
    return [name, str(len(rounds)), *map(_seconds, figures)]


def _load_row(name: str, rounds: Sequence[Round]) -> list[str]:
    busy = percentile([r.busy for r in rounds], 50)
    idle = percentile([r.idle_share for r in rounds], 50)
    before = percentile([r.idle_before for r in rounds], 50)
    return [name, f"{busy:.1f}", f"{idle:.0%}", f"{before:.0%}"]


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="of each way (default 10)")
    add_outputs(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return finish(lambda console: _measure(arguments.rounds, console, keep=arguments.keep), arguments, "provision")


def _measure(rounds: int, console: Console, *, keep: bool) -> Report:
    with bench_lab(keep=keep) as lab:
        ways = Ways(lab)
        ways.clean()
        done = []
        try:
            for hand, own in alternate(rounds, ways.by_hand, ways.provision):
                done.append((hand, own))
                console.print(
                    f"round {len(done)}: by hand {hand.seconds:.2f} s, provision {own.seconds:.2f} s "
                    f"(cores idle before: {hand.idle_before:.0%}, {own.idle_before:.0%})"
                )
        finally:
            ways.clean()
        return Report(done, ways.after, lab.lab.status().incus_version)


if __name__ == "__main__":
    sys.exit(main())
