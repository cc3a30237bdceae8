"""A stage container fills the pool that it shares with production.

That is a production of its own, two containers on a pool of 3 GiB in the lab that everybody shares. What is in them is
no matter, so both are copies of cache, the second of the first; without a network, since they have cache's address.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from tests.lab.support import Ground, until

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import NoRoom
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.incus.localhost import LocalHost, btrfs_id
from pytest_stagegbo.session.guard import DiskGuard
from pytest_stagegbo.session.summary import pool_line
from pytest_stagegbo.settings import IncusSettings, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Stage

    from pytest_stagegbo.incus import Pool, Writer
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.settings import Settings

pytestmark = pytest.mark.lab

POOL = "small"
PRODUCTION = "PROD-SMALL"
PROJECT = "STAGE-SMALL"
NETWORK, SUBNET = "smallbr0", 27
FLOOR = 600_000_000
NAMES = ("cache", "tables")
CONFIG = f"""source_project = "{PRODUCTION}"
disk_floor = "{FLOOR}"
[containers]
system = false
vault = false
drive = false
llm = false
[containers.cache]
source = "small-cache"
[containers.tables]
source = "small-tables"
units = ["valkey"]
data = ""
probes = [{{ protocol = "valkey", port = 6379 }}]
"""


@pytest.fixture(scope="module")
def ground(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The lab, with a small pool and a production on it."""
    with FileLock(lab.paths.lock("tests-small")):
        ground = Ground(lab, tmp_path_factory.mktemp("settings"))
        remove(ground)
        ground.incus("storage", "create", POOL, "btrfs", "size=3GiB")
        ground.incus("project", "create", PRODUCTION, "-c", "features.images=false", "-c", "features.profiles=false")
        copy = ("copy", "--instance-only", "--storage", POOL, "--target-project", PRODUCTION)
        ground.incus(*copy, "cache", "small-cache")
        ground.incus(*copy, "small-cache", "small-tables", project=PRODUCTION)
        for name in NAMES:
            ground.incus("config", "device", "add", f"small-{name}", "eth0", "none", project=PRODUCTION)
            ground.incus("start", f"small-{name}", project=PRODUCTION)
        yield ground
        remove(ground)


def remove(ground: Ground) -> None:
    """Also what a run that was killed has left."""
    stage(ground).destroy()
    if PRODUCTION in ground.names("projects"):
        ground.delete_project(PRODUCTION)
    if POOL in ground.names("storage-pools"):
        ground.incus("storage", "delete", POOL)


def stage(ground: Ground, floor: str = str(FLOOR)) -> Stage:
    return ground.stage(PROJECT, NETWORK, SUBNET, CONFIG.replace(str(FLOOR), floor))


@pytest.fixture(scope="module")
def engine(ground: Ground) -> StageEngine:
    """Of the stage, which is provisioned. This process stays out of the lab's network."""
    stage(ground).run("provision")
    return StageEngine(_settings(ground), Connection(IncusSettings(endpoint=str(ground.lab.socket))))


def _settings(ground: Ground) -> Settings:
    return load(stage(ground).config, ground.folder, {"STAGEGBO_INCUS__ENDPOINT": str(ground.lab.socket)}).settings


@dataclass
class Room:
    """The least room that the pool had, watched from outside of the guard."""

    engine: StageEngine
    least: int = 2**63
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        host = LocalHost(self.engine.reader.endpoint)
        while not self.ended.is_set():
            pool = self.engine.reader.pool(POOL)
            self.least = min(self.least, pool.free - host.unwritten_bytes(pool))
            self.ended.wait(0.01)


@contextlib.contextmanager
def production_writes(ground: Ground) -> Iterator[subprocess.Popen[str]]:
    """Production writes to its disk, a MiB at a time, all the while; its results are in /run/beats."""
    script = """rm -f /run/end; : >/run/beats
while [ ! -e /run/end ]; do
    dd if=/dev/urandom of=/var/beat bs=64k count=16 conv=fsync 2>/run/beat.err && echo ok >>/run/beats || {
        echo failed >>/run/beats; cat /run/beat.err; }
done"""
    argv = ["incus", "--project", PRODUCTION, "exec", "small-tables", "--", "sh", "-c", script]
    with subprocess.Popen(
        ground.lab.exec_argv(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: beats(ground).count("ok") > 3, "production writes")
            yield process
        finally:
            ground.exec("small-tables", "touch", "/run/end", project=PRODUCTION)
            process.wait(60)


def beats(ground: Ground) -> list[str]:
    return ground.exec("small-tables", "cat", "/run/beats", project=PRODUCTION, check=False).split()


def fill(writer: Writer, name: str, mib: int) -> None:
    """Ends early when the container is stopped."""
    writer.execute(name, ["dd", "if=/dev/zero", "of=/var/fill", "bs=1M", f"count={mib}"], timeout=60)


def test_a_container_that_fills_the_pool_is_stopped_before_production_feels_it(
    ground: Ground, engine: StageEngine
) -> None:
    """The guard stops what grows, says who and by how much, ends the session; production goes on writing."""
    writer = engine.writer(engine.facts())
    room, stopped, errors = Room(engine), threading.Event(), list[NoRoom]()

    def stop(error: NoRoom) -> None:
        errors.append(error)
        stopped.set()

    guard = DiskGuard(engine, stop)
    with ThreadPoolExecutor(2) as threads, production_writes(ground):
        try:
            watching = threads.submit(room.watch)
            guard.start()
            until(guard.growth, "the guard has begun")
            guard.check()
            filling = threads.submit(fill, writer, "tables", 2500)
            assert stopped.wait(60), f"trouble: {guard.trouble()}"
            before = len(beats(ground))
            until(lambda: len(beats(ground)) > before + 3, "production goes on writing")
        finally:
            room.ended.set()
            guard.close()
        watching.result(10)
        filling.exception(60)

        assert set(beats(ground)) == {"ok"}, "no write of production failed"
    (error,) = errors
    grown = guard.growth()
    assert f"too little room on pool {POOL}" in error.message
    assert error.message.endswith("Stopped, with its data kept: tables")
    assert "tables grew by 1." in error.seen
    assert "cache" not in error.seen
    assert grown["tables"] > 2**30
    assert guard.trouble() == ""

    clones = engine.reader.instances(engine.settings.project)
    assert {name: clone.status for name, clone in clones.items()} == {"cache": "Running", "tables": "Stopped"}
    production = engine.reader.instances(PRODUCTION)
    assert {clone.status for clone in production.values()} == {"Running"}
    counted = ground.lab_command("btrfs", "device", "stats", f"/var/lib/incus/storage-pools/{POOL}")
    assert all(line.split()[-1] == "0" for line in counted.splitlines()), counted
    print(f"floor {FLOOR / 1e6:.0f} MB, least room {room.least / 1e6:.0f} MB\n{error}")
    assert room.least > FLOOR / 2


def test_below_the_floor_no_reset_begins(engine: StageEngine) -> None:
    """The pool is as the filled container left it: when all is written, with a little more room than was feared."""
    cautious = replace(engine.settings, disk_floor=str(FLOOR + 300_000_000))
    with pytest.raises(NoRoom, match=f"pool {POOL}"):
        DiskGuard(StageEngine(cautious, Connection(cautious.incus)), lambda _: None).check()


def test_the_pool_s_line_says_where_and_how_much(engine: StageEngine) -> None:
    line = pool_line(engine)
    assert f"project {PROJECT} on Incus " in line
    assert f"pool {POOL} (btrfs): " in line
    assert "of 3 GiB free, " in line
    assert line.endswith("below it on the host")


def test_provisioning_anew_gives_the_room_back(ground: Ground, engine: StageEngine) -> None:
    """As the error advises, with the floor that was passed: the old clones go first, and btrfs is waited for."""
    floor = str(FLOOR + 300_000_000)
    assert not has_room(engine, floor)
    done = stage(ground, floor).run("provision", "--recreate")
    assert "wait until pool small has given back what the old clones took" in done.stderr
    assert has_room(engine, floor)


def test_provisioning_after_destroying_waits_for_the_room(ground: Ground, engine: StageEngine) -> None:
    floor = str(FLOOR + 300_000_000)
    fill(engine.writer(engine.facts()), "tables", 1700)
    LocalHost(engine.reader.endpoint).flush(10)
    assert not has_room(engine, floor)
    small = stage(ground, floor)
    small.run("destroy", "--yes")
    small.run("provision")
    assert has_room(engine, floor)


def has_room(engine: StageEngine, floor: str) -> bool:
    try:
        settings = replace(engine.settings, disk_floor=floor)
        DiskGuard(StageEngine(settings, Connection(settings.incus)), lambda _: None).check()
    except NoRoom:
        return False
    return True


FOLDER = f"/var/lib/incus/storage-pools/{POOL}"


def stop_counting(ground: Ground, engine: StageEngine) -> None:
    """Have btrfs declare the pool's quotas inconsistent, as it does by itself after clones were deleted."""
    place = LocalHost(engine.reader.endpoint).place(FOLDER)
    assert place is not None
    threshold = Path(f"/sys/fs/btrfs/{btrfs_id(place)}/qgroups/drop_subtree_threshold")
    usual = threshold.read_text()
    threshold.write_text("0")  # whatever goes is too large to be counted
    try:
        ground.lab_command("btrfs", "subvolume", "snapshot", f"{FOLDER}/containers/{PROJECT}_tables", f"{FOLDER}/gone")
        ground.lab_command("btrfs", "subvolume", "delete", f"{FOLDER}/gone")
        ground.lab_command("btrfs", "subvolume", "sync", FOLDER)
    finally:
        threshold.write_text(usual)
    quotas = LocalHost(engine.reader.endpoint).quotas(engine.reader.pool(POOL))
    assert quotas is not None
    assert quotas.inconsistent


class Bystander(LocalHost):
    """The machine as a process sees it that may not have btrfs count again."""

    def rescan(self, pool: Pool) -> bool:
        assert pool.name == POOL
        return False


def test_where_btrfs_does_not_count_the_whole_stage_is_stopped(ground: Ground, engine: StageEngine) -> None:
    """Nobody grew, as far as is counted: production goes on writing all the same."""
    stage(ground).run("provision")
    writer = engine.writer(engine.facts())
    stop_counting(ground, engine)
    errors, stopped = list[NoRoom](), threading.Event()

    def stop(error: NoRoom) -> None:
        errors.append(error)
        stopped.set()

    room = Room(engine)
    guard = DiskGuard(engine, stop, host=Bystander(engine.reader.endpoint))
    with ThreadPoolExecutor(2) as threads, production_writes(ground):
        try:
            watching = threads.submit(room.watch)
            guard.start()
            until(guard.growth, "the guard has begun")
            filling = threads.submit(fill, writer, "tables", 2500)
            assert stopped.wait(60), f"trouble: {guard.trouble()}"
            before = len(beats(ground))
            until(lambda: len(beats(ground)) > before + 3, "production goes on writing")
        finally:
            room.ended.set()
            guard.close()
        watching.result(10)
        filling.exception(60)
        assert set(beats(ground)) == {"ok"}, "no write of production failed"
    (error,) = errors
    assert "btrfs quotas are inconsistent" in error.seen
    assert "all of them are stopped" in error.seen
    clones = engine.reader.instances(engine.settings.project)
    assert {name: clone.status for name, clone in clones.items()} == {"cache": "Stopped", "tables": "Stopped"}
    assert room.least > FLOOR / 2


def test_limits_that_do_not_hold_are_red_and_provisioning_mends_them(ground: Ground, engine: StageEngine) -> None:
    """The pool is as it was left: btrfs does not count, and a file of tables fills it."""
    small = stage(ground)
    small.run("provision", "--recreate")
    stop_counting(ground, engine)
    red = verified(small)
    assert red["state"] == "red"
    said = "\n".join(red["evidence"])
    assert f"disk limits on pool {POOL} do not hold now: btrfs quotas are inconsistent" in said
    assert f"btrfs quota rescan -w {FOLDER}" in said
    assert "tables: it wrote 8 MiB and " in said, "what is written is not counted"
    (warning,) = small.json("status")["warnings"]
    assert f"btrfs quota rescan -w {FOLDER}" in warning
    doctor = json.loads(small.run("doctor", "--json", check=False).stdout)
    assert [each["state"] for each in doctor if each["subject"] == f"limits on pool {POOL}"] == ["failed"]

    done = small.run("provision")
    assert f"pool {POOL}: btrfs quotas are inconsistent" in done.stderr
    assert small.json("status")["warnings"] == []
    assert verified(small)["state"] == "green"


def verified(small: Stage) -> dict[str, Any]:
    done = small.run("verify", "--check", "limits.disk", "--json", check=False)
    (finding,) = json.loads(done.stdout)["findings"]
    return dict(finding)
