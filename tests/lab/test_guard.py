"""A stage container fills the pool that it shares with production.

That is a production of its own, two containers on a pool of 3 GiB in the lab that everybody shares. What is in them is
no matter, so both are copies of cache, the second of the first; without a network, since they have cache's address.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from msgspec.structs import replace
from tests.lab.support import Ground, run, until
from tests.lab.unprivileged import Unprivileged

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import NoRoom
from pytest_stagegbo.facts.space import look
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.incus.localhost import LocalHost, btrfs_id
from pytest_stagegbo.session.guard import DiskGuard
from pytest_stagegbo.session.summary import pool_line
from pytest_stagegbo.settings import IncusSettings, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.lab.support import Stage

    from pytest_stagegbo.incus import Pool, Writer
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.settings import Settings

pytestmark = pytest.mark.lab

POOL = "small"
FOLDER = f"/var/lib/incus/storage-pools/{POOL}"
PRODUCTION = "PROD-SMALL"
PROJECT = "STAGE-SMALL"
NETWORK, SUBNET = "smallbr0", 27
FLOOR = 600_000_000
KEPT = FLOOR / 6
"""Of the floor, what is left in any case. How much goes depends on how soon a busy machine lets the guard look and the
writers hold still; that production's writes go on is what the floor is for."""
FILE = "/var/fill"
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
    # One lab at a time: without root, nobody can tell two pools apart that have the same path in two labs.
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
class Battle:
    """What was seen while a container filled the pool that production writes to, and the guard watched."""

    guard: DiskGuard
    errors: list[NoRoom]
    """What the guard ended the session with."""
    beats: list[str]
    """Production's writes, each `ok` or what kept it from being written."""
    least: int
    """The least room that the pool had, watched from outside of the guard."""


def battle(ground: Ground, engine: StageEngine, host: LocalHost | None = None) -> Battle:
    """Fill the pool from tables of the stage until the guard ends the session, and see production go on writing."""
    writer = engine.writer(engine.facts())
    writer.execute("tables", ["rm", "-f", FILE], timeout=60)
    write_out(ground)
    room, stopped, errors = Room(engine), threading.Event(), list[NoRoom]()

    def stop(error: NoRoom) -> None:
        errors.append(error)
        stopped.set()

    guard = DiskGuard(engine, stop, host=host)
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
        seen = until(lambda: beats(ground), "what production wrote is known")
    print(f"floor {FLOOR / 1e6:.0f} MB, least room {room.least / 1e6:.0f} MB, {len(seen)} writes\n{errors}")
    return Battle(guard, errors, seen, room.least)


@dataclass
class Room:
    """The least room that the pool had, watched from outside of the guard."""

    engine: StageEngine
    least: int = 2**63
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        place = pool_place(self.engine)
        allocation = Path(f"/sys/fs/btrfs/{btrfs_id(place)}/allocation/data")
        while not self.ended.is_set():
            promised = sum(int((allocation / name).read_text()) for name in ("bytes_may_use", "bytes_reserved"))
            self.least = min(self.least, available(place) - promised)
            self.ended.wait(0.01)


def write_out(ground: Ground) -> None:
    """Have the pool written, so that all its counts are right. Not the whole machine, where others write, too."""
    ground.lab_command("btrfs", "filesystem", "sync", FOLDER)


def pool_place(engine: StageEngine) -> Path:
    """The pool's folder, as this process reaches it."""
    place = LocalHost(engine.reader.endpoint).place(FOLDER)
    assert place is not None
    return place


def available(place: Path) -> int:
    """What the kernel lets files have."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def production_writes(ground: Ground) -> Iterator[None]:
    """Production writes to its disk, a MiB at a time, all the while; its results are in /run/beats."""
    script = """rm -f /run/end; : >/run/beats
while [ ! -e /run/end ]; do
    if dd if=/dev/urandom of=/var/beat bs=64k count=16 conv=fsync 2>/run/beat.err
    then echo ok >>/run/beats
    else echo "$(date +%T.%N)" $(cat /run/beat.err; df -B1 --output=avail /var | tail -1) >>/run/beats
    fi
done"""
    argv = ["incus", "--project", PRODUCTION, "exec", "small-tables", "--", "sh", "-c", script]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(ground.lab.exec_argv(argv), stdin=quiet, stdout=quiet) as process:
        try:
            until(lambda: beats(ground).count("ok") > 3, "production writes")
            yield
        finally:
            ground.exec("small-tables", "touch", "/run/end", project=PRODUCTION)
            process.wait(60)


def beats(ground: Ground) -> list[str]:
    return ground.exec("small-tables", "cat", "/run/beats", project=PRODUCTION, check=False).splitlines()


def fill(writer: Writer, name: str, mib: int) -> None:
    """Ends early when the container is stopped."""
    writer.execute(name, ["dd", "if=/dev/zero", f"of={FILE}", "bs=1M", f"count={mib}"], timeout=60)


@pytest.mark.both_lts
def test_a_container_that_fills_the_pool_is_stopped_before_production_feels_it(
    ground: Ground, engine: StageEngine
) -> None:
    """The guard stops what grows, says who and by how much, ends the session; production goes on writing."""
    fought = battle(ground, engine)
    assert set(fought.beats) == {"ok"}, "no write of production failed"
    (error,) = fought.errors
    grown = fought.guard.growth()
    assert f"too little room on pool {POOL}" in error.message
    assert error.message.endswith("Stopped, with its data kept: tables")
    assert "tables grew by " in error.seen
    assert "cache" not in error.seen
    assert grown["tables"] > FLOOR
    assert fought.guard.trouble() == ""

    clones = engine.reader.instances(engine.settings.project)
    assert {name: clone.status for name, clone in clones.items()} == {"cache": "Running", "tables": "Stopped"}
    production = engine.reader.instances(PRODUCTION)
    assert {clone.status for clone in production.values()} == {"Running"}
    counted = ground.lab_command("btrfs", "device", "stats", f"/var/lib/incus/storage-pools/{POOL}")
    assert all(line.split()[-1] == "0" for line in counted.splitlines()), counted
    assert fought.least > KEPT


def test_what_btrfs_keeps_for_its_metadata_is_no_room(ground: Ground, engine: StageEngine) -> None:
    """Incus counts it as free: production would get "no space left" while hundreds of megabytes seem to be there."""
    host = LocalHost(engine.reader.endpoint)
    write_out(ground)
    room = look(engine.reader, POOL, host)
    assert room.metadata > 64 * 2**20
    assert abs(room.free + room.unwritten - available(pool_place(engine))) < 16 * 2**20


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


def test_recreating_gives_the_room_back(ground: Ground, engine: StageEngine) -> None:
    """As the error advises, with the floor that was passed: the old clones go first, and btrfs is waited for."""
    floor = str(FLOOR + 300_000_000)
    assert not has_room(engine, floor)
    done = stage(ground, floor).run("provision", "--recreate")
    assert "wait until pool small has given back what the old clones took" in done.stderr
    assert has_room(engine, floor)


def test_provisioning_after_destroying_waits_for_the_room(ground: Ground, engine: StageEngine) -> None:
    floor = str(FLOOR + 300_000_000)
    fill(engine.writer(engine.facts()), "tables", 1000)
    write_out(ground)
    assert not has_room(engine, floor)
    small = stage(ground, floor)
    small.run("destroy", "--yes")
    small.run("provision")
    assert has_room(engine, floor)


SLOTS = {"STAGEGBO_SLOTS__DISK": "50MB", "STAGEGBO_SLOTS__MEMORY": "50MB", "STAGEGBO_SLOTS__CORES": "0"}


@pytest.mark.both_lts
@pytest.mark.parametrize("slots", [(), ("--slots", "2")], ids=["one stage", "slots"])
def test_a_refresh_works_on_a_full_pool(ground: Ground, engine: StageEngine, slots: tuple[str, ...]) -> None:
    """The old clones go first, those of all slots where it takes that: the room that they give back counts."""
    floor = str(FLOOR + 300_000_000)
    stage(ground).run("provision", *slots, env=SLOTS)
    project = f"{PROJECT}-1" if slots else PROJECT
    ground.exec("tables", "dd", "if=/dev/zero", f"of={FILE}", "bs=1M", "count=1000", project=project)
    write_out(ground)
    assert not has_room(engine, floor)
    stage(ground, floor).run("provision", "--refresh", env=SLOTS)
    assert has_room(engine, floor)
    if slots:
        stage(ground).run("destroy", "--yes")
        stage(ground).run("provision")


@pytest.mark.both_lts
def test_a_session_that_provisions_anew_works_on_a_full_pool(ground: Ground, engine: StageEngine) -> None:
    floor = str(FLOOR + 300_000_000)
    small = stage(ground, floor)
    small.run("provision")
    fill(engine.writer(engine.facts()), "tables", 1000)
    write_out(ground)
    assert not has_room(engine, floor)
    (ground.folder / "test_it.py").write_text("def test_it(stage_cache): assert stage_cache.exec('true').status == 0\n")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--stage-lab", f"--stage-config={small.config}"]
    words += ["--stage-provision=recreate", f"--rootdir={ground.folder}", str(ground.folder / "test_it.py")]
    done = run(words, check=False, env=small.environment())
    assert "1 passed" in done.stdout, done.stdout
    assert has_room(engine, floor)


def has_room(engine: StageEngine, floor: str) -> bool:
    try:
        settings = replace(engine.settings, disk_floor=floor)
        DiskGuard(StageEngine(settings, Connection(settings.incus)), lambda _: None).check()
    except NoRoom:
        return False
    return True


def stop_counting(ground: Ground, engine: StageEngine) -> None:
    """Have btrfs declare the pool's quotas inconsistent, as it does by itself after clones were deleted."""
    place = pool_place(engine)
    threshold = Path(f"/sys/fs/btrfs/{btrfs_id(place)}/qgroups/drop_subtree_threshold")
    usual = threshold.read_text()
    threshold.write_text("0")  # whatever goes is too large to be counted
    try:
        ground.lab_command("btrfs", "subvolume", "snapshot", f"{FOLDER}/containers/{PROJECT}_tables", f"{FOLDER}/gone")
        ground.lab_command("btrfs", "subvolume", "delete", f"{FOLDER}/gone")
        write_out(ground)  # with that, btrfs begins to clean up now, and not within 30 s
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


@pytest.mark.both_lts
def test_where_btrfs_does_not_count_the_whole_stage_is_stopped(ground: Ground, engine: StageEngine) -> None:
    """Nobody grew, as far as is counted: production goes on writing all the same."""
    stage(ground).run("provision")
    stop_counting(ground, engine)
    fought = battle(ground, engine, Bystander(engine.reader.endpoint))
    assert set(fought.beats) == {"ok"}, "no write of production failed"
    (error,) = fought.errors
    assert "btrfs quotas are inconsistent" in error.seen
    assert "all of them are stopped" in error.seen
    clones = engine.reader.instances(engine.settings.project)
    assert {name: clone.status for name, clone in clones.items()} == {"cache": "Stopped", "tables": "Stopped"}
    assert fought.least > KEPT


@pytest.mark.both_lts
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
    doctor = json.loads(small.run("doctor", "--json", check=False).stdout)["findings"]
    assert [each["state"] for each in doctor if each["subject"] == f"limits on pool {POOL}"] == ["failed"]

    done = small.run("provision")
    assert f"pool {POOL}: btrfs quotas are inconsistent" in done.stderr
    status = small.json("status")
    assert status["warnings"] == []
    assert [text for text in status["burdens"] if f"pool {POOL} has ordinary btrfs quotas" in text]
    doctor = json.loads(small.run("doctor", "--json", check=False).stdout)["findings"]
    (found,) = (each for each in doctor if each["subject"] == f"quotas of pool {POOL}")
    assert found["state"] == "warning"
    assert f"btrfs quota enable --simple {FOLDER}" in found["remedy"]
    assert verified(small)["state"] == "green"


class User:
    """A user of this machine without root, who works with the small stage."""

    def __init__(self, user: Unprivileged, small: Stage, environment: Mapping[str, str]) -> None:
        self._user, self._environment = user, environment
        self._config = str(user.given(small.config))

    def said(self, command: str, status: int = 0) -> str:
        """What a command printed that ended with this status."""
        done = self._user.run("--config", self._config, *command.split(), environment=self._environment)
        assert done.returncode == status, f"{done.stdout}{done.stderr}"
        return f"{done.stdout}{done.stderr}"


@pytest.mark.both_lts
def test_without_root_limits_that_stopped_counting_are_found(ground: Ground, engine: StageEngine) -> None:
    """Over the socket a user without root sees what btrfs says in /sys. Over HTTPS nobody does: it is found by what is
    written, and that it can't be read is said once, with a remedy."""
    small = stage(ground)
    small.run("provision", "--recreate")
    stop_counting(ground, engine)
    rescan = f"as root on the daemon's host: `btrfs quota rescan -w {FOLDER}`"
    unseen = f"whether btrfs counts on pool {POOL} can't be read from here"
    advice = "verify --check limits.disk` writes in each clone"
    with tempfile.TemporaryDirectory() as folder:
        made = Unprivileged(ground.lab, Path(folder))
        local = User(made, small, {})
        text = local.said("status")
        assert f"disk limits on pool {POOL} do not hold now: btrfs quotas are inconsistent" in text
        assert text.count(rescan) == 1, text
        assert local.said("doctor", status=1).count(rescan) == 1
        with made.over_https(ground) as environment:
            far = User(made, small, environment)
            for text in (far.said("status"), far.said("doctor")):
                assert (text.count(unseen), text.count(advice)) == (1, 1), text
            red = far.said("verify --check limits.disk", status=9)
            assert re.search("cache: it wrote 8 MiB and .* counted, so its limit does not hold", red), red
            assert red.count(rescan) == 1, red
            done = far.said("provision --recreate")
            assert "cache ready" in done
            assert done.count(unseen) == 1, done
        assert local.said("provision").count("DISK LIMITS DO NOT HOLD") == 1
    small.run("provision")  # root's has btrfs count again
    assert verified(small)["state"] == "green"


def verified(small: Stage) -> dict[str, Any]:
    done = small.run("verify", "--check", "limits.disk", "--json", check=False)
    (finding,) = json.loads(done.stdout)["findings"]
    return dict(finding)
