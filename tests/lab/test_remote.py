"""A daemon on another host, over HTTPS: everything but the way to the services, and that it says how to get there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from tests.certificates import make_pair
from tests.lab.remote_host import NETWORK, PROJECT, far_host
from tests.lab.support import Ground, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.remote_host import Far

    from pytest_stagegbo.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]

CACHE, DRIVE = ("10.0.36.13", 6379), ("10.0.36.14", 9100)
TEST = """
import pytest, socket

@pytest.mark.stage_reset("cache")
def test_it_answers(stage_cache):
    with socket.create_connection((stage_cache.host, stage_cache.port), 5) as connection:
        connection.sendall(b"PING\\r\\n")
        assert connection.recv(100).startswith(b"-NOAUTH")
"""


@pytest.fixture(scope="module")
def ground(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The lab that everybody shares: nothing here disturbs others."""
    with FileLock(lab.paths.lock(f"tests-far-{lab.paths.name}")):
        yield Ground(lab, tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="module")
def far(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """The other host, whose certificate the daemon trusts."""
    with far_host(ground, tmp_path_factory.mktemp("far")) as host:
        host.trust(host.client)
        (host.folder / "test_far.py").write_text(TEST)
        yield host


@pytest.fixture(scope="module")
def alone(far: Far) -> Iterator[subprocess.CompletedProcess[str]]:
    """How the first provisioning ended on a host that has no way to the stage."""
    planned = far.run("provision", "--dry-run")
    assert "create project STAGE-FAR" in planned.stdout
    assert PROJECT not in far.ground.names("projects")
    yield far.run("provision", check=False)
    far.run("destroy", "--yes")
    assert PROJECT not in far.ground.names("projects")
    assert NETWORK not in far.ground.names("networks")


@pytest.fixture(scope="module")
def reached(far: Far, alone: subprocess.CompletedProcess[str]) -> Iterator[Far]:
    """The other host, with the connections that the error of a host without a way names."""
    assert alone.returncode
    with far.forwarded(CACHE, DRIVE):
        yield far


# -- certificates


def test_a_client_that_is_not_trusted_is_told_its_fingerprint(far: Far) -> None:
    far.write(client=far.another)
    done = far.run("provision", "--dry-run", check=False)
    far.write()
    assert done.returncode == 3
    assert "does not trust this client" in done.stderr
    assert far.another.fingerprint in done.stderr
    assert "incus config trust add-certificate" in done.stderr


def test_a_server_with_another_certificate_is_refused(far: Far) -> None:
    far.write(server=far.another)
    done = far.run("status", check=False)
    far.write()
    assert done.returncode == 3
    assert "is not the one that incus.server_cert names" in done.stderr
    assert far.another.fingerprint in done.stderr
    assert far.server.fingerprint in done.stderr


def test_a_certificate_that_may_see_some_projects_is_told_so(far: Far, tmp_path: Path) -> None:
    narrow = make_pair(tmp_path, "narrow")
    far.trust(narrow, "--restricted", "--projects", "default")
    far.write(client=narrow)
    done = far.run("provision", "--project", "STAGE-NARROW", check=False)
    far.write()
    assert done.returncode == 1
    assert "this client's certificate is restricted" in done.stderr
    assert "STAGE-NARROW" not in far.ground.names("projects")


# -- without a way to the services


def test_without_a_way_the_clones_are_made_and_the_error_says_how_to_get_there(
    alone: subprocess.CompletedProcess[str],
) -> None:
    assert alone.returncode == 6
    assert "this machine has no way there" in alone.stderr
    assert "sshuttle -r 10.0.9.1 10.0.36.0/24" in alone.stderr
    assert "-L 10.0.36.13:6379:10.0.36.13:6379" in alone.stderr


def test_a_route_is_closed_by_the_access_list_and_a_session_of_pytest_says_what_to_do(
    far: Far, alone: subprocess.CompletedProcess[str]
) -> None:
    assert alone.returncode
    far.ip("route", "add", "10.0.36.0/24", "via", "10.0.9.1")
    done = far.run("-p", "no:cacheprovider", "test_far.py", module="pytest", check=False)
    far.ip("route", "del", "10.0.36.0/24")
    assert done.returncode == 1
    assert "NotReady: " in done.stdout
    assert "this machine has no way there" in done.stdout
    assert "sshuttle -r 10.0.9.1" in done.stdout


def test_commands_in_clones_need_no_way(far: Far, alone: subprocess.CompletedProcess[str]) -> None:
    assert alone.returncode
    assert far.run("exec", "drive", "--", "hostname").stdout == "drive\n"
    assert "unit valkey.service: success loaded active running" in far.run("logs", "cache").stdout


def test_news_of_production_come_over_https(far: Far, alone: subprocess.CompletedProcess[str]) -> None:
    assert alone.returncode
    found = json.loads(far.run("verify", "--json", "--check", "production.events").stdout)["findings"]
    assert [each["state"] for each in found] == ["green"]
    assert "0 of them of production" in found[0]["evidence"][0]


def test_the_incus_client_knows_the_server_by_the_same_certificates(
    far: Far, alone: subprocess.CompletedProcess[str]
) -> None:
    assert alone.returncode
    done = far.run(
        "exec", "drive", "--", "sh", "-c", "hostname; exit 7", check=False, path=str(far.ground.lab.paths.bin)
    )
    assert (done.stdout, done.returncode) == ("drive\n", 7)


def test_the_room_that_can_t_be_seen_is_said_to_be_so(far: Far, alone: subprocess.CompletedProcess[str]) -> None:
    assert "the room on the file system below it can't be seen from here" in alone.stderr
    found = json.loads(far.run("doctor", "--json").stdout)["findings"]
    assert {"warning"} == {each["state"] for each in found if each["subject"] == "below pool pool"}


# -- through the daemon


@pytest.fixture
def carried(far: Far, alone: subprocess.CompletedProcess[str]) -> Iterator[Far]:
    """The other host as it is without `network.reach`: it has no way, so the daemon carries its connections."""
    assert alone.returncode
    far.write(reach="auto")
    yield far
    far.write()


def test_without_a_way_the_daemon_carries_the_connections(carried: Far) -> None:
    assert json.loads(carried.run("provision", "--json").stdout)["changed"] is False
    assert json.loads(carried.run("status", "--json").stdout)["ready"] is True
    carried.run("exec", "drive", "--", "mkdir", "/opt/gbo/data/minio/bucket")
    carried.run("reset", "drive", "cache")
    assert carried.run("exec", "drive", "--", "ls", "/opt/gbo/data/minio").stdout == ""


def test_a_stage_is_made_without_a_way(carried: Far) -> None:
    """What it waits for are services of clones that are not finished yet."""
    carried.run("provision", "--recreate")


def test_sessions_of_pytest_are_carried(carried: Far) -> None:
    done = carried.run("-p", "no:cacheprovider", "test_far.py", module="pytest")
    assert "1 passed" in done.stdout


def test_nothing_of_it_needs_linux(carried: Far) -> None:
    """Sessions run on laptops with macOS, too."""
    done = carried.run_bare("-p", "no:cacheprovider", "test_far.py", module="pytest")
    assert "1 passed" in done.stdout, f"{done.stdout}{done.stderr}"


def test_the_proof_of_isolation_needs_no_way(carried: Far) -> None:
    (reached,) = json.loads(carried.run("verify", "--json", "--check", "reach.stage").stdout)["findings"]
    assert reached["state"] == "green"
    done = carried.run("verify", "--json", check=False)
    assert not [each for each in json.loads(done.stdout)["findings"] if each["state"] == "red"]


def test_forwarded_ports_end_with_the_command_however_it_ends(carried: Far) -> None:
    ask = (
        "import os, socket; port = int(os.environ['STAGEGBO_ENDPOINT_CACHE_PORT']); "
        "found = socket.create_connection(('127.0.0.1', port), 10); found.sendall(b'PING\\r\\n'); print(found.recv(7))"
    )
    with carried.started("forward", "--env", "--port", "cache=16379") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(6)]
        assert lines[:2] == ["STAGEGBO_ENDPOINT_CACHE_HOST=127.0.0.1", "STAGEGBO_ENDPOINT_CACHE_PORT=16379"]
        shown = carried.run("env", "STAGEGBO_ENDPOINT_CACHE_PORT", check=False)
        assert shown.stdout + shown.stderr == "STAGEGBO_ENDPOINT_CACHE_PORT=16379\n"
        assert carried.python(ask, STAGEGBO_ENDPOINT_CACHE_PORT="16379") == "b'-NOAUTH'\n"
        assert carried.relays("cache") == 1
        process.kill()
        process.wait(10)
    until(lambda: carried.relays("cache") == 0, "the relay has ended")


# -- with one


def test_through_the_daemon_s_host_the_stage_answers(reached: Far) -> None:
    assert json.loads(reached.run("provision", "--json").stdout)["changed"] is False
    assert json.loads(reached.run("status", "--json").stdout)["ready"] is True


@pytest.mark.parametrize("command", [("destroy", "--yes"), ("provision", "--recreate")], ids=" ".join)
def test_a_certificate_that_may_only_change_what_is_in_the_project_removes_nothing(
    far: Far, reached: Far, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """It may delete the clones, and then neither the project nor what a new stage needs."""
    narrow = make_pair(tmp_path, "narrow")
    far.trust(narrow, "--restricted", "--projects", f"default,{PROJECT}")
    far.write(client=narrow)
    before = {name: clone["created_at"] for name, clone in far.ground.instances(PROJECT).items()}
    done = reached.run(*command, check=False)
    far.write()
    assert done.returncode == 1
    assert "this client's certificate is restricted" in done.stderr
    assert {name: clone["created_at"] for name, clone in far.ground.instances(PROJECT).items()} == before


def test_a_reset_clears_and_answers(reached: Far) -> None:
    reached.run("exec", "drive", "--", "mkdir", "/opt/gbo/data/minio/bucket")
    reached.run("reset", "drive", "cache")
    assert reached.run("exec", "drive", "--", "ls", "/opt/gbo/data/minio").stdout == ""


def test_sessions_of_pytest_use_it(reached: Far) -> None:
    done = reached.run("-p", "no:cacheprovider", "test_far.py", module="pytest")
    assert "1 passed" in done.stdout
