"""Provisioning does not start where it would not fit, or would reach production."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SIX, TRAPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

ONLY_CACHE = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name != "cache")


@pytest.fixture(scope="module")
def planned(ground: Ground) -> Stage:
    """Settings of a stage that does not exist."""
    return ground.stage("STAGE-ROOM", "stageroom0", 13, ONLY_CACHE)


def refused(stage: Stage, status: int, *args: str, env: dict[str, str] | None = None) -> str:
    """Provisioning ends with a status, and nothing that writes was sent; what it said."""
    with stage.ground.events() as events:
        done = stage.run("provision", *args, check=False, env=env)
    assert done.returncode == status, done.stderr
    assert events == []
    assert "Traceback" not in done.stderr
    assert "what to do:" in done.stderr
    return done.stderr


# -- room


def test_a_limit_below_what_the_source_references_is_an_error_that_names_both_sizes(planned: Stage) -> None:
    """On a pool with quotas as Incus itself turns them on: shared bytes count."""
    ground = planned.ground
    env = {
        "STAGEGBO_DISK_LIMIT": "100MB",
        "STAGEGBO_CONTAINERS__CACHE__SOURCE": "counted",
        "STAGEGBO_DISK_FLOOR": "1MB",
    }
    with pool(ground, "counted", "btrfs", "size=2GiB"):
        ground.incus("init", "--empty", "counted", "-s", "counted", "-d", "root,size=1GiB")
        try:
            folder = "/var/lib/incus/storage-pools/counted"
            ground.lab_command(
                "dd", "if=/dev/zero", f"of={folder}/containers/counted/rootfs/data", "bs=1M", "count=300"
            )
            volumes = ground.volumes("counted")
            done = planned.run("provision", check=False, env=env)
            assert done.returncode == 5, done.stderr
            found = re.search(
                r"cache: the disk limit 100MB \(95.4 MiB\) is below the about ([\d.]+) MiB that default/counted",
                done.stderr,
            )
            assert found, done.stderr
            assert 300 <= float(found[1]) < 330
            assert "containers.cache.disk_limit" in done.stderr
            assert ground.instances(planned.project) == {}
            assert ground.volumes("counted") == volumes
        finally:
            planned.destroy()
            ground.incus("delete", "counted")


def test_a_pool_with_too_little_room_is_refused(planned: Stage) -> None:
    said = refused(planned, 5, env={"STAGEGBO_DISK_FLOOR": "11GiB"})
    assert "too little room on pool pool" in said
    assert "11 GiB must stay free" in said
    assert "disk_floor" in said


def test_a_full_file_system_below_a_pool_s_file_is_refused(planned: Stage) -> None:
    """The pool's file is sparse and larger than the file system that it is on: the pool itself has room enough."""
    ground = planned.ground
    found = os.statvfs(ground.lab.paths.incus)
    free = found.f_bavail * found.f_frsize
    settings = {"STAGEGBO_CONTAINERS__CACHE__SOURCE": "sparse", "STAGEGBO_DISK_FLOOR": f"{free * 2}B"}
    with pool(ground, "sparse", "btrfs", f"size={free * 3}B"):
        ground.incus("init", "--empty", "sparse", "-s", "sparse")
        try:
            said = refused(planned, 5, env=settings)
        finally:
            ground.incus("delete", "sparse")
    assert "too little room on the host's file system that holds the file of pool sparse" in said


def pool(ground: Ground, name: str, driver: str, *config: str) -> Pool:
    return Pool(ground, name, driver, config)


class Pool:
    """A storage pool while a block runs."""

    def __init__(self, ground: Ground, name: str, driver: str, config: tuple[str, ...]) -> None:
        self._ground, self._name, self._driver, self._config = ground, name, driver, config

    def __enter__(self) -> None:
        self._ground.incus("storage", "create", self._name, self._driver, *self._config)

    def __exit__(self, *_: object) -> None:
        self._ground.incus("storage", "delete", self._name)


@pytest.fixture(scope="module")
def copied(ground: Ground) -> Iterator[Stage]:
    """A source on a pool without copy-on-write."""
    with pool(ground, "plain", "dir"):
        ground.incus("init", "--empty", "plain", "-s", "plain")
        try:
            rootfs = ground.host / "var/lib/incus/storage-pools/plain/containers/plain/rootfs"
            rootfs.mkdir(exist_ok=True)
            (rootfs / "five-megabytes").write_bytes(b"x" * 5_000_000)
            yield ground.stage("STAGE-PLAIN", "stageplain0", 14, ONLY_CACHE + 'cache.source = "plain"\n')
        finally:
            ground.incus("delete", "plain")


def test_a_pool_without_copy_on_write_is_a_warning_with_the_bytes(copied: Stage) -> None:
    notes = copied.json("provision", "--dry-run")["notes"]
    warning = next(note for note in notes if "pool plain (dir)" in note)
    assert "no copy-on-write" in warning
    found = re.search(r"a full copy of ([\d.]+) MiB", warning)
    assert found, warning
    assert 4.7 < float(found[1]) < 6


def test_a_full_copy_needs_its_own_bytes_as_room(copied: Stage) -> None:
    """As much as is free has to stay free, so that not even five megabytes are left to copy."""
    said = refused(copied, 5, env={"STAGEGBO_DISK_FLOOR": "100TB"})
    assert "to copy" in said


def test_a_clone_on_a_pool_without_copy_on_write_works_and_verify_says_that_nothing_limits_it(ground: Ground) -> None:
    with pool(ground, "plain-whole", "dir"):
        ground.incus("copy", "cache", "whole", "--storage", "plain-whole", "--instance-only", "--stateless")
        stage = ground.stage("STAGE-WHOLE", "stagewhole0", 17, ONLY_CACHE + 'cache.source = "whole"\n')
        try:
            stage.run("provision")
            stage.run("reset", "cache")
            findings = json.loads(stage.run("verify", "--json", check=False).stdout)["findings"]
        finally:
            stage.run("destroy", "--yes")
            ground.incus("delete", "whole")
    (limits,) = (each for each in findings if each["id"] == "limits.disk")
    assert (limits["state"], "past its limit of 10GB" in " ".join(limits["evidence"])) == ("red", True), limits


MANY = "sh -c 'i=0; while [ $i -lt 400 ]; do sleep 5 & i=$((i + 1)); done; echo all' 2>&1; true"


def test_a_clone_starts_no_processes_without_end(ground: Ground) -> None:
    """Not on the lab of Incus 7.0: in its control groups, of version 2, this kernel counts no processes."""
    stage = ground.stage("STAGE-MANY", "stagemany0", 18, "[limits]\nprocesses = 300\n" + ONLY_CACHE)
    stage.run("provision")
    try:
        assert "fork" in stage.exec("cache", "sh", "-c", MANY)
        stage.config.write_text(stage.config.read_text().replace("processes = 300", "processes = 3000"))
        stage.run("provision")
        assert stage.exec("cache", "sh", "-c", MANY) == "all\n"
    finally:
        stage.destroy()


# -- production


def test_the_project_of_production_is_no_stage(planned: Stage) -> None:
    said = refused(planned, 2, "--project", "default")
    assert "default" in said


def test_another_project_of_production_is_no_stage(planned: Stage) -> None:
    ground = planned.ground
    made = TRAPS not in ground.names("projects")
    if made:
        ground.incus("project", "create", TRAPS)
    refused(planned, 2, "--project", TRAPS, "--source-project", TRAPS)
    if made:
        ground.incus("project", "delete", TRAPS)


def test_the_subnet_of_production_is_refused(planned: Stage) -> None:
    said = refused(planned, 2, env={"STAGEGBO_NETWORK__ADDRESS": "10.0.2.1/24"})
    assert "10.0.2" in said


def test_a_subnet_that_holds_that_of_production_is_refused(planned: Stage) -> None:
    refused(planned, 2, env={"STAGEGBO_NETWORK__ADDRESS": "10.0.0.1/16"})


def test_the_subnet_of_any_other_network_is_refused(planned: Stage) -> None:
    ground = planned.ground
    ground.incus("network", "create", "office0", "ipv4.address=10.0.13.129/25", "ipv6.address=none")
    try:
        said = refused(planned, 4)
        assert "office0" in said
    finally:
        ground.incus("network", "delete", "office0")


def test_the_bridge_of_production_is_refused(planned: Stage) -> None:
    said = refused(planned, 4, "--network", "prodbr0")
    assert "prodbr0" in said


def test_a_source_that_is_not_there_is_named(planned: Stage) -> None:
    said = refused(planned, 1, env={"STAGEGBO_CONTAINERS__CACHE__SOURCE": "redis"})
    assert "redis" in said
    assert "tables" in said, "what there is"


def test_a_source_project_that_is_not_there_is_named(planned: Stage) -> None:
    assert "PROD-NONE" in refused(planned, 1, "--source-project", "PROD-NONE")
