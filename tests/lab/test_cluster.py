"""A lab whose daemons are an Incus cluster, and stages on it.

Two members, in a lab of their own beside the others: it is brought up when the first of these tests runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from tests.lab.support import until

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.incus.hostnet import call_inside
from pytest_stagegbo.lab import Lab, api
from pytest_stagegbo.lab.switch import PORT, address
from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.lab

ONLINE = {"member1": "online", "member2": "online"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    """Two members, production on the first. One that is up already is left up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGEGBO_LAB_NAME", f"{Lab.find().paths.name}-cluster")
        lab = Lab.find()
        (lab.paths.state / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(lab.paths.lock(f"tests-{lab.paths.name}")):
            found_up = lab.status().ready
            lab.up(Silent(), members=2)
            yield lab
            if not found_up:
                lab.down(purge=True)


def get(lab: Lab, path: str = "") -> Any:
    return api.get(lab.socket, f"/1.0/{path}".rstrip("/"))


def lab_command(lab: Lab, *args: str) -> list[str]:
    assert lab.paths.name == os.environ["STAGEGBO_LAB_NAME"]
    return [sys.executable, "-m", "pytest_stagegbo", "lab", *args]


def reaches(lab: Lab, member: str, other: str) -> bool:
    """Whether one member connects to the other's API."""

    def connect() -> bool:
        try:
            socket.create_connection((address(other), PORT), 1).close()
        except OSError:
            return False
        return True

    return call_inside(lab.at(member).paths.netns_file, connect)


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


def test_a_member_that_was_cut_off_runs_and_reaches_nobody_until_it_is_started(cluster: Lab) -> None:
    pid = cluster.at("member2").status().pid
    subprocess.run(lab_command(cluster, "member", "cut", "member2"), check=True, capture_output=True)
    assert cluster.status().members["member2"] == "cut"
    assert not reaches(cluster, "member1", "member2")
    subprocess.run(lab_command(cluster, "member", "start", "member2"), check=True, capture_output=True)
    assert reaches(cluster, "member1", "member2")
    assert cluster.at("member2").status().pid == pid
    until(lambda: cluster.status().members == ONLINE, "member2 is online", 30)


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


def test_down_takes_all_members_away_and_up_brings_them_back(cluster: Lab) -> None:
    names = {Path(cluster.paths.netns_file), cluster.at("member2").paths.netns_file, cluster.paths.switch_file}
    assert all(name.exists() for name in names)
    cluster.down()
    assert not any(name.exists() for name in names)
    cluster.up(Silent())
    until(lambda: cluster.status().members == ONLINE, "both are online", 30)
    assert cluster.status().ready
