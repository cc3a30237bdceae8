"""A stage on a storage pool of its own: one full copy of production, and everything else copy-on-write there.

Production is the lab's own; of its containers the stage has only cache.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from tests.lab import forkserver
from tests.lab.support import SIX, Ground, checksums, until

from pytest_stagegbo.desired import marks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Stage

    from pytest_stagegbo.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]

POOL, PROJECT = "stage-own", "STAGE-OWN"
GOLDEN = f"{PROJECT}-GOLDEN"
CONFIG = f"""source_project = "default"
disk_floor = "100MB"
disk_floor_share = 0.0
[slots]
golden_address = "10.0.34.1/24"
[storage]
pool = "{POOL}"
create = "4GiB"
[containers]
{chr(10).join(f"{name} = false" for name in SIX if name != "cache")}
"""
SHARED = CONFIG.replace(f'pool = "{POOL}"\ncreate = "4GiB"\n', "")
RESTORED = SHARED + '[containers.cache]\nreset = "restore"\n'
IN_PLACE = ("refreshing cache from cache/stagegbo-clean", "7", "8")
"""Points of a restore in place: the 7th write is that of the snapshot's configuration, the 8th says that it is done."""
BY_HAND = CONFIG.replace('create = "4GiB"\n', "")
MARK = "/opt/changed"
KILLED = """
import os, signal, sys
from pytest_stagegbo.apply import removal, step_runner
from pytest_stagegbo.cli import main
from pytest_stagegbo.incus.connection import Connection

point, writes = sys.argv[1], 0
if "--ordinary" in sys.argv:
    sys.argv.remove("--ordinary")
    removal.counts_deletions = step_runner.burdens = lambda *_: True  # as on a pool with ordinary quotas
request, wait = Connection.request, Connection.wait

def requested(self, method, *rest, **more):
    global writes
    if (more.get("params") or {}).get("project", "").endswith("-LEASES"):  # who uses the stage
        return request(self, method, *rest, **more)
    if method == point:
        os.kill(os.getpid(), signal.SIGKILL)
    reply = request(self, method, *rest, **more)
    writes += method != "GET"
    if str(writes) == point:
        os.kill(os.getpid(), signal.SIGKILL)
    return reply

def waited(self, reply, what, *rest):
    if what == point and reply.operation:
        os.kill(os.getpid(), signal.SIGKILL)
    return wait(self, reply, what, *rest)

Connection.request, Connection.wait = requested, waited
sys.argv[:2] = ["stagegbo"]
sys.exit(main())
"""
"""A command that kills its own process after its Nth write, when the daemon has begun with an operation, or before the
first DELETE."""
REFRESH = (
    "refreshing cache from cache",
    "start of cache",
    "stop of cache",
    "deleting cache",
    "copying cache to cache",
)
"""Operations of a refresh: of the golden copy, then of the stage."""


def stage(ground: Ground, config: str = CONFIG) -> Stage:
    return ground.stage(PROJECT, "ownbr0", 32, config)


@pytest.fixture(scope="module")
def ground(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with FileLock(lab.paths.lock(f"tests-own-pool-{lab.paths.name}")):
        ground = Ground(lab, tmp_path_factory.mktemp("settings"))
        remove(ground)
        yield ground
        ground.exec("cache", "rm", "-f", MARK)
        remove(ground)


def remove(ground: Ground) -> None:
    """Also what a run that was killed has left."""
    stage(ground).destroy()
    if POOL in ground.names("storage-pools"):
        ground.incus("storage", "delete", POOL)


def killed(own: Stage, point: str, *arguments: str, ordinary: bool = False) -> bool:
    """Run a command until it is killed at a point; False: it ended well before it came there.

    Args:
        ordinary: It takes production's pool for one with ordinary quotas.
    """
    argv = [sys.executable, "-c", KILLED, point, *own.argv(*arguments)[3:], *(["--ordinary"] if ordinary else [])]
    done = forkserver.run(argv, env=own.environment())
    assert done.returncode in {0, -signal.SIGKILL}, f"{done.stdout}{done.stderr}"
    return done.returncode != 0


def subvolumes(ground: Ground) -> set[str]:
    """Those of production's pool, but for the clones of stages that other tests of this lab make meanwhile."""
    return {each for each in ground.subvolumes() if PROJECT in each or not re.search("/(STAGE|PROD)-", each)}


def golden(ground: Ground) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        return dict(ground.get("instances/cache", project=GOLDEN))
    return {}


def works_on(ground: Ground, words: str) -> bool:
    """Whether the daemon does that to the golden copy."""
    with contextlib.suppress(OSError):
        running = ground.get("operations", project=GOLDEN, recursion="1").get("running") or ()
        return any(each["description"] == words for each in running)
    return False


def left_of_copies(own: Stage) -> list[dict[str, Any]]:
    doctor = json.loads(own.run("doctor", "--json", check=False).stdout)["findings"]
    return [each for each in doctor if "left" in each["subject"]]


def test_without_a_pool_the_command_that_creates_one_is_said(ground: Ground) -> None:
    """As where somebody has removed it."""
    done = stage(ground, BY_HAND).run("provision", check=False)
    assert done.returncode == 3, done.stderr
    assert f"incus storage create {POOL} btrfs" in done.stderr
    assert PROJECT not in ground.names("projects")


def test_a_stage_on_production_s_pool_is_told_what_to_do_and_stays(ground: Ground) -> None:
    shared = stage(ground, SHARED)
    shared.run("provision")
    shared.exec("cache", "touch", "/opt/mine")
    done = stage(ground).run("provision", check=False)
    assert done.returncode == 4, done.stderr
    assert "provision --recreate" in done.stderr
    shared.exec("cache", "test", "-e", "/opt/mine")
    assert POOL not in ground.names("storage-pools")


def test_where_deletions_make_production_wait_a_clone_has_no_files_when_it_is_deleted(ground: Ground) -> None:
    """Neither has its snapshot. A run that is killed then leaves a clone that the next one replaces."""
    shared = stage(ground, RESTORED)
    shared.run("provision")
    # As somebody would have it who is after production: from the clone's volume to production's.
    shared.exec("cache", "ln", "-s", "../../cache/rootfs/opt", "/production")
    assert (shared.rootfs("cache") / "production" / "gbo").is_dir()
    before = checksums(ground.rootfs("cache"))
    snapshot = ground.pool / "containers-snapshots" / f"{PROJECT}_cache" / marks.SNAPSHOT / "rootfs"
    assert list(snapshot.iterdir())
    for arguments in (("provision", "--recreate"), ("destroy", "--yes")):
        assert killed(shared, "DELETE", *arguments, ordinary=True)
        assert list(shared.rootfs("cache").iterdir()) == []
        assert list(snapshot.iterdir()) == []
        assert shared.clone("cache")["config"][marks.STATE] == marks.BUILDING
        shared.run("provision")
        assert shared.exec("cache", "ls", "/etc/hostname")
    assert checksums(ground.rootfs("cache")) == before, "no link is followed"


@pytest.mark.parametrize("point", IN_PLACE)
def test_no_run_takes_a_clone_for_clean_whose_restore_in_place_was_killed(ground: Ground, point: str) -> None:
    shared = stage(ground, RESTORED)
    shared.run("provision")
    shared.exec("cache", "sh", "-c", "echo x >/srv/left; rm /usr/bin/sum")
    assert killed(shared, point, "reset", "cache", ordinary=True)
    if shared.clone("cache")["config"][marks.STATE] == marks.BUILDING:
        done = shared.run("reset", "cache", check=False)
        assert (done.returncode, "provision" in done.stderr) == (1, True), done.stderr
    shared.run("provision")
    assert shared.exec("cache", "ls", "/srv", "/usr/bin/sum") == "/usr/bin/sum\n\n/srv:\n"
    assert shared.clone("cache")["config"][marks.PROVEN] == "true"
    assert shared.json("provision")["changed"] is False


def test_a_pool_that_becomes_full_in_the_first_copy_is_an_error_and_production_stays(ground: Ground) -> None:
    before = subvolumes(ground)
    process = stage(ground).start("provision", "--recreate")
    try:
        until(lambda: works_on(ground, "Creating instance"), "the full copy has begun")
        space = ground.get(f"storage-pools/{POOL}/resources")["space"]
        filler = f"/var/lib/incus/storage-pools/{POOL}/filler"
        ground.lab_command("fallocate", "-l", str(space["total"] - space["used"] - (1000 << 20)), filler)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 5, said
    assert f"pool {POOL} became full while cache was copied" in said
    assert subvolumes(ground) == before, "what the daemon made for the copy is gone, and the stage is there"
    assert ground.exec("cache", "true") == ""
    ground.lab_command("rm", filler)
    ground.lab_command("btrfs", "filesystem", "sync", f"/var/lib/incus/storage-pools/{POOL}")  # else room comes later


def test_a_first_copy_that_is_killed_is_finished_by_the_next_run(ground: Ground) -> None:
    own = stage(ground)
    process = own.start("provision", "--recreate")
    try:
        until(lambda: works_on(ground, "Creating instance"), "the full copy has begun")
    finally:
        process.kill()
        process.communicate()
    assert golden(ground)["config"][marks.STATE] == marks.BUILDING
    done = own.run("provision", "--recreate")
    assert "refresh cache from cache" in done.stderr, "what is there is not copied again"
    for project in (PROJECT, GOLDEN):
        (clone,) = ground.instances(project).values()
        assert clone["expanded_devices"]["root"]["pool"] == POOL
    assert own.json("provision")["slots"][PROJECT]["changed"] is False
    config = ground.get(f"storage-pools/{POOL}")["config"]
    assert (config[marks.OWNER], config[marks.PROJECT]) == (marks.OWNER_VALUE, PROJECT)


def test_production_s_pool_has_nothing_of_the_stage(ground: Ground) -> None:
    assert not {each for each in ground.volumes() if each.startswith(PROJECT)}


def test_a_refresh_killed_anywhere_is_finished_by_the_next_run(ground: Ground) -> None:
    own = stage(ground)
    ground.exec("cache", "sh", "-c", f"echo one >{MARK}")
    assert killed(own, REFRESH[0], "provision", "--refresh", "cache")
    assert golden(ground)["config"][marks.STATE] == marks.BUILDING
    own.exec("cache", "test", "!", "-e", MARK)
    for point in REFRESH[1:]:
        assert killed(own, point, "provision"), point
    own.run("provision")
    assert own.exec("cache", "cat", MARK) == "one\n"
    assert golden(ground)["status"] == "Stopped"
    assert own.json("provision")["slots"][PROJECT]["changed"] is False


def test_recreating_copies_nothing_from_production(ground: Ground) -> None:
    own = stage(ground)
    ground.exec("cache", "sh", "-c", f"echo two >{MARK}")
    own.exec("cache", "touch", "/opt/mine")
    generation = golden(ground)["config"][marks.GENERATION]
    own.run("provision", "--recreate")
    assert own.exec("cache", "cat", MARK) == "one\n"
    own.exec("cache", "test", "!", "-e", "/opt/mine")
    assert golden(ground)["config"][marks.GENERATION] == generation


def test_a_refresh_brings_what_was_changed_and_what_was_deleted(ground: Ground) -> None:
    own = stage(ground)
    # What the stage's project may not have, and the daemon looks at once more.
    proxy = ("listen=tcp:127.0.0.1:7", "connect=tcp:127.0.0.1:7")
    ground.incus("config", "device", "add", "cache", "web", "proxy", *proxy)
    try:
        own.run("provision", "--refresh", "cache")
    finally:
        ground.incus("config", "device", "remove", "cache", "web")
    assert own.exec("cache", "cat", MARK) == "two\n"
    assert "web" not in golden(ground)["devices"]
    ground.exec("cache", "rm", MARK)
    own.run("provision", "--refresh", "cache", "--slots", "2")
    for project in (PROJECT, f"{PROJECT}-1"):
        ground.exec("cache", "test", "!", "-e", MARK, project=project)
        (clone,) = ground.instances(project).values()
        assert clone["expanded_devices"]["root"]["pool"] == POOL


def test_verify_is_green_and_doctor_counts_that_pool(ground: Ground) -> None:
    own = stage(ground)
    found = {each["id"]: each["state"] for each in own.json("verify")["findings"]}
    assert "red" not in found.values(), found
    assert found["limits.disk"] == "green"
    doctor = json.loads(own.run("doctor", "--json", check=False).stdout)["findings"]
    assert [each["state"] for each in doctor if each["subject"] == f"pool {POOL}"] == ["ok"]


def test_status_and_the_number_of_slots_count_that_pool(ground: Ground) -> None:
    own = stage(ground)
    said = own.run("provision", "--slots", "60", check=False).stderr
    free = re.search(r"disk: ([\d.]+) GiB free", said)
    assert free, said
    assert float(free[1]) < 4, "of a pool of 4 GiB; production's has more"
    for text in json.loads(own.run("status", "--json", check=False).stdout)["warnings"]:
        assert POOL not in text
    low = own.run("status", "--json", check=False, env={"STAGEGBO_DISK_FLOOR": "100TB"})
    assert f"too little room on pool {POOL}" in " ".join(json.loads(low.stdout)["warnings"])


def test_a_pool_that_somebody_removed_is_said_and_created_again(ground: Ground) -> None:
    by_hand = stage(ground, BY_HAND)
    for project in (PROJECT, f"{PROJECT}-1", GOLDEN):
        ground.incus("delete", "--force", "cache", "--project", project)
        ground.incus("profile", "device", "remove", "default", "root", "--project", project)
    ground.incus("storage", "delete", POOL)
    done = by_hand.run("provision", check=False)
    assert done.returncode == 3, done.stderr
    assert f"incus storage create {POOL} btrfs" in done.stderr
    assert f"there is no storage pool {POOL}" in by_hand.run("doctor", check=False).stdout
    by_hand.run("status", check=False)
    own = stage(ground)
    own.run("provision", "--slots", "2")
    assert own.exec("cache", "true") == ""


def test_what_a_killed_daemon_left_of_a_copy_is_named_with_the_command_that_removes_it(ground: Ground) -> None:
    folder = "/var/lib/incus/storage-pools/pool/containers"
    remove = f"cd {folder}; btrfs subvolume delete migration.1/.migration-send 2>/dev/null; rm -rf migration.1"
    ground.lab_command("sh", "-c", remove)  # of a run that was killed
    ground.lab_command("mkdir", f"{folder}/migration.1")
    ground.lab_command("btrfs", "subvolume", "snapshot", f"{folder}/cache", f"{folder}/migration.1/.migration-send")
    own = stage(ground)
    # While the daemon copies anything, for another test perhaps, nothing is called left over.
    (found,) = until(lambda: left_of_copies(own), "doctor says what was left")
    assert (found["state"], "migration.1" in found["seen"]) == ("warning", True)
    command = found["remedy"].split("`")[1]
    assert command.startswith("btrfs subvolume delete ")
    ground.lab_command("sh", "-c", command)
    assert not ground.lab_command("sh", "-c", f"ls -d {folder}/migration.1/.migration-send 2>/dev/null || true")


def test_destroy_removes_the_pool_only_where_nobody_else_uses_it(ground: Ground) -> None:
    own = stage(ground)
    ground.incus("storage", "volume", "create", POOL, "theirs")
    done = own.run("destroy", "--pool", "--yes", check=False)
    assert done.returncode == 4, done.stderr
    assert "theirs" in done.stderr
    ground.incus("storage", "volume", "delete", POOL, "theirs")


def test_a_stage_whose_pool_the_settings_no_longer_name_stays_until_it_is_made_again(ground: Ground) -> None:
    shared = stage(ground, SHARED)
    shared.exec("cache", "touch", "/opt/mine")
    for options in ((), ("--dry-run",), ("--slots", "2")):
        done = shared.run("provision", *options, check=False)
        assert done.returncode == 4, done.stderr
        assert f'set storage.pool to "{POOL}"' in done.stderr
    assert f"is on pool {POOL}" in shared.run("doctor", check=False).stdout
    shared.exec("cache", "test", "-e", "/opt/mine")
    shared.run("provision", "--recreate", "--slots", "2")
    for project in (PROJECT, GOLDEN, f"{PROJECT}-1"):
        (clone,) = ground.instances(project).values()
        assert clone["expanded_devices"]["root"]["pool"] == "pool"
    assert not {each for each in ground.volumes(POOL) if each.startswith(PROJECT)}


def test_a_full_pool_is_an_error_before_anything_is_copied(ground: Ground) -> None:
    cautious = stage(ground, CONFIG.replace('"100MB"', '"3500MB"'))
    done = cautious.run("provision", "--recreate", check=False)
    assert done.returncode == 5, done.stderr
    assert f"pool {POOL}" in done.stderr
    assert golden(ground)["expanded_devices"]["root"]["pool"] == "pool", "nothing was moved"


def test_a_pool_without_copy_on_write_is_not_taken_for_the_stage_s_own(ground: Ground) -> None:
    ground.incus("storage", "create", "no-cow", "dir")
    try:
        done = stage(ground, BY_HAND.replace(f'"{POOL}"', '"no-cow"')).run("provision", "--recreate", check=False)
    finally:
        ground.incus("storage", "delete", "no-cow")
    assert (done.returncode, "its driver is dir" in done.stderr) == (2, True), done.stderr


def test_destroy_with_the_pool_goes_on_from_wherever_it_was_killed(ground: Ground) -> None:
    """Each run is killed after its second write, until there is nothing left to do."""
    own = stage(ground)
    kills = 0
    while killed(own, "2", "destroy", "--pool", "--yes"):
        kills += 1
        assert kills < 30
    assert kills > 5, "of clones, projects, bridges, access lists, the pool"
    assert POOL not in ground.names("storage-pools")
    assert not {PROJECT, GOLDEN} & ground.names("projects")
    assert not {each for each in ground.subvolumes() if PROJECT in each}
    assert ground.exec("cache", "true") == ""
    assert "nothing to remove" in own.run("destroy", "--pool", "--yes").stdout
