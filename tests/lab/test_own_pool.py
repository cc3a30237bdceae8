"""A stage on a storage pool of its own: one full copy of production, and everything else copy-on-write there.

Production is the lab's own; of its containers the stage has only cache.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from tests.lab.support import SIX, Ground, until

from pytest_stagegbo.engine import marks

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
BY_HAND = CONFIG.replace('create = "4GiB"\n', "")
MARK = "/opt/changed"


def stage(ground: Ground, config: str = CONFIG) -> Stage:
    return ground.stage(PROJECT, "ownbr0", 32, config)


@pytest.fixture(scope="module")
def ground(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with FileLock(lab.paths.lock("tests-own-pool")):
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


def test_a_refresh_that_is_killed_is_finished_by_the_next_run(ground: Ground) -> None:
    own = stage(ground)
    ground.exec("cache", "sh", "-c", f"echo one >{MARK}")
    process = own.start("provision", "--refresh", "cache")
    try:
        until(lambda: golden(ground)["config"].get(marks.STATE) == marks.BUILDING, "the refresh has begun")
    finally:
        process.kill()
        process.communicate()
    own.exec("cache", "test", "!", "-e", MARK)
    own.run("provision")
    assert own.exec("cache", "cat", MARK) == "one\n"
    assert golden(ground)["status"] == "Stopped"


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
    doctor = json.loads(own.run("doctor", "--json", check=False).stdout)
    assert [each["state"] for each in doctor if each["subject"] == f"pool {POOL}"] == ["ok"]


def test_a_full_pool_is_an_error_before_anything_is_copied(ground: Ground) -> None:
    own = stage(ground)
    own.destroy()
    cautious = stage(ground, CONFIG.replace('"100MB"', '"3500MB"'))
    done = cautious.run("provision", check=False)
    assert done.returncode == 5, done.stderr
    assert f"pool {POOL}" in done.stderr
    assert GOLDEN not in ground.names("projects")


def test_destroy_removes_the_pool_only_where_nobody_else_uses_it(ground: Ground) -> None:
    own = stage(ground)
    ground.incus("storage", "volume", "create", POOL, "theirs")
    done = own.run("destroy", "--pool", "--yes", check=False)
    assert done.returncode == 4, done.stderr
    assert "theirs" in done.stderr
    ground.incus("storage", "volume", "delete", POOL, "theirs")
    own.run("destroy", "--pool", "--yes")
    assert POOL not in ground.names("storage-pools")
    assert "nothing to remove" in own.run("destroy", "--pool", "--yes").stdout
