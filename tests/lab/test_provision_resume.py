"""A second run changes nothing; an interrupted one is mended by the next, wherever it ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab import forkserver
from tests.lab.support import SIX, until

from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.lab.support import FirstRun, Ground, Stage

pytestmark = pytest.mark.lab

KILLED = """
import os, signal, sys
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.incus.connection import Connection

point, arguments = sys.argv[1], parse(sys.argv[2:])

def reached(name):
    print(name, flush=True)
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

class Progress:
    def begin(self, key, text): reached(f"begin {key}")
    def end(self, key, error=None): reached(f"end {key}")
    def note(self, text): pass

wait = Connection.wait

def accepted(self, reply, what, timeout):
    if reply.operation:
        reached(f"accepted {what}")
    return wait(self, reply, what, timeout)

Connection.wait = accepted
open_context(arguments).engine(Progress()).provision(recreate=arguments.recreate)
"""
"""`provision` that kills its own process at a point: where a step begins or ends, or when the daemon has accepted an
operation and works on it."""

BRIDGE = "stagekill0"
FOUNDATIONS = ("project:STAGE-KILL", f"network:{BRIDGE}", "profile:default")
"""One after another. The access list is made at the same time as the project."""
ACCESS_LIST = "access-list:stagekill0-isolation"
CLONE = ("copy:cache", "prepare:cache", "start:cache", "await:cache")
SIDES = ("begin", "end")
POINTS = [
    "begin remove:cache",
    "accepted stop of cache",
    "accepted deleting cache",
    "end remove:cache",
    *(f"{side} {key}" for key in CLONE for side in SIDES),
    "accepted copying cache to cache",
    "accepted start of cache",
    "end verify:STAGE-KILL",
]
OF_ALL_SIX = ["accepted copying tables to tables", "end prepare:vault", "begin await:drive"]
ONLY_CACHE = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name != "cache")


def killed(stage: Stage, point: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Provision until killed at a point."""
    argv = [sys.executable, "-c", KILLED, point, "--lab", "--config", str(stage.config), "provision", *options]
    done = forkserver.run(argv, env=stage.environment())
    assert done.returncode == -signal.SIGKILL, f"never came to {point!r}:\n{done.stdout}{done.stderr}"
    return done


def left_over(ground: Ground) -> dict[str, set[str]]:
    """Everything that a run could leave behind, by kind."""
    return {
        "projects": ground.names("projects"),
        "networks": ground.names("networks"),
        "access lists": ground.names("network-acls"),
        "volumes": ground.volumes(),
        "subvolumes": ground.subvolumes(),
    }


@pytest.fixture(scope="module")
def end(ground: Ground) -> Iterator[tuple[Stage, dict[str, Any], dict[str, set[str]]]]:
    """A stage with one container, provisioned without a break: where each broken run has to get, too."""
    stage = ground.stage("STAGE-KILL", BRIDGE, 7, ONLY_CACHE)
    stage.run("provision")
    yield stage, stage.documents(), left_over(ground)
    stage.destroy()


def test_what_clones_stand_on_is_finished_by_the_next_run_wherever_each_was_killed(
    end: tuple[Stage, dict[str, Any], dict[str, set[str]]],
) -> None:
    """Each run goes on from where the one before was killed, until one is left alone."""
    stage, documents, things = end
    for side in SIDES:
        stage.destroy()
        killed(stage, f"{side} {ACCESS_LIST}")
    stage.destroy()
    for key in FOUNDATIONS:
        for side in SIDES:
            killed(stage, f"{side} {key}")
    stage.run("provision")
    assert stage.documents() == documents
    assert left_over(stage.ground) == things


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_anywhere_is_finished_by_the_next(
    end: tuple[Stage, dict[str, Any], dict[str, set[str]]], point: str
) -> None:
    """From a stage that is there, so that there are steps of every kind."""
    stage, documents, things = end
    killed(stage, point, "--recreate")
    stage.run("provision")
    assert stage.documents() == documents
    assert left_over(stage.ground) == things
    assert stage.valkey_keys() == []


@pytest.mark.both_lts
@pytest.mark.parametrize("at_once", [False, True], ids=["given up", "at once"])
def test_a_bridge_that_was_half_made_is_replaced(
    end: tuple[Stage, dict[str, Any], dict[str, set[str]]], at_once: bool
) -> None:
    """The daemon keeps a record of it, without a bridge, if who asked for it vanishes while it is made."""
    stage, documents, things = end
    found = stage.ground.get(f"networks/{BRIDGE}")
    stage.destroy()
    dhcp = {"ipv4.dhcp": "true", "security.acls": ""}  # takes half a second
    body = json.dumps({**found, "config": {**found["config"], **dhcp}}).encode()
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.connect(str(stage.ground.lab.socket))
        head = f"POST /1.0/networks HTTP/1.1\r\nHost: incus\r\nContent-Length: {len(body)}\r\n\r\n"
        daemon.sendall(head.encode() + body)
        until(lambda: BRIDGE in stage.ground.names("networks"), "the daemon has begun")
    if not at_once:
        show = ("ip", "link", "show", BRIDGE)
        until(lambda: stage.ground.inside(*show, check=False).returncode != 0, "the daemon has given up")
        assert stage.ground.get(f"networks/{BRIDGE}")["status"] == "Pending"
    stage.run("provision")
    assert stage.documents() == documents
    assert left_over(stage.ground) == things


def test_a_clone_that_was_not_finished_never_ran(end: tuple[Stage, dict[str, Any], dict[str, set[str]]]) -> None:
    stage = end[0]
    killed(stage, "begin prepare:cache", "--recreate")
    clone = stage.clone("cache")
    assert clone["status"] == "Stopped"
    assert clone["config"]["user.stagegbo.state"] == "building"
    assert clone["last_used_at"].startswith(("1970", "0001")), "never started"
    stage.run("provision")


def test_of_two_at_once_one_works_and_the_other_finds_it_done(
    end: tuple[Stage, dict[str, Any], dict[str, set[str]]],
) -> None:
    stage, documents, _ = end
    stage.destroy()
    both = [stage.start("provision", "--json") for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    results = sorted((json.loads(out)["changed"] for out, _ in ended))
    assert results == [False, True]
    waited = next(said for out, said in ended if not json.loads(out)["changed"])
    assert f"waiting for stage {stage.project}" in waited
    assert stage.documents() == documents


# -- all six


@pytest.fixture(scope="module")
def whole(first: FirstRun, stage: Stage) -> tuple[Stage, dict[str, Any]]:
    assert first.stage.project == stage.project
    return stage, stage.documents()


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    """No request that writes: each of them would make an event. Executing a command would, too."""
    with stage.ground.events() as events:
        result = stage.json("provision")
    assert result["changed"] is False
    assert result["steps"] == []
    assert set(result["containers"]) == set(SIX)
    assert {found["state"] for found in result["containers"].values()} == {"ready"}
    assert events == []


def test_all_six_are_finished_after_kills(whole: tuple[Stage, dict[str, Any]]) -> None:
    """Each run begins with what the one before left when it was killed, until one is left alone."""
    stage, documents = whole
    before = left_over(stage.ground)
    for point in OF_ALL_SIX:
        killed(stage, point, "--recreate")
    stage.run("provision")
    assert stage.documents() == documents
    assert left_over(stage.ground) == before


def test_ctrl_c_ends_it_with_130_and_a_killed_daemon_is_no_harm(whole: tuple[Stage, dict[str, Any]]) -> None:
    """In the end daemon and containers die; production comes back, and the next run finishes the stage."""
    stage, documents = whole
    process = stage.start("provision", "--recreate")
    said = until_said(process, "prepare")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, said + rest
    assert "Traceback" not in rest
    assert "interrupted" in rest

    process = stage.start("provision", "--recreate")
    said = until_said(process, "copy")
    init = stage.ground.lab.status().pid
    assert init is not None
    os.kill(init, signal.SIGKILL)
    _, rest = process.communicate(timeout=120)
    assert process.returncode in {1, 3}, said + rest
    assert "Traceback" not in rest
    until(lambda: not Path(f"/proc/{init}").exists(), "the lab is gone")
    stage.ground.lab.up(Silent())
    stage.run("provision")
    assert stage.documents() == documents
    stage.run(
        "provision", "--recreate"
    )  # what was started before it died has booted twice, and tests look at first boots


def until_said(process: subprocess.Popen[str], word: str) -> str:
    """Wait for a word on standard error; what was said up to there."""
    assert process.stderr is not None
    said = ""
    while word not in said:
        line = process.stderr.readline()
        assert line, f"it ended before it said {word!r}:\n{said}"
        said += line
    return said


def test_a_stop_that_a_killed_run_asked_for_ends_before_a_clone_is_given_up(stage: Stage) -> None:
    """The plan finds the clone running. Its service is down soon, and the clone itself a while later."""
    stage.exec("cache", "systemd-run", "-q", "--unit=of-a-test", "-p", "ExecStop=/bin/sleep 4", "sleep", "600")
    before = stage.clone("cache")["last_used_at"]
    body = {"action": "stop", "force": False, "timeout": 60}
    where = ("instances", "cache", "state")
    stage.ground.connection.request("PUT", where, params={"project": stage.project}, body=body)
    stage.run("provision")
    clone = stage.clone("cache")
    assert (clone["status"], clone["last_used_at"] != before) == ("Running", True)
