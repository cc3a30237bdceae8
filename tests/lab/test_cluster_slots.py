"""Slots over the three members of an Incus cluster: members that go away and come back, and kills at every step.

Each member takes two slots with ease, so that six are on all of them. `./dev lab-tests --cluster` runs these tests.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.cluster_model import Cluster
from tests.lab import clusters, forkserver, support
from tests.lab.host_of_its_own import HostProgram
from tests.lab.support import Ground, Stage, until

from pytest_stagegbo.desired import marks
from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_stagegbo.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.cluster, pytest.mark.both_lts]

MEMBERS = clusters.online(3)
PROJECT = "STAGE-GBO"
SETTINGS = (
    clusters.containers("cache") + '[slots]\ncores = 1\nmemory = "64MiB"\nmemory_floor = "64MiB"\ndisk = "50MB"\n'
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    with clusters.brought_up("cluster3", 3) as lab:
        yield lab


@pytest.fixture(scope="module")
def ground(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    made = Ground(cluster.at("member1"), tmp_path_factory.mktemp("member1"))
    made.reset()
    return made


@pytest.fixture(scope="module")
def stage(ground: Ground) -> Stage:
    return ground.stage(PROJECT, settings=SETTINGS)


@pytest.fixture
def six(stage: Stage) -> Stage:
    """Six slots that answer, two on each member."""
    stage.run("provision", "--slots", "6", timeout=400)
    return stage


def production(ground: Ground) -> dict[str, Any]:
    """All of it is on the first member. A cluster lists instances and members in another order each time."""
    found = support.production(ground)
    found["instances"] = {each["name"]: each for each in found["instances"]}
    found["network"]["locations"].sort()
    return found


def members_of(stage: Stage) -> dict[int, str]:
    """By slot, the member of a stage's slots; the golden copy and its copies are below 0."""
    return {slot["number"]: slot["member"] for slot in stage.json("status")["slots"]}


def states_of(stage: Stage) -> dict[int, str]:
    return {slot["number"]: slot["state"] for slot in stage.json("status")["slots"] if slot["number"] >= 0}


def test_six_slots_are_on_three_members_and_leave_nothing(ground: Ground, stage: Stage) -> None:
    before = clusters.whole_cluster(ground, MEMBERS), production(ground)
    done = stage.run("--debug", "provision", "--slots", "6", timeout=400)
    methods = re.findall(r"\b(GET|POST|PUT|PATCH|DELETE) /1\.0", done.stderr)
    model, writes = Cluster(members=3, slots=6, containers=1), len(methods) - methods.count("GET")
    assert model.requests / 2 < len(methods) < model.requests * 1.5
    assert model.writes / 2 < writes < model.writes * 1.5
    assert "members: 2 on member1, 2 on member2, 2 on member3" in done.stdout
    assert "member2: memory: " in done.stdout
    placed = members_of(stage)
    assert {number: placed[number] for number in range(6)} == {
        number: f"member{1 + number // 2}" for number in range(6)
    }
    assert Counter(name for number, name in placed.items() if number < 0) == dict.fromkeys(MEMBERS, 1)
    pool = "storage-pools/pool/volumes/container"
    for number in (1, 3, 5):  # each shares blocks with the golden copy of its member
        used = ground.get(f"{pool}/cache/state", project=f"{PROJECT}-{number}")["usage"]["used"]
        assert used < 100 << 20
    again = stage.json("provision", "--slots", "6")
    assert not any(slot["changed"] for slot in again["slots"].values())
    stage.destroy()
    assert (clusters.whole_cluster(ground, MEMBERS), production(ground)) == before


# -- members that go away


SESSION = """
import pathlib, socket, pytest

@pytest.mark.stage_reset("cache")
@pytest.mark.parametrize("number", range(240))
def test_one(stage_cache, stage_settings, number):
    pathlib.Path(f"began.{stage_settings.project}.{number}").touch()
    with socket.create_connection((stage_cache.host, stage_cache.port), 5) as connection:
        connection.sendall(b"PING\\r\\n")
        assert connection.recv(100).startswith(b"-NOAUTH")
"""


def began(folder: Path) -> Counter[str]:
    """By project, how many tests have begun."""
    return Counter(path.name.split(".")[1] for path in folder.glob("began.*"))


def results(file: Path) -> dict[int, list[str]]:
    """By slot, what each of its tests ended with: an empty text where it passed."""
    found: dict[int, list[str]] = {}
    for case in ET.parse(file).iter("testcase"):
        slot = [each.get("value") for each in case.iter("property") if each.get("name") == "stage.slot"]
        failed = [ET.tostring(each, encoding="unicode") for name in ("failure", "error") for each in case.iter(name)]
        found.setdefault(int(slot[0] or 0) if slot else -1, []).append("".join(failed))
    return found


def test_a_member_that_dies_takes_its_slots_and_nothing_else(
    cluster: Lab, ground: Ground, six: Stage, tmp_path: Path
) -> None:
    (tmp_path / "test_session.py").write_text(SESSION)
    before = production(ground)
    words = ["-n", "6", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--stage-lab", "--stage-slots", "6"]
    words += ["--stage-config", str(six.config), "--junit-xml", "report.xml", "test_session.py"]
    argv = [sys.executable, "-m", "pytest", *words]
    with subprocess.Popen(
        argv, cwd=tmp_path, env=six.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        until(lambda: len(began(tmp_path)) == 6 or running.poll() is not None, "each slot has a test", 120)
        cluster.change_member("member3", "stop", Silent())
        output = running.communicate(timeout=400)[0]
    with clusters.stopped(cluster, "member3"):
        found = results(tmp_path / "report.xml")
        assert all(found.get(number) for number in range(6)), output
        assert not any(text for number in range(4) for text in found[number]), output
        for number in (4, 5):
            lost = [text for text in found[number] if "MemberAway: " in text]
            assert lost, output
            assert all("cluster member member3" in text for text in lost), output
            assert all("incus cluster remove --force member3" in text for text in lost), output
            assert not any("Incus refused" in text for text in found[number] if text not in lost), output
        assert production(ground) == before
        again = six.run("provision", "--slots", "6", timeout=400)
        assert "member3 is offline, and 2 slots with it (4, 5)" in again.stdout
        assert "4 slots in" in again.stdout
        assert states_of(six) == {0: "running", 1: "running", 2: "running", 3: "running", 4: "away", 5: "away"}
    # It is there again, with its containers stopped as a power cut leaves them.
    assert "6 slots in" in six.run("provision", "--slots", "6", timeout=400).stdout
    assert set(states_of(six).values()) == {"running"}
    assert production(ground) == before


def test_an_evacuated_member_keeps_its_slots_and_others_take_their_place(
    cluster: Lab, ground: Ground, six: Stage
) -> None:
    ground.incus("cluster", "evacuate", "member3", "--force")
    try:
        found = six.run("provision", "--slots", "6", timeout=400).stdout
        assert "member3 is evacuated, and 2 slots with it (4, 5)" in found
        placed = members_of(six)
        assert {placed[number] for number in (6, 7)} <= {"member1", "member2"}
        assert (placed[4], placed[5]) == ("member3", "member3")
        done = six.run("--slot", "4", "reset", "cache", check=False)
        assert done.returncode == 3
        assert f"{PROJECT}-4 is on cluster member member3, which is evacuated" in done.stderr
    finally:
        ground.incus("cluster", "restore", "member3", "--force")
    until(lambda: clusters.member_status(cluster, "member3") == "Online", "member3 is restored", 60)
    six.run("provision", "--slots", "6", timeout=400)
    states = states_of(six)
    assert {states[number] for number in range(6)} == {"running"}
    six.destroy()
    assert not {name for name in ground.names("projects") if name.startswith(PROJECT)}


def unfinished(ground: Ground, number: int) -> bool:
    found: dict[str, Any] = ground.instances(f"{PROJECT}-{number}")
    return any(each["config"].get(marks.STATE) == marks.BUILDING for each in found.values())


def test_half_a_slot_of_a_member_that_comes_back_is_made_whole(cluster: Lab, ground: Ground, stage: Stage) -> None:
    stage.destroy()
    with stage.start("provision", "--slots", "6") as making:
        until(lambda: unfinished(ground, 4) or making.poll() is not None, "slot 4 is being made", 200)
        cluster.change_member("member3", "stop", Silent())
        output, errors = making.communicate(timeout=300)
    assert making.returncode, output
    assert "member3" in errors, errors
    with clusters.stopped(cluster, "member3"):
        stage.run("provision", "--slots", "6", timeout=400)  # of those whose bridges are there
        states, placed = states_of(stage), members_of(stage)
        elsewhere = {number: placed[number] for number in states if placed[number] in {"member1", "member2"}}
        assert {states[number] for number in elsewhere} == {"running"}
        assert {states[number] for number in states.keys() - elsewhere.keys()} <= {"away", "empty"}
        assert 4 not in elsewhere, "it was begun on the member that is away"
    stage.run("provision", "--slots", "6", timeout=400)
    # Slot 5 is elsewhere if it had not been begun: it then went to a member that was there.
    placed = members_of(stage)
    fair = {number: f"member{number // 2 + 1}" for number in range(6)}
    assert {number: placed[number] for number in range(6)} == {**fair, **elsewhere}
    assert set(states_of(stage).values()) == {"running"}
    stage.destroy()


# -- leases


SLOTS = """
from pytest_stagegbo.slots.fleet import Fleet
from pytest_stagegbo.slots.lease import take
from pytest_stagegbo.leases.process import close_all

fleet = Fleet(settings, engine._connection)
say("ready")
for line in sys.stdin:
    lease = take(fleet, range(3), given["test"])
    say("none" if lease is None else lease.number)
close_all()
"""


def test_hosts_at_several_members_lease_slots_of_all_of_them(
    cluster: Lab, ground: Ground, six: Stage, tmp_path: Path
) -> None:
    """Each through the daemon of its own member. A slot's member does not matter for its lease."""
    assert set(members_of(six).values()) == set(MEMBERS)

    def host(name: str, member: str) -> HostProgram:
        given = {"test": f"test of {name}", "endpoint": str(cluster.at(member).socket), "seconds": 4.0}
        return HostProgram(tmp_path / name, PROJECT, SLOTS, **given)

    several = {member: host(member, member) for member in MEMBERS}
    late = host("late", "member3")
    try:
        for each in (*several.values(), late):
            assert each.line() == "ready"
        for each in several.values():  # at once
            each.tell()
        assert sorted(each.line() for each in several.values()) == ["0", "1", "2"]
        late.tell()
        assert late.line() == "none"
        used = {slot["number"]: slot["used_by"] for slot in six.json("status")["slots"] if slot["number"] in range(3)}
        for name, each in several.items():
            assert [text for text in used.values() if f"process {each.process.pid} (test of {name})" in text], used
        several["member2"].kill()

        def had() -> bool:
            late.tell()
            return late.line() != "none"

        until(had, "the lease of a host that was killed is over", 60)
        assert ground.names("projects") >= {f"{PROJECT}-LEASES"}
    finally:
        for each in (*several.values(), late):
            each.kill()
            each.end()


# -- kills


KILLED = """
import os, pathlib, signal, sys
from pytest_stagegbo.apply.step_runner import StepRunner
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.incus.connection import Connection

seen, arguments = pathlib.Path(sys.argv[1]), parse(sys.argv[2:])
before = set(seen.read_text().splitlines())

def reached(point):
    if point not in before:
        with seen.open("a") as file:
            file.write(point + "\\n")
        os.kill(os.getpid(), signal.SIGKILL)

do, wait = StepRunner.do, Connection.wait

def done(self, step):
    project = self._settings.project
    reached(f"{project}: begin {step.key}")
    do(self, step)
    reached(f"{project}: end {step.key}")

def accepted(self, reply, what, *more):
    if reply.operation:
        reached(f"{reply.about.params.get('project')}: accepted {what}")
    return wait(self, reply, what, *more)

StepRunner.do, Connection.wait = done, accepted
fleet = open_context(arguments).fleet()
fleet.provision(fleet.capacity(2).count)
"""
"""`provision --slots N` that kills its own process where none has been killed yet: where a step begins or ends, or when
the daemon has accepted an operation and works on it."""
MOST_KILLS = 200


def made(ground: Ground) -> dict[str, Any]:
    """Everything of the stage that is the same each time it is made."""
    projects = sorted(name for name in ground.names("projects") if name.startswith(PROJECT))
    found = {name: support.steady(ground.instances(name)) for name in projects}
    for clones in found.values():
        for clone in clones.values():
            clone["config"].pop(marks.GENERATION, None)
            clone["expanded_config"].pop(marks.GENERATION, None)
    return found


def test_kills_at_every_step_are_mended_by_the_next_run(ground: Ground, stage: Stage, tmp_path: Path) -> None:
    """Each run goes on from what the one before has left, and is killed one point later."""
    stage.destroy()
    before = clusters.whole_cluster(ground, MEMBERS), production(ground)
    stage.run("provision", "--slots", "3", timeout=400)
    whole = made(ground)
    stage.destroy()
    seen = tmp_path / "seen"
    seen.touch()
    argv = [sys.executable, "-c", KILLED, str(seen), *stage.argv("provision", "--slots", "3")[3:]]
    for _ in range(MOST_KILLS):
        done = forkserver.run(argv, env=stage.environment(), timeout=200)
        if done.returncode != -signal.SIGKILL:
            support.checked(done)
            break
    else:
        pytest.fail(f"still killed after {MOST_KILLS} times:\n{seen.read_text()}", pytrace=False)
    points = seen.read_text().splitlines()
    assert len(points) == len(set(points))
    for project in (PROJECT, f"{PROJECT}-1", f"{PROJECT}-2", f"{PROJECT}-GOLDEN", f"{PROJECT}-GOLDEN-member2"):
        assert [point for point in points if point.startswith(f"{project}: accepted copying cache")], points
    assert made(ground) == whole, json.dumps(points)
    assert set(states_of(stage).values()) == {"running"}
    assert production(ground) == before[1]
    stage.destroy()
    assert clusters.whole_cluster(ground, MEMBERS) == before[0]


def test_once_a_member_is_removed_for_good_there_are_as_many_slots_on_the_others(
    cluster: Lab, ground: Ground, six: Stage
) -> None:
    """The last test: the cluster has two members from here on."""
    cluster.change_member("member3", "stop", Silent())
    until(lambda: clusters.member_status(cluster, "member3") == "Offline", "the cluster knows it", 60)
    ground.incus("cluster", "remove", "--force", "--yes", "member3")
    assert "6 slots in" in six.run("provision", "--slots", "6", timeout=400).stdout
    placed = members_of(six)
    assert {placed[number] for number in range(6)} == {"member1", "member2"}
    assert set(states_of(six).values()) == {"running"}
    six.destroy()
