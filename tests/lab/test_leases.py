"""Leases over hosts that share nothing but the daemon: each has a folder of locks of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.lab.host_of_its_own import OWN_LOCKS, HostProgram, Line
from tests.lab.support import run, until

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.lab.conftest import Incus, StageGbo

    from pytest_stagegbo.lab import Lab

pytestmark = [pytest.mark.lab]

ON_THE_LABS_STAGE = True
PROJECT = "STAGE-LEASED"
HOUR = 3600

CLAIMS = """
import secrets
from pytest_stagegbo.leases.protocol import Holder

store = engine.lease_store()
holder = Holder(secrets.token_hex(8), settings.timeouts.lease, clocks.awake_or_not, secrets.randbelow)
marker, held, tries = given["marker"], 0, 0
sys.stdin.readline()
for _ in range(given["tries"]):
    tries += 1
    if store.carry_out(holder.take()) == "held":
        held += 1
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL)  # fails where two have it
        os.close(descriptor)
        os.unlink(marker)
        store.carry_out(holder.release())
say(json.dumps([tries, held]))
"""

USES = """
lock = engine.lock()
for line in sys.stdin:
    word = line.strip()
    try:
        if word == "use":
            lock.acquire(given["test"], lambda holder: say("waits", holder))
            say("has it")
        elif word == "write":
            engine.check_lease()
            say("wrote")
        elif word == "let go":
            lock.release()
            say("let go")
        elif word == "close":
            engine.lease.close()
            say("closed")
    except StageGboError as error:
        say(type(error).__name__, str(error).replace("\\n", "; "))
engine.lease.close()
"""


@pytest.fixture
def host(lab: Lab, incus: Incus, tmp_path: Path) -> Iterator[Callable[..., HostProgram]]:
    """`host("a", USES, seconds=2.0)` starts a program on host a."""
    started: list[HostProgram] = []

    def start(name: str, script: str, **given: object) -> HostProgram:
        values = {"test": f"test of {name}", "endpoint": str(lab.socket), **given}
        started.append(HostProgram(tmp_path / name, PROJECT, script, **values))
        return started[-1]

    forget(incus)
    yield start
    for each in started:
        each.kill()
        each.end()
    forget(incus)


def forget(incus: Incus) -> None:
    """Remove all leases of the tests' stage."""
    project = f"{PROJECT}-LEASES"
    found = incus("profile", "list", "--format=csv", project=project, check=False).stdout
    names = [line.partition(",")[0] for line in found.splitlines()]
    for name in set(names) - {"default"}:
        incus("profile", "delete", name, project=project)
    if names:
        incus("project", "delete", project)


@pytest.mark.both_lts
def test_of_a_thousand_contended_claims_no_two_hold(host: Callable[..., HostProgram], tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    clocks_on_the_wall = (0, HOUR, -HOUR, 1)
    several = [
        host(f"h{number}", CLAIMS, marker=marker, tries=250, clock=clock)
        for number, clock in enumerate(clocks_on_the_wall)
    ]
    for each in several:
        each.tell()
    results = [json.loads(each.line()) for each in several]
    assert sum(tries for tries, _ in results) == 1000
    assert all(held for _, held in results), results
    assert [each.end() for each in several] == [0, 0, 0, 0]


@pytest.mark.both_lts
def test_a_second_host_waits_and_is_told_who_has_it(host: Callable[..., HostProgram]) -> None:
    first, second = host("a", USES, clock=HOUR), host("b", USES, clock=-HOUR)
    first.tell("use")
    assert first.line() == "has it"
    second.tell("use")
    said = second.line()
    assert said.startswith("waits root on ")
    assert f"process {first.process.pid} (test of a)" in said
    first.tell("let go")
    assert first.line() == "let go"
    first.tell("close")
    assert first.line() == "closed"
    assert second.line() == "has it"


def test_a_host_that_is_done_with_a_test_lets_the_next_one_in(host: Callable[..., HostProgram]) -> None:
    first, second = host("a", USES, seconds=6.0), host("b", USES, seconds=6.0)
    first.tell("use")
    assert first.line() == "has it"
    second.tell("use")
    assert second.line().startswith("waits ")
    first.tell("let go")
    assert second.line() == "has it"
    assert first.line() == "let go"
    second.tell("write")
    assert second.line() == "wrote"


def test_one_that_was_killed_is_followed_after_its_time_and_at_once_on_its_own_host(
    host: Callable[..., HostProgram],
) -> None:
    first = host("a", USES, seconds=2.0)
    first.tell("use")
    assert first.line() == "has it"
    first.kill()
    again = host("a", USES, seconds=2.0)
    again.tell("use")
    assert again.line() == "has it"
    again.kill()
    second = host("b", USES, seconds=2.0)
    began = clocks.monotonic()
    second.tell("use")
    assert second.line().startswith("waits ")
    assert second.line() == "has it"
    assert clocks.monotonic() - began > 1.5


def test_one_that_was_frozen_for_longer_is_refused_before_it_writes(host: Callable[..., HostProgram]) -> None:
    first, second = host("a", USES, seconds=2.0), host("b", USES, seconds=2.0)
    first.tell("use")
    assert first.line() == "has it"
    first.tell("write")
    assert first.line() == "wrote"
    first.process.send_signal(signal.SIGSTOP)
    second.tell("use")
    assert second.line().startswith("waits ")
    assert second.line() == "has it"
    first.tell("write")
    first.process.send_signal(signal.SIGCONT)
    said = first.line()
    assert said.startswith("LeaseLost this host has lost its lease of stage STAGE-LEASED")
    assert f"process {second.process.pid} (test of b)" in said
    second.tell("write")
    assert second.line() == "wrote"
    first.tell("let go")
    assert first.line() == "let go"
    second.tell("let go")
    assert second.line() == "let go"
    first.tell("use")
    found = first.line()
    assert (first.line() if found.startswith("waits ") else found) == "has it"


def test_one_that_slept_while_nobody_wanted_the_stage_goes_on(host: Callable[..., HostProgram]) -> None:
    first = host("a", USES, seconds=1.0)
    first.tell("use")
    assert first.line() == "has it"
    first.process.send_signal(signal.SIGSTOP)
    second = host("b", "import time\ntime.sleep(1.5)\nsay('slept')")
    assert second.line() == "slept"
    first.tell("write")
    first.process.send_signal(signal.SIGCONT)
    assert first.line() == "wrote"


def test_one_that_is_cut_off_is_refused_before_anybody_else_has_the_stage(
    host: Callable[..., HostProgram], lab: Lab, tmp_path: Path
) -> None:
    line = Line(tmp_path / "line", str(lab.socket))
    first, second = host("a", USES, seconds=3.0, endpoint=str(line.path)), host("b", USES, seconds=3.0)
    first.tell("use")
    assert first.line() == "has it"
    line.cut()
    second.tell("use")
    assert second.line().startswith("waits ")
    assert second.line() == "has it"
    first.tell("write")
    assert first.line().startswith("LeaseLost this host has lost its lease")
    line.mend()
    first.tell("write")
    assert "(test of b)" in first.line()
    second.tell("write")
    assert second.line() == "wrote"
    line.close()


SLOTS = """
from pytest_stagegbo.slots.fleet import Fleet
from pytest_stagegbo.slots.lease import take
from pytest_stagegbo.leases.process import close_all

lease = take(Fleet(settings, engine._connection), range(3), given["test"])
say("none" if lease is None else lease.number)
sys.stdin.readline()
if lease is not None:
    lease.release()
close_all()
say("done")
"""


def test_hosts_find_the_slots_that_others_leave_free(host: Callable[..., HostProgram]) -> None:
    several = [host(name, SLOTS) for name in "ab"]
    assert sorted(each.line() for each in several) == ["0", "1"]
    third, fourth = host("c", SLOTS), host("d", SLOTS)
    assert sorted(each.line() for each in (third, fourth)) == ["2", "none"]
    several[0].tell()
    assert several[0].line() == "done"
    fifth = host("e", SLOTS)
    assert fifth.line() in {"0", "1"}


def test_a_dead_hosts_lease_can_be_taken(host: Callable[..., HostProgram], stagegbo: StageGbo, incus: Incus) -> None:
    first = host("a", USES)
    first.tell("use")
    assert first.line() == "has it"
    first.kill()
    refused = stagegbo("release", "--project", PROJECT, check=False)
    assert refused.returncode == 8
    assert "(test of a)" in refused.stderr
    assert "stagegbo --lab" in refused.stderr
    forced = stagegbo("release", "--force", "--project", PROJECT)
    assert "took the lease of STAGE-LEASED from root on " in forced.stdout + forced.stderr
    assert "is leased by nobody" in stagegbo("release", "--project", PROJECT).stdout
    second = host("b", USES)
    second.tell("use")
    assert second.line() == "has it"
    assert incus("project", "show", f"{PROJECT}-LEASES").stdout


SESSION = """
def test_it(stage_cache):
    print("begun", flush=True)
    input()
"""


def test_commands_and_sessions_of_two_hosts_wait_for_each_other(
    stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str], lab: Lab, tmp_path: Path
) -> None:
    assert provisioned.returncode == 0
    (tmp_path / "test_it.py").write_text(SESSION)
    argv = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--stage-lab", str(tmp_path)]
    with subprocess.Popen(
        [*OWN_LOCKS, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "STAGEGBO_TIMEOUTS__LEASE": "12"},
    ) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        while "begun" not in session.stdout.readline():
            pass
        refused = stagegbo("reset", "cache", check=False, env={"STAGEGBO_TIMEOUTS__LOCK": "6"})
        assert refused.returncode == 8
        assert "is leased by another host" in refused.stderr
        assert "test_it.py::test_it" in refused.stderr, refused.stderr
        assert "test_it.py::test_it" in stagegbo("status").stdout
        session.stdin.write("\n")
        session.stdin.flush()
        assert "1 passed" in session.stdout.read()
    assert "test_it.py" not in stagegbo("status").stdout
    stagegbo("reset", "cache")
    assert lab.paths.name


def stands_still(session: subprocess.Popen[str], lab: Lab) -> bool:
    """Stop a session, but not between connecting to the daemon and asking: it serves nobody else then."""
    session.send_signal(signal.SIGSTOP)
    with contextlib.suppress(LabError, subprocess.TimeoutExpired):
        if run(lab.exec_argv(["incus", "query", "/1.0"]), check=False, timeout=5).returncode == 0:
            return True
    session.send_signal(signal.SIGCONT)
    return False


def test_a_test_whose_lease_was_lost_fails(
    stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str], lab: Lab, tmp_path: Path
) -> None:
    """Its process was frozen, and another host has had the stage."""
    assert provisioned.returncode == 0
    (tmp_path / "test_it.py").write_text(SESSION)
    argv = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--stage-lab", str(tmp_path)]
    env = {**os.environ, "STAGEGBO_TIMEOUTS__LEASE": "4"}
    with subprocess.Popen(
        [*OWN_LOCKS, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env
    ) as session:
        assert session.stdout is not None
        while "begun" not in session.stdout.readline():
            pass
        try:
            until(lambda: stands_still(session, lab), "the session stands still, and the daemon answers")
            stagegbo("reset", "cache")
            session.send_signal(signal.SIGCONT)
            printed, _ = session.communicate("\n", timeout=60)
        finally:
            session.kill()  # nobody waits for one that stands still
    assert "ERROR at teardown of test_it" in printed
    assert "LeaseLost: this host has lost its lease of stage STAGE-GBO" in printed
    assert "1 passed, 1 error" in printed
