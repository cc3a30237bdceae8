"""Sessions as processes would have recorded them, for tests of the report."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_stagegbo.session_report.events import (
    SUFFIX,
    VERSION,
    Ending,
    Event,
    Freeze,
    Header,
    Notice,
    Reset,
    Room,
    Step,
    Test,
    Usage,
    Wait,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

GIB, MIB = 2**30, 2**20
PROJECT = "STAGE-GBO"
CONTAINERS = ("system", "tables", "vault", "cache", "drive", "llm")
FAILURE = "def test_case(stage_cache):\n>       assert stage_cache.get('total') == '3'\nE       AssertionError: 4\n"
CLOCK = 5000.0
"""What the steady clock shows when a session begins."""


def record(folder: Path, run: str, worker: str, events: Iterable[Event], workers: int = 1) -> Path:
    """The file of one process, on whose host the steady clock showed `CLOCK` when the session began."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}-{worker}{SUFFIX}"
    first = Header(VERSION, run, worker, "runner-1", 1, 1_700_000_000.0, CLOCK, workers)
    path.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in (first, *events)))
    return path


def header(*, at: float = 1_700_000_000.0, clock: float = CLOCK, worker: str = "gw0", host: str = "here") -> Header:
    return Header(VERSION, "run", worker, host, 1, at, clock, 2)


def ran(name: str, began: float, ended: float, outcome: str = "passed", **more: Any) -> Test:
    """A test of the stage; moments are seconds since the session began."""
    wanted: dict[str, Any] = {"project": PROJECT, "uses": ("cache",), **more}
    return Test(name, outcome, CLOCK + began, CLOCK + ended, CLOCK + began, CLOCK + ended, **wanted)


def waited(name: str, began: float, ended: float, *names: str, holders: str = "") -> Wait:
    return Wait(name, PROJECT, CLOCK + began, CLOCK + ended, names, holders)


def large(folder: Path, count: int, workers: int = 4, *, failing: int = 60, seed: int = 1) -> None:
    """A session that looks like a real one: provisioning, resets, waits, a worker that dies, a disk that fills."""
    chance = random.Random(seed)
    free, moment = [120 * GIB], [0.0] * workers
    events: dict[str, list[Event]] = {f"gw{number}": [] for number in range(workers)}
    for place, name in enumerate(CONTAINERS):
        began = CLOCK + 0.4
        for key, seconds in ((f"copy:{name}", 0.3), (f"start:{name}", 0.5), (f"await:{name}", 0.4 + 0.2 * place)):
            events["gw0"].append(Step(key, key.replace(":", " "), began, began + seconds, PROJECT))
            began += seconds
    moment = [3.2] * workers
    kept: dict[str, tuple[float, str]] = {}
    numbers = list(range(count))
    for number in numbers:
        worker = min(range(workers), key=lambda each: moment[each])
        name = f"tests/test_{('orders', 'login', 'files', 'chat')[number % 4]}.py::test_case[{number}]"
        into, begin = events[f"gw{worker}"], moment[worker]
        kind = chance.random()
        resets = ("cache",) if kind < 0.3 else ("cache", "drive") if kind < 0.4 else ("tables",) if kind < 0.45 else ()
        quiet = ("system",) if 0.45 <= kind < 0.5 else ()
        asked = ("cache",)
        free_at = max([begin, *(kept.get(each, (0.0, ""))[0] for each in resets or ("cache",))])
        if free_at - begin > 0.001:
            into.append(waited(name, begin, free_at, *(resets or ("cache",))))
        called = free_at
        for each in resets:
            way = chance.choices(("untouched", "hot", "restart"), (3, 6, 0.4))[0] if each != "tables" else "spare"
            seconds = {"untouched": 0.003, "hot": 0.02, "restart": 1.4, "spare": 0.06}[way]
            reason = "a client stayed connected" if way == "restart" else ""
            into.append(Reset(PROJECT, each, way, CLOCK + free_at, CLOCK + free_at + seconds, reason, name))
            called = max(called, free_at + seconds)
        returned = called + chance.lognormvariate(-2.2, 0.8)
        ended = returned + 0.004
        for each in resets:
            kept[each] = (ended, name)
        if quiet:
            into.append(Freeze(PROJECT, quiet, name, CLOCK + called, CLOCK + ended))
        outcome = "failed" if number % max(1, count // max(1, failing)) == 7 else "skipped" if kind > 0.98 else "passed"
        failed = outcome == "failed"
        into.append(
            Test(
                name,
                outcome,
                CLOCK + begin,
                CLOCK + ended,
                CLOCK + called,
                CLOCK + returned,
                PROJECT,
                tuple(sorted({*resets, *asked})),
                resets,
                asked,
                quiet,
                FAILURE * 3 if failed else "",
                (("stage container cache: logged since the test began", "12:00:01 valkey-server: DB saved\n" * 6),)
                if failed
                else (),
                (("stage.capsule", f"c-{number}"),) if failed else (),
            )
        )
        moment[worker] = ended + 0.002
        free.append(free[-1] - int(chance.random() * 900 * GIB / count / 10))
    total = max(moment)
    points = max(20, min(400, int(total)))
    for place in range(points):
        at = CLOCK + total * place / (points - 1)
        events["gw0"].append(Room(at, "pool default", free[min(len(free) - 1, place * len(free) // points)], 20 * GIB))
        grown = {name: (40 + 30 * number + place * (number + 1) // 2) * MIB for number, name in enumerate(CONTAINERS)}
        events["gw0"].append(Usage(at, PROJECT, grown))
    ending = Ending(
        CLOCK + total + 0.3, 1, ("reset cache: many times, p50 20 ms",), (), {"project": PROJECT, "incus": "6.0.4"}
    )
    died = Notice(CLOCK + total * 0.6, "killed", "worker gw1 died: Not properly terminated", "gw1")
    for worker_name, found in events.items():
        record(folder, "run", worker_name, found, workers)
    record(folder, "run", "controller", [died, ending], workers)
