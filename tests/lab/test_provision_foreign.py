"""What this tool did not make it neither changes nor deletes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import OWNER, SIX, TRAPS, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

ONLY_CACHE = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name != "cache")
COMMANDS = [("provision",), ("provision", "--recreate"), ("provision", "--dry-run")]


@pytest.fixture(scope="module")
def planned(ground: Ground) -> Stage:
    """Settings of a stage that does not exist."""
    return ground.stage("STAGE-NEW", "stagenew0", 58, ONLY_CACHE)


def refused(stage: Stage, what: str) -> None:
    """Every way to provision ends with 4, names what is in the way, and sends nothing that writes."""
    with stage.ground.events() as events:
        for command in COMMANDS:
            done = stage.run(*command, check=False)
            assert done.returncode == 4, done.stderr
            assert what in done.stderr
            assert "not made by pytest-stagegbo" in done.stderr
    # Sources of other tests are made meanwhile.
    assert [each for each in events if each["project"] != TRAPS] == []


def test_a_project_without_the_mark_is_left_alone(planned: Stage) -> None:
    ground = planned.ground
    ground.incus("project", "create", planned.project, "-c", "user.note=mine")
    try:
        before = ground.get(f"projects/{planned.project}")
        refused(planned, f"project {planned.project}")
        planned.run("destroy", "--yes")
        assert ground.get(f"projects/{planned.project}") == before
    finally:
        ground.incus("project", "delete", planned.project)


def test_a_network_without_the_mark_is_left_alone(planned: Stage) -> None:
    ground = planned.ground
    ground.incus("network", "create", "stagenew0", "ipv4.address=10.0.58.1/24", "ipv6.address=none")
    try:
        before = ground.get("networks/stagenew0")
        refused(planned, "network stagenew0")
        planned.run("destroy", "--yes")
        assert ground.get("networks/stagenew0") == before
    finally:
        ground.incus("network", "delete", "stagenew0")


def test_an_access_list_without_the_mark_is_left_alone(planned: Stage) -> None:
    ground = planned.ground
    ground.incus("network", "acl", "create", "stagenew0-isolation")
    try:
        refused(planned, "access list stagenew0-isolation")
        planned.run("destroy", "--yes")
        assert "stagenew0-isolation" in ground.names("network-acls")
    finally:
        ground.incus("network", "acl", "delete", "stagenew0-isolation")


@pytest.fixture
def guest(stage: Stage) -> Iterator[str]:
    """An instance that somebody added to the stage's project by hand."""
    stage.ground.incus("init", "--empty", "guest", "-d", "root,size=50MiB", project=stage.project)
    yield "guest"
    stage.ground.incus("delete", "--force", "guest", project=stage.project)


def test_an_instance_added_by_hand_survives_and_is_no_change(stage: Stage, guest: str) -> None:
    before = stage.clone(guest)
    assert stage.json("provision")["changed"] is False
    assert stage.clone(guest) == before


def test_destroy_refuses_while_somebody_else_s_instance_is_there(stage: Stage, guest: str) -> None:
    before = stage.ground.instances(stage.project)
    done = stage.run("destroy", "--yes", check=False)
    assert done.returncode == 4
    assert guest in done.stderr
    assert set(stage.ground.instances(stage.project)) == set(before)
    assert {each["status"] for name, each in stage.ground.instances(stage.project).items() if name != guest} == {
        "Running"
    }


def test_an_instance_that_lost_its_mark_is_nobody_s_to_replace(stage: Stage) -> None:
    stage.ground.put("instances/cache", {"config": {OWNER: ""}}, project=stage.project)
    try:
        before = stage.clone("cache")
        for command in ("provision", "--recreate"), ("reset", "cache"), ("exec", "cache", "--", "true"):
            done = stage.run(*command, check=False)
            assert done.returncode == 4, (command, done.stderr)
            assert "cache" in done.stderr
        assert stage.clone("cache") == before
    finally:
        stage.ground.put("instances/cache", {"config": {OWNER: "pytest-stagegbo"}}, project=stage.project)


def test_destroy_removes_everything_of_its_own_and_nothing_else(planned: Stage) -> None:
    """A stage is made and destroyed beside another one; the second destroy finds nothing and is content."""
    ground = planned.ground

    def things() -> list[set[str]]:
        kinds = ("projects", "networks", "network-acls", "profiles", "storage-pools")
        names = [{name for name in ground.names(kind) if name != leases} for kind in kinds]
        return [*names, ground.volumes(), ground.subvolumes()]

    leases = f"{planned.project}-LEASES"  # may be there already, since commands about this stage were refused
    before = things()
    planned.run("provision")
    assert things() != before
    said = planned.run("destroy", "--dry-run").stdout
    for name in (planned.project, "stagenew0", "stagenew0-isolation", "cache"):
        assert name in said
    assert planned.project in ground.names("projects"), "--dry-run removes nothing"
    assert leases in ground.names("projects")
    planned.destroy()
    assert things() == before
    assert leases not in ground.names("projects")
    done = planned.run("destroy", "--yes")
    assert "nothing to remove" in done.stdout
    assert things() == before
    assert leases not in ground.names("projects")


def test_a_clone_that_the_settings_no_longer_name_is_removed(planned: Stage) -> None:
    text = planned.config.read_text()
    planned.config.write_text(text.replace("drive = false\n", ""))
    planned.run("provision")
    try:
        assert set(planned.ground.instances(planned.project)) == {"cache", "drive"}
        planned.config.write_text(text)
        assert "remove:drive" in planned.json("provision")["steps"]
        assert set(planned.ground.instances(planned.project)) == {"cache"}
    finally:
        planned.destroy()


LATE = """
import sys
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.progress import Silent
from pytest_stagegbo.incus.connection import Connection

class Progress(Silent):
    def begin(self, key, text):
        if key.startswith("network:"):
            web = {"type": "proxy", "listen": "tcp:127.0.0.1:7", "connect": "tcp:127.0.0.1:7"}
            body = {"devices": {"web": web}}
            other.wait(other.request("PATCH", ("instances", "late"), params={"project": "default"}, body=body), "", 60)

context = open_context(parse(sys.argv[1:]))
other = Connection(context.loaded.settings.incus)
context.engine(Progress()).provision()
"""
"""`provision`, with somebody who gives the source a device once it was looked at."""


@pytest.mark.both_lts
def test_a_source_that_gets_a_device_meanwhile_is_copied_without_it(planned: Stage) -> None:
    """The request does not name it, and the project may not have it."""
    ground = planned.ground
    ground.incus("copy", "cache", "late", "--instance-only")
    environment = {**planned.environment(), "STAGEGBO_CONTAINERS__CACHE__SOURCE": "late"}
    try:
        run([sys.executable, "-c", LATE, *planned.argv("provision")[3:]], env=environment)
        assert "web" in ground.instances("default")["late"]["devices"]
        devices = ground.instances(planned.project)["cache"]["expanded_devices"]
        assert devices["web"] == {"type": "none"}
    finally:
        planned.destroy()
        ground.incus("delete", "late")
