"""The lab itself. It is shared, so what would disturb others is done to a second one with the same cache."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import Ground, until

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.lab.cgroups import _descendants
from pytest_stagegbo.lab.namespace import Namespace
from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.lab

NAMES = {"system", "tables", "vault", "cache", "drive", "llm"}


class Journal(Silent):
    """Notes what is begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def begin(self, key: str, text: str) -> None:
        self.begun.append(f"{key}: {text}")


def incus(lab: Lab, *arguments: str) -> str:
    return subprocess.run(
        lab.exec_argv(["incus", *arguments]), check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    ).stdout


def inside(lab: Lab, container: str, *argv: str) -> str:
    """Run a command in a container of production; what it printed."""
    return Ground(lab, lab.paths.lab).exec(container, *argv)


def keys(lab: Lab) -> int:
    password = lab.credentials()["cache"]["password"]
    return int(inside(lab, "cache", "env", f"REDISCLI_AUTH={password}", "valkey-cli", "DBSIZE"))


def rows(lab: Lab, table: str) -> int:
    psql = ["runuser", "-u", "postgres", "--", "psql", "-qAt", "botserver", "-c", f"SELECT count(*) FROM {table}"]
    return int(inside(lab, "tables", *psql))


def instances(lab: Lab) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(incus(lab, "list", "--format=json"))
    return found


@pytest.fixture(scope="module")
def shared() -> Lab:
    lab = Lab.find()
    lab.up(Silent())
    return lab


@pytest.fixture(scope="module")
def interrupted() -> Iterator[Lab]:
    """A lab of this module's own, whose production somebody began to make and was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGEGBO_LAB_NAME", f"test-{os.getpid()}")
        lab = Lab.find()
        making = subprocess.Popen([sys.executable, "-m", "pytest_stagegbo", "lab", "up"], stderr=subprocess.DEVNULL)
    try:
        until(lambda: lab.status().production or making.poll() is not None, "there is a container", 120)
        making.kill()
        making.wait(30)
        assert not lab.paths.marker.exists()
        yield lab
    finally:
        lab.down(purge=True)


@pytest.fixture(scope="module")
def second(interrupted: Lab) -> Lab:
    """The same, brought up."""
    interrupted.up(Silent())
    return interrupted


def test_status_says_where_everything_is(shared: Lab) -> None:
    status = json.loads(json.dumps(shared.status().to_json()))
    assert status["running"] is True
    assert status["ready"] is True
    assert status["incus_version"].startswith(shared.paths.version)
    assert Path(status["socket"]).is_socket()
    assert Path(status["netns_file"]).exists()
    assert status["production"] == dict.fromkeys(NAMES, "Running")


def test_all_six_services_answer(shared: Lab) -> None:
    assert shared.status().services == dict.fromkeys(NAMES, "ok")


def test_a_command_in_the_lab_passes_its_exit_status_on(shared: Lab) -> None:
    assert subprocess.run(shared.exec_argv(["sh", "-c", "exit 7"]), check=False).returncode == 7


def test_the_first_process_of_a_container_is_not_taken_for_the_lab_s(
    shared: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LXC's is in the lab's network until it has one of its own; its number may be the smaller one."""
    first = shared.status().pid
    members = Namespace.members
    monkeypatch.setattr(Namespace, "members", lambda self: sorted(members(self), reverse=True))
    enter = ["nsenter", "--target", str(first), "--pid", "--net", "--mount"]
    # `read` ends when this test closes its end.
    deeper = ["unshare", "--pid", "--fork", "sh", "-c", "echo up; read end"]
    with subprocess.Popen([*enter, *deeper], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "up\n"
        assert shared.status().pid == first
        started.communicate("end\n", timeout=30)


def test_a_command_in_the_lab_sees_the_lab_s_network_alone(shared: Lab) -> None:
    out = subprocess.run(shared.exec_argv(["ip", "-j", "route"]), check=True, capture_output=True, text=True).stdout
    destinations = {route["dst"] for route in json.loads(out)}
    assert "10.0.2.0/24" in destinations
    assert "default" not in destinations


def test_production_is_not_reachable_from_outside_of_the_namespace(shared: Lab) -> None:
    assert shared.status().ready
    routes = subprocess.run(["ip", "-j", "route"], check=True, capture_output=True, text=True).stdout
    assert not [route for route in json.loads(routes) if route.get("dev") == "prodbr0"]


def test_secrets_are_root_s_alone(shared: Lab) -> None:
    for file in (shared.vault_init, shared.paths.credentials):
        assert file.stat().st_mode & 0o077 == 0
    init = json.loads(shared.vault_init.read_text())
    assert len(init["unseal_keys_b64"]) == 5
    assert init["unseal_threshold"] == 3


def test_production_has_an_append_only_file_and_a_snapshot(shared: Lab) -> None:
    files = inside(shared, "cache", "find", "/opt/gbo/data/valkey")
    assert "/opt/gbo/data/valkey/dump.rdb" in files
    assert "/opt/gbo/data/valkey/appendonlydir/" in files


def test_botserver_compiles_the_dialogs_in_drive(shared: Lab) -> None:
    files = inside(shared, "system", "find", "/opt/gbo/work", "-name", "*.ast")
    assert "/opt/gbo/work/default.gbai/default.gbdialog/start.ast" in files


def test_a_lab_that_is_up_is_left_alone_at_once(shared: Lab) -> None:
    before, journal = shared.status().pid, Journal()
    shared.up(journal)
    assert journal.begun == []
    assert shared.status().pid == before


def test_production_that_was_interrupted_in_the_making_is_replaced(interrupted: Lab) -> None:
    before = {each["name"]: each["created_at"] for each in instances(interrupted)}
    interrupted.up(Silent())
    assert interrupted.status().ready
    after = {each["name"]: each["created_at"] for each in instances(interrupted)}
    assert after.keys() == NAMES
    assert before.items().isdisjoint(after.items())


def test_production_comes_back_whole_after_everything_was_killed(second: Lab) -> None:
    marks, users = keys(second), rows(second, "users")
    beats = rows(second, "heartbeat")
    init = second.status().pid
    assert init is not None
    for pid in _descendants(init):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    second.up(Silent())
    assert time.monotonic() - start < 60
    assert second.status().ready
    assert keys(second) == marks
    assert rows(second, "users") == users == 500
    assert rows(second, "heartbeat") >= beats


def test_a_stopped_container_is_started_by_the_next_up(second: Lab) -> None:
    incus(second, "stop", "--force", "vault")
    assert not second.status().ready
    second.up(Silent())
    assert second.status().ready


def test_a_pool_of_the_stage_s_own_is_added_with_the_same_quotas(second: Lab) -> None:
    simple = simple_quotas()
    assert second.status().pools == {"pool": "simple" if simple else "off"}
    second.up(Silent(), pool_layout="own")
    assert second.status().pools == dict.fromkeys(("pool", "stage"), "simple" if simple else "off")
    with pytest.raises(LabError, match="quotas"):
        second.up(Silent(), quota="ordinary" if simple else "simple")


def control_groups(lab: Lab) -> list[Path]:
    """The folders of the lab's containers in all hierarchies of control groups."""
    init = lab.status().pid
    assert init is not None
    root, found = Path("/sys/fs/cgroup"), set[Path]()
    for pid in _descendants(init):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                hierarchy = root / (controllers.removeprefix("name=") or "unified")  # version 2 beside version 1
                place = (hierarchy if hierarchy.is_dir() else root) / path.strip("/")
                found.update(each for each in (place, *place.parents) if each.name.startswith("lxc.payload."))
    return sorted(each for each in found if each.is_dir())


def simple_quotas() -> bool:
    """Whether the kernel knows them (Linux 6.7)."""
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return (int(major), int(minor)) >= (6, 7)


@pytest.fixture
def limited(second: Lab) -> str:
    """The kind of quotas that pools with a limit have."""
    second.up(Silent(), pool_layout="own")
    for pool in ("pool", "stage"):
        incus(second, "init", "--empty", f"limited-{pool}", "--storage", pool, "--device", "root,size=1GiB")
    return "simple" if simple_quotas() else "ordinary"


@pytest.mark.both_lts
def test_down_stops_everything_and_keeps_the_data(second: Lab, limited: str) -> None:
    """Incus keeps the quotas that it finds: with a limit, and after a restart of the daemon."""
    assert set(second.status().pools.values()) == {limited}
    inside(second, "drive", "touch", "/opt/gbo/data/minio/kept")
    namespace, groups = second.paths.netns_file, control_groups(second)
    assert groups
    second.down()
    assert not namespace.exists()
    assert [each for each in groups if each.is_dir()] == [], "each that is left makes the kernel slower"
    assert not second.status().running
    second.down()
    second.up(Silent())
    assert "kept" in inside(second, "drive", "ls", "/opt/gbo/data/minio")
    assert second.status().pools == dict.fromkeys(("pool", "stage"), limited)
