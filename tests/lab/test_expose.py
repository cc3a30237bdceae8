"""The exception to the isolation: one port, one address, one end; from another machine's point of view."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from tests.lab.support import SIX, run, until

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.plan.exposure_request import new_exposure
from pytest_stagegbo.settings import Layer, load
from pytest_stagegbo.verify import chosen, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab.support import Ground, Stage

pytestmark = [
    pytest.mark.lab,
    # Connections of threads that have ended are closed when they are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

T = TypeVar("T")

HOST = "203.0.113.1"
"""An address of the lab's host towards the outside (RFC 5737)."""
CACHE, DRIVE = "10.0.19.13", "10.0.19.14"
AT = f"{HOST}:16379"
SMALL = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name not in {"cache", "drive"})
DIAL = """
import socket, sys
for target in sys.argv[1:]:
    host, _, port = target.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        print(target)
    except OSError:
        pass
"""
KILLED = """
import os, signal, sys
from pytest_stagegbo.cli import main
from pytest_stagegbo.incus import Writer

setattr(Writer, sys.argv[1], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
main(sys.argv[2:])
"""
"""A command that dies in front of one of its writes."""
HOLDS = """
import socket, sys
with socket.create_connection(("203.0.113.1", 16379), timeout=10) as connection:
    print("connected", flush=True)
    sys.stdin.readline()
    try:
        connection.sendall(b"PING\\r\\n")
        print("answered" if connection.recv(100) else "ended", flush=True)
    except OSError:
        print("ended", flush=True)
"""


class Machine:
    """Another machine, which has the lab's host as its router: it reaches whatever the host lets it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def argv(self, script: str, *args: str) -> list[str]:
        return ["nsenter", f"--target={self._process.pid}", "--net", "--", sys.executable, "-c", script, *args]

    address = "203.0.113.2"
    beyond = "198.51.100.80"
    """In no network that the host has."""

    @contextlib.contextmanager
    def listening(self, port: int) -> Iterator[None]:
        """Whoever connects to a port of it gets through."""
        listen = (
            "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print(1, flush=True); s.accept()"
        )
        with subprocess.Popen(self.argv(listen, str(port)), stdout=-1, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"
            try:
                yield
            finally:
                process.kill()

    def reaches(self, *targets: str) -> list[str]:
        """Which of `host:port` answers."""
        return run(self.argv(DIAL, *targets)).stdout.split()


@pytest.fixture(scope="module")
def machine(ground: Ground) -> Iterator[Machine]:
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; read x"], stdin=-1, stdout=-1, text=True
    ) as held:
        assert held.stdout is not None
        held.stdout.readline()
        peer = ("peer", "name", "outside1", "netns", str(held.pid))
        ground.inside("ip", "link", "add", "outside0", "type", "veth", *peer)
        try:
            ground.inside("ip", "address", "add", f"{HOST}/24", "dev", "outside0")
            ground.inside("ip", "link", "set", "outside0", "up")
            commands = "ip address add 203.0.113.2/24 dev outside1; ip link set outside1 up; ip route add default via "
            commands += f"{HOST}; ip link set lo up; ip address add {Machine.beyond}/32 dev lo"
            run(["nsenter", f"--target={held.pid}", "--net", "--", "sh", "-ec", commands])
            yield Machine(held)
        finally:
            ground.inside("ip", "link", "del", "outside0")
            held.kill()


@pytest.fixture(scope="module")
def small(ground: Ground) -> Iterator[Stage]:
    """A stage with cache and drive only."""
    stage = ground.stage("STAGE-EXPOSED", "exposebr0", 19)
    stage.config.write_text(stage.config.read_text() + SMALL)
    stage.run("provision")
    yield stage
    stage.destroy()
    assert "exposebr0" not in ground.names("networks")


@pytest.fixture(autouse=True)
def _nothing_is_exposed(small: Stage) -> Iterator[None]:
    yield
    if "exposebr0" in small.ground.names("networks") and forwards(small):
        small.run("expose", "--close")


class Engine:
    """The stage's engine in this process, in the lab's network, since a process for each command takes longer."""

    def __init__(self, stage: Stage, thread: ThreadPoolExecutor) -> None:
        endpoint = Layer.from_dotted("test", {"incus.endpoint": str(stage.ground.lab.socket)})
        self._settings = load(stage.config, Path("/"), {}, options=[endpoint]).settings
        self._connection = Connection(self._settings.incus)
        self._thread = thread

    def _do(self, work: Callable[[StageEngine], T]) -> T:
        def run() -> T:
            engine = StageEngine(self._settings, self._connection)
            try:
                return work(engine)
            finally:
                engine.close()

        return self._thread.submit(run).result(60)

    def expose(self, length: str = "2h") -> None:
        wanted = new_exposure(self._settings, "cache", AT, length)
        self._do(lambda engine: engine.exposures.open(wanted))

    def close(self) -> None:
        self._do(lambda engine: engine.exposures.close())

    def provision(self) -> bool:
        """Whether it changed anything."""
        return self._do(lambda engine: engine.provision()).changed

    def reset(self) -> None:
        self._do(lambda engine: engine.reset(["drive"]))

    def exposed(self) -> list[str]:
        """The state of each exposure."""
        return [each.state for each in self._do(lambda engine: engine.facts()).exposed]

    def lines(self) -> dict[str, str]:
        checks = chosen(["exposure.networks", "locked.project"])
        return {each.id: each.state for each in self._do(lambda engine: verify(engine, checks)).findings}


@pytest.fixture(scope="module")
def engine(small: Stage) -> Iterator[Engine]:
    with ThreadPoolExecutor(1, initializer=small.ground.lab.join_network) as thread:
        yield Engine(small, thread)


def forwards(stage: Stage) -> list[str]:
    return [each["listen_address"] for each in stage.ground.get("networks/exposebr0/forwards", recursion="1")]


GREEN = {"exposure.networks": "green", "locked.project": "green"}
NEVER = (
    f"{HOST}:6379",
    f"{HOST}:9100",
    f"{CACHE}:22",
    f"{DRIVE}:9100",
    f"{DRIVE}:6379",
    "10.0.19.1:53",
    "10.0.19.1:8443",
)


@pytest.mark.both_lts
def test_the_exposed_port_answers_and_no_other_does(small: Stage, machine: Machine, engine: Engine) -> None:
    """Not to production, either; it is shouted out, excused, and kept by the next provisioning."""
    assert machine.reaches(AT, f"{CACHE}:6379", *NEVER) == []
    asked = small.run("expose", "cache", "--listen", AT, "--for", "2h", check=False)
    assert asked.returncode == 2
    assert "--yes does it without asking" in asked.stderr
    assert machine.reaches(AT) == [], "nobody agreed to it"
    said = small.run("expose", "cache", "--listen", AT, "--for", "2h", "--yes").stdout
    assert said.startswith(f"exposed: cache:6379 at {AT} until ")
    assert machine.reaches(AT, *NEVER) == [AT]
    assert small.ground.exec("system", "python3", "-c", DIAL, AT, f"{CACHE}:6379") == ""
    (found,) = small.json("status")["exposed"]
    assert (found["container"], found["port"], found["listen"], found["state"]) == ("cache", 6379, HOST, "open")
    assert f"EXPOSED (open): cache:6379 at {AT}" in small.run("status").stdout
    assert engine.lines() == GREEN
    assert engine.provision() is False
    assert machine.reaches(AT) == [AT]


@pytest.mark.both_lts
def test_closing_ends_what_is_connected(small: Stage, machine: Machine, engine: Engine) -> None:
    engine.expose()
    with subprocess.Popen(machine.argv(HOLDS), stdin=-1, stdout=-1, text=True) as held:
        assert held.stdout is not None
        assert held.stdin is not None
        assert held.stdout.readline() == "connected\n"
        assert f"closed: cache:6379 at {AT}" in small.run("expose", "--close", HOST).stdout
        held.stdin.write("\n")
        held.stdin.flush()
        assert held.stdout.readline() == "ended\n"
    assert machine.reaches(AT, f"{CACHE}:6379") == []
    assert (forwards(small), engine.lines()) == ([], GREEN)


@pytest.mark.parametrize("way", [Engine.provision, Engine.reset, Engine.expose], ids=["provision", "reset", "expose"])
def test_what_has_expired_is_red_until_the_next_command_closes_it(
    small: Stage, machine: Machine, engine: Engine, way: Callable[[Engine], object]
) -> None:
    engine.expose("1s")
    (found,) = small.ground.get("networks/exposebr0/forwards", recursion="1")
    end = int(found["config"]["user.stagegbo.expose"].rpartition("=")[2])
    until(lambda: time.time() > end, "its time is over")
    assert engine.exposed() == ["expired"]
    assert engine.lines()["exposure.networks"] == "red"
    way(engine)
    if way is Engine.expose:  # the address is free again
        assert engine.exposed() == ["open"]
        engine.close()
    assert machine.reaches(AT, f"{CACHE}:6379") == []
    assert (forwards(small), engine.lines()) == ([], GREEN)


@pytest.mark.parametrize(
    ("write", "command"),
    [
        pytest.param("replace_acl", ("expose", "cache", "--listen", AT, "--for", "2h", "--yes"), id="opening"),
        pytest.param("delete_forward", ("expose", "--close"), id="closing"),
    ],
)
def test_a_run_that_was_killed_leaves_it_closed_and_the_next_takes_the_rest_away(
    small: Stage, machine: Machine, engine: Engine, write: str, command: tuple[str, ...]
) -> None:
    if "--close" in command:
        engine.expose()
    argv = [sys.executable, "-c", KILLED, write, *small.argv()[3:], *command]
    killed = run(argv, check=False, env={**os.environ, **small.environment()})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert machine.reaches(AT, f"{CACHE}:6379") == []
    assert engine.exposed() == ["unfinished"]
    assert engine.provision() is False
    assert (forwards(small), engine.lines()) == ([], GREEN)


def test_a_forward_that_was_widened_by_hand_is_red(small: Stage, machine: Machine, engine: Engine) -> None:
    """And still lets nothing else through."""
    engine.expose()
    port = ("network", "forward", "port")
    small.ground.incus(*port, "add", "exposebr0", HOST, "tcp", "19100", DRIVE, "9100")
    try:
        assert engine.lines()["exposure.networks"] == "red"
        assert machine.reaches(f"{HOST}:19100") == []
    finally:
        small.ground.incus(*port, "remove", "exposebr0", HOST, "tcp", "19100")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        pytest.param(
            ("cache", "--listen", "203.0.113.77", "--for", "1h"), 2, "not an address of the host", id="address"
        ),
        pytest.param(("cache", "--listen", "10.0.2.1", "--for", "1h"), 4, "production's network", id="production"),
        pytest.param(
            ("cache", "--listen", AT, "--for", "1h", "--project", "STAGE-NONE"), 1, "no container", id="no-stage"
        ),
        pytest.param(("cache", "--listen", AT), 2, "--for TIME", id="no-end"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_what_can_not_be_is_refused_and_changes_nothing(
    small: Stage, arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = small.run("expose", *arguments, check=False)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert forwards(small) == []


@pytest.mark.usefixtures("machine")
def test_a_port_that_somebody_listens_on_is_refused(small: Stage) -> None:
    listen = "import socket; s = socket.create_server(('203.0.113.1', 17777)); print(1, flush=True); s.accept()"
    with subprocess.Popen(small.ground.lab.exec_argv(["python3", "-c", listen]), stdout=-1, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "1\n"
        done = small.run("expose", "cache", "--listen", f"{HOST}:17777", "--for", "1h", check=False)
        held.kill()
    assert done.returncode == 2, done.stderr
    assert f"port 17777 of {HOST} is in use on this host" in done.stderr
    assert forwards(small) == []


def test_a_dry_run_says_what_it_would_do(small: Stage, machine: Machine, engine: Engine) -> None:
    said = small.run("expose", "cache", "--listen", AT, "--for", "2h", "--dry-run").stdout
    assert f"would expose: cache:6379 at {AT} until" in said
    assert forwards(small) == []
    engine.expose()
    assert f"would close: cache:6379 at {AT}" in small.run("expose", "--close", "--dry-run").stdout
    assert machine.reaches(AT) == [AT]


def test_with_a_way_to_the_internet_the_host_s_public_addresses_stay_out_of_reach(
    small: Stage, machine: Machine
) -> None:
    """And all of its networks; what lies beyond is the internet. An address that the host gets later is found, and then
    closed."""
    plain, ground = small.config.read_text(), small.ground
    small.config.write_text(plain.replace("[network]\n", "[network]\ninternet = true\n"))
    try:
        small.run("provision")
        found = reach_host(small)
        assert found["state"] == "green", found
        assert HOST in found["evidence"][0]
        ground.inside("ip", "route", "add", "default", "via", machine.address)
        with machine.listening(17778):
            where = [f"{machine.address}:17778", f"{machine.beyond}:17778"]
            assert small.exec("cache", "python3", "-c", DIAL, *where).split() == where[1:]
        ground.inside("ip", "address", "add", "192.0.2.9/32", "dev", "outside0")
        red = reach_host(small)
        assert red["state"] == "red", red
        assert "connects to the host at 192.0.2.9:" in red["evidence"][0]
        assert small.json("provision")["steps"] == ["access-list:exposebr0-isolation"]
        assert reach_host(small)["state"] == "green"
    finally:
        ground.inside("ip", "address", "del", "192.0.2.9/32", "dev", "outside0", check=False)
        ground.inside("ip", "route", "del", "default", check=False)
        small.config.write_text(plain)
        small.run("provision")


def reach_host(stage: Stage) -> dict[str, Any]:
    done = stage.run("verify", "--json", "--check", "reach.host", check=False)
    (found,) = json.loads(done.stdout)["findings"]
    assert isinstance(found, dict)
    return found


def test_destroying_the_stage_closes_it(small: Stage, machine: Machine, engine: Engine) -> None:
    engine.expose()
    small.destroy()
    assert machine.reaches(AT, f"{CACHE}:6379") == []
