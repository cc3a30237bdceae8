"""A lab whose daemons are an Incus cluster, and stages on it.

Two members, in a lab of their own beside the others: it is brought up when the first of these tests runs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tests.cluster_model import SESSION_REQUESTS
from tests.lab import clusters
from tests.lab.support import Ground, Stage, until

from pytest_stagegbo.desired import objects
from pytest_stagegbo.errors import LabError
from pytest_stagegbo.incus.hostnet import call_inside
from pytest_stagegbo.lab import Lab, api
from pytest_stagegbo.lab.switch import PORT, address
from pytest_stagegbo.progress import Silent
from pytest_stagegbo.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.lab

ONLINE = clusters.online(2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    """Two members, production on the first."""
    with clusters.brought_up("cluster", 2) as lab:
        yield lab


def get(lab: Lab, path: str = "") -> Any:
    return api.get(lab.socket, f"/1.0/{path}".rstrip("/"))


def lab_command(lab: Lab, *args: str) -> list[str]:
    assert lab.paths.name == os.environ["STAGEGBO_LAB_NAME"]
    return [sys.executable, "-m", "pytest_stagegbo", "lab", *args]


def connects(lab: Lab, host: str, port: int) -> bool:
    """Whether a program in the network of that member connects."""

    def connect() -> bool:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            return False
        return True

    return call_inside(lab.paths.netns_file, connect)


def reaches(lab: Lab, member: str, other: str) -> bool:
    """Whether one member connects to the other's API."""
    return connects(lab.at(member), address(other), PORT)


# -- the lab


@pytest.mark.both_lts
def test_two_daemons_are_one_cluster_with_production_on_the_first(cluster: Lab) -> None:
    status = cluster.status()
    assert status.ready
    assert status.members == ONLINE
    for member in ONLINE:
        found = get(cluster.at(member), "instances?recursion=1")
        assert {each["location"] for each in found} == {"member1"}
        assert len(found) == 6
    assert get(cluster.at("member2"))["environment"]["server_name"] == "member2"


def test_status_shows_the_members(cluster: Lab) -> None:
    done = subprocess.run(lab_command(cluster, "status"), check=True, capture_output=True, text=True)
    assert "members: member1 online, member2 online" in done.stdout


def test_a_command_runs_at_the_member_that_is_named(cluster: Lab) -> None:
    argv = lab_command(cluster, "exec", "--member", "member2", "--", "ip", "-j", "address")
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    found = {each["local"] for link in json.loads(done.stdout) for each in link["addr_info"]}
    assert address("member2") in found
    assert address("member1") not in found


def test_members_have_no_way_out_but_to_each_other(cluster: Lab) -> None:
    for member in ONLINE:
        argv = cluster.at(member).exec_argv(["ip", "-j", "route"])
        routes = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        assert "default" not in {route["dst"] for route in routes}
    assert reaches(cluster, "member1", "member2")


def test_a_member_that_was_stopped_comes_back(cluster: Lab) -> None:
    cluster.change_member("member2", "stop", Silent())
    assert cluster.status().members == {"member1": "online", "member2": "stopped"}
    assert cluster.status().ready  # production goes on
    cluster.change_member("member2", "start", Silent())
    until(lambda: cluster.status().members == ONLINE, "member2 is online", 30)


@pytest.mark.cluster
def test_a_member_that_was_cut_off_runs_and_reaches_nobody_until_it_is_started(cluster: Lab) -> None:
    pid = cluster.at("member2").status().pid
    subprocess.run(lab_command(cluster, "member", "cut", "member2"), check=True, capture_output=True)
    assert cluster.status().members["member2"] == "cut"
    assert not reaches(cluster, "member1", "member2")
    subprocess.run(lab_command(cluster, "member", "start", "member2"), check=True, capture_output=True)
    assert reaches(cluster, "member1", "member2")
    assert cluster.at("member2").status().pid == pid
    until(lambda: cluster.status().members == ONLINE, "member2 is online", 30)


@pytest.mark.cluster
def test_up_brings_back_what_is_not_there(cluster: Lab) -> None:
    """Also a member that the machine's own end took, and whose cable is gone with it."""
    cluster.change_member("member2", "cut", Silent())
    init = cluster.at("member2").status().pid
    assert init is not None
    os.kill(init, signal.SIGKILL)
    until(lambda: cluster.status().members["member2"] == "stopped", "member2 has ended", 20)
    cluster.up(Silent())
    until(lambda: cluster.status().members == ONLINE, "member2 is online", 30)


def test_a_join_that_was_killed_is_done_again_by_the_next_up(cluster: Lab) -> None:
    """As `kill -9` leaves it at the worst moment: the database knows the member, and no mark says that it is whole."""
    mark = cluster.at("member2").paths.lab / "joined"
    mark.unlink()
    until(lambda: cluster.status().members["member2"] == "absent", "the mark is gone", 5)
    with subprocess.Popen(lab_command(cluster, "up"), stderr=subprocess.DEVNULL) as joining:
        until(lambda: _is_joining(cluster) or joining.poll() is not None, "member2 joins", 60)
        joining.kill()
    assert not mark.exists()
    cluster.up(Silent())
    assert cluster.status().members == ONLINE
    assert cluster.status().ready


def _is_joining(lab: Lab) -> bool:
    """Whether the second daemon of a new try is up."""
    try:
        return bool(get(lab.at("member2"))["environment"]["server_name"] != "member2")
    except OSError:
        return False


def test_a_lab_keeps_its_members(cluster: Lab) -> None:
    with pytest.raises(LabError, match="cluster of 2 members") as caught:
        cluster.up(Silent(), members=1)
    assert "--fresh" in caught.value.remedy
    with pytest.raises(LabError, match="no member member3"):
        cluster.change_member("member3", "stop", Silent())
    assert cluster.status().members == ONLINE


@pytest.mark.cluster
def test_down_takes_all_members_away_and_up_brings_them_back(cluster: Lab) -> None:
    names = {Path(cluster.paths.netns_file), cluster.at("member2").paths.netns_file, cluster.paths.switch_file}
    assert all(name.exists() for name in names)
    cluster.down()
    assert not any(name.exists() for name in names)
    cluster.up(Silent())
    until(lambda: cluster.status().members == ONLINE, "both are online", 30)
    assert cluster.status().ready


# -- stages


SMALL = clusters.containers("cache", "drive")


class Seen(NamedTuple):
    """The same stage, from two members."""

    first: Stage
    second: Stage


@pytest.fixture(scope="module")
def seen(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Nobody's stage is there yet."""
    grounds = [Ground(cluster.at(member), tmp_path_factory.mktemp(member)) for member in ONLINE]
    grounds[0].reset()
    first, second = (ground.stage("STAGE-GBO", settings=SMALL) for ground in grounds)
    return Seen(first, second)


@pytest.fixture
def stage(seen: Seen) -> Seen:
    """It answers."""
    seen.first.run("provision")
    return seen


@pytest.mark.both_lts
def test_a_stage_is_made_where_production_is_from_any_member_and_leaves_nothing(seen: Seen) -> None:
    """By the client of the member that has nothing of it: connections go through the daemon."""
    stage, ground = seen.second, seen.second.ground
    before = clusters.whole_cluster(ground, ONLINE)
    done = stage.json("provision")
    assert {found["state"] for found in done["containers"].values()} == {"ready"}
    clones = ground.instances("STAGE-GBO")
    assert {name: clone["location"] for name, clone in clones.items()} == {"cache": "member1", "drive": "member1"}
    assert set(ground.get("networks/stagebr0")["locations"]) == set(ONLINE)
    pool = "storage-pools/pool/volumes/container"
    for name in clones:  # copy-on-write: each has less than a tenth of what production's has
        used = ground.get(f"{pool}/{name}/state", project="STAGE-GBO")["usage"]["used"]
        assert used < 100 << 20
    for each in seen:
        status = each.json("status")
        assert {found["state"] for found in status["containers"]} == {"ready"}
        assert status["member"] == "member1"
        assert not any(step["changes"] for step in each.json("provision", "--dry-run")["steps"])
    stage.destroy()
    assert clusters.whole_cluster(ground, ONLINE) == before


def test_verify_says_what_the_host_of_another_member_hides(stage: Seen) -> None:
    far, near = ({each["id"]: each for each in of.json("verify")["findings"]} for of in (stage.second, stage.first))
    seen = {name: " ".join(each["evidence"]) for name, each in far.items()}
    assert {each["state"] for each in (*far.values(), *near.values())} == {"green", "skipped"}
    assert [name for name in far if far[name]["state"] != near[name]["state"]] == ["exposure.host-rules"]
    assert seen["exposure.host-rules"] == "the stage is on cluster member member1"
    assert "not listened for (the stage is on cluster member member1)" in seen["reach.production"]
    assert {address("member1"), address("member2")} <= set(re.findall(r"[0-9.]*[0-9]", seen["reach.host"]))


def test_a_reset_from_another_member_is_a_reset(stage: Seen) -> None:
    stage.second.exec("cache", "env", f"REDISCLI_AUTH={stage.first.password}", "valkey-cli", "SET", "left", "over")
    assert stage.second.valkey_keys() == ["left"]
    stage.second.run("reset", "cache")
    assert stage.second.valkey_keys() == []


@pytest.mark.cluster
@pytest.mark.both_lts
def test_a_file_is_deployed_from_another_member(stage: Seen) -> None:
    file, notes = stage.second.config.parent / "notes", "/opt/gbo/conf/notes"
    file.write_text("candidate\n")
    stage.second.run("deploy", "drive", f"{notes}={file}")
    assert stage.first.exec("drive", "cat", notes) == "candidate\n"
    assert notes in stage.first.run("deploy", "--list").stdout
    stage.second.run("deploy", "drive", "--undo")
    stage.first.exec("drive", "test", "!", "-e", notes)


def test_a_program_on_another_member_reaches_the_services(stage: Seen) -> None:
    code = """
import os, socket, urllib.parse
place = urllib.parse.urlsplit(os.environ["REDIS_URL"])
with socket.create_connection((place.hostname, place.port), 5) as connection:
    connection.sendall(b"PING\\r\\n")
    print(place.hostname, connection.recv(100).decode())
"""
    assert "10.0.3.13 -NOAUTH" in stage.first.run("run", "--", sys.executable, "-c", code).stdout
    assert "127.0.0.1 -NOAUTH" in stage.second.run("run", "--", sys.executable, "-c", code).stdout


def test_a_port_is_exposed_at_the_host_of_the_stage(stage: Seen) -> None:
    at = f"{address('member1')}:16379"
    stage.second.run("expose", "cache:6379", "--listen", at, "--for", "5m", "--yes")
    (forward,) = stage.second.ground.get("networks/stagebr0/forwards", recursion="1")
    assert forward["location"] == "member1"
    assert connects(stage.second.ground.lab, address("member1"), 16379)
    stage.second.run("expose", "--close")
    assert stage.second.ground.get("networks/stagebr0/forwards") == []


@pytest.mark.cluster
def test_a_production_on_two_members_gets_a_stage_on_one(seen: Seen) -> None:
    """What is on the other member is copied in full, while it runs; the rest shares blocks."""
    ground = seen.first.ground
    spread = 'source_project = "PROD-SPREAD"'
    stage = ground.stage("STAGE-S", network="spreadbr0", subnet=60, settings=spread)
    stage.config.write_text(stage.config.read_text() + SMALL)
    ground.incus("project", "create", "PROD-SPREAD", "-c", "features.images=false", "-c", "features.profiles=false")
    try:
        for name, member in (("cache", "member1"), ("drive", "member2")):
            words = ["--stateless", "--instance-only", "--target-project", "PROD-SPREAD", "--target", member]
            ground.incus("copy", name, name, *words)
        ground.incus("start", "drive", project="PROD-SPREAD")  # on the first member, the names are production's
        before = ground.instances("PROD-SPREAD")
        stage.run("provision")
        clones = ground.instances("STAGE-S")
        assert {clone["location"] for clone in clones.values()} == {"member1"}
        pool = "storage-pools/pool/volumes/container"
        used = {each: ground.get(f"{pool}/{each}/state", project="STAGE-S")["usage"]["used"] for each in clones}
        assert used["cache"] < 100 << 20 < used["drive"]
        assert ground.instances("PROD-SPREAD") == before
    finally:
        stage.destroy()
        ground.incus("delete", "--force", "cache", "drive", project="PROD-SPREAD", check=False)
        ground.incus("project", "delete", "PROD-SPREAD")


SPREAD = '[slots]\ncores = 2\nmemory = "64MiB"\nmemory_floor = "64MiB"\ndisk = "50MB"\n'
"""A slot for each member of two cores."""


def test_slots_are_on_both_members_and_used_from_one(seen: Seen) -> None:
    """One container each. Connections go directly to the slot of this member, and through the daemon to the other."""
    ground = seen.second.ground
    seen.first.destroy()
    before = clusters.whole_cluster(ground, ONLINE)
    stage = ground.stage("STAGE-GBO", settings=clusters.containers("cache") + SPREAD)
    done = stage.run("provision", "--slots", "2")
    assert "members: 1 on member1, 1 on member2" in done.stdout
    # On a busy machine the first connection through the daemon takes longer than status waits, which then says so.
    status = json.loads(stage.run("status", "--json", check=False).stdout)
    placed = {slot["number"]: slot["member"] for slot in status["slots"]}
    assert placed == {0: "member1", 1: "member2", -1: "member1", -2: "member2"}
    pool = "storage-pools/pool/volumes/container"
    used = ground.get(f"{pool}/cache/state", project="STAGE-GBO-1")["usage"]["used"]
    assert used < 100 << 20  # copy-on-write, of the golden copy there
    (stage.config.parent / "test_slots.py").write_text(SLOTS)
    (stage.config.parent / "conftest.py").write_text(COUNTING)
    words = ["-n", "2", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--stage-lab", "--stage-slots", "2"]
    argv = [sys.executable, "-m", "pytest", *words, "--stage-config", str(stage.config), "test_slots.py"]
    ran = subprocess.run(
        argv, cwd=stage.config.parent, env=stage.environment(), check=False, capture_output=True, text=True, timeout=120
    )
    assert "4 passed" in ran.stdout, ran.stdout
    hosts = {path.name.split(".", 1)[1] for path in stage.config.parent.glob("seen.*")}
    assert hosts == {"127.0.0.1", "10.0.4.13"}
    assert len((stage.config.parent / "requests").read_text()) < 2 * SESSION_REQUESTS * 1.5
    stage.destroy()
    assert clusters.whole_cluster(ground, ONLINE) == before


@pytest.mark.cluster
@pytest.mark.both_lts
def test_fresh_stages_are_those_of_both_members(seen: Seen) -> None:
    ground = seen.second.ground
    seen.first.destroy()
    stage = ground.stage("STAGE-GBO", settings=clusters.containers("cache") + SPREAD)
    stage.run("provision", "--slots", "2")
    (stage.config.parent / "test_fresh.py").write_text(FRESH)
    words = ["-n", "2", "--dist", "each", "-q", "-p", "no:cacheprovider", "--stage-lab", "--stage-slots", "2"]
    argv = [sys.executable, "-m", "pytest", *words, "--stage-config", str(stage.config), "test_fresh.py"]
    ran = subprocess.run(
        argv, cwd=stage.config.parent, env=stage.environment(), check=False, capture_output=True, text=True, timeout=180
    )
    assert "4 passed" in ran.stdout, ran.stdout
    stage.destroy()


FRESH = """
import pathlib, time, pytest

@pytest.mark.parametrize("number", range(2))
def test_fresh(number, stage_fresh):
    assert stage_fresh.cache.exec("test", "-e", "/opt/gbo/data/valkey/left", check=False).status
    stage_fresh.cache.exec("touch", "/opt/gbo/data/valkey/left")
    pathlib.Path(f"fresh.{number}.{stage_fresh.project}").touch()
    ends = time.monotonic() + 100
    while len(list(pathlib.Path().glob(f"fresh.{number}.*"))) < 2:  # that of the other worker, which is another one
        assert time.monotonic() < ends
        time.sleep(0.05)
"""


SLOTS = """
import pathlib, socket, pytest

@pytest.mark.stage_reset("cache")
@pytest.mark.parametrize("number", range(4))
def test_one(stage_cache, number):
    pathlib.Path(f"seen.{stage_cache.host}").touch()
    with socket.create_connection((stage_cache.host, stage_cache.port), 5) as connection:
        connection.sendall(b"PING\\r\\n")
        assert connection.recv(100).startswith(b"-NOAUTH")
    assert stage_cache.exec("test", "-e", "/opt/gbo/data/valkey/left", check=False).status
    stage_cache.exec("touch", "/opt/gbo/data/valkey/left")
"""


COUNTING = """
from pytest_stagegbo.incus.connection import Connection

send = Connection._send

def counting(self, *args, **options):
    with open("requests", "a") as file:
        file.write(".")
    return send(self, *args, **options)

Connection._send = counting
"""


def announce_bridge(ground: Ground) -> None:
    """As a provisioning leaves it that is killed before the bridge is made."""
    ground.incus("network", "create", "stagebr0", "--target", "member2")
    assert ground.get("networks/stagebr0")["status"] == "Pending"
    assert not ground.get("networks/stagebr0")["config"]


def test_a_bridge_that_was_only_announced_is_made_or_removed_by_the_next_run(seen: Seen) -> None:
    ground = seen.first.ground
    seen.first.destroy()
    before = clusters.whole_cluster(ground, ONLINE)
    for command in (["destroy", "--yes"], ["provision"]):
        ground.put("network-acls", {"name": "stagebr0-isolation", **objects.acl(Settings())}, method="POST")
        announce_bridge(ground)
        seen.first.run(*command)
        assert command == ["provision"] or clusters.whole_cluster(ground, ONLINE) == before
    assert ground.get("networks/stagebr0")["status"] == "Created"


@pytest.mark.cluster
def test_a_bridge_that_somebody_else_announced_is_left_alone(seen: Seen) -> None:
    ground = seen.first.ground
    seen.first.destroy()
    announce_bridge(ground)
    try:
        done = seen.first.run("provision", check=False)
        assert done.returncode
        assert "network stagebr0" in done.stderr
        assert "not made by pytest-stagegbo" in done.stderr
        seen.first.destroy()
        assert ground.get("networks/stagebr0")["status"] == "Pending"
    finally:
        ground.incus("network", "delete", "stagebr0")


@pytest.mark.cluster
def test_while_a_member_is_away_a_stage_goes_on_and_none_is_begun(cluster: Lab, stage: Seen) -> None:
    other = stage.first.ground.stage("STAGE-2", network="otherbr0", subnet=40, settings=SMALL)
    with clusters.stopped(cluster, "member2"):
        stage.first.run("reset", "cache")
        assert {each["state"] for each in stage.first.json("status")["containers"]} == {"ready"}
        assert "nothing to change" in stage.first.run("provision").stdout
        done = other.run("provision", check=False)
        assert done.returncode
        assert "can't be made while member2 is offline" in done.stderr
        assert "STAGE-2" not in other.ground.names("projects")
