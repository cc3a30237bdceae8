"""A stage, its clones and its bridge are its own: other stages, copies and people keep theirs, and it gets its own
back."""

from __future__ import annotations

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SIX, run

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import ServerRefused
from pytest_stagegbo.incus import Reader
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.incus.retries import retried
from pytest_stagegbo.settings import IncusSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

ONLY_CACHE = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name != "cache")
BRIDGE = "stageown0"


@pytest.fixture(scope="module")
def own(ground: Ground) -> Iterator[Stage]:
    """A stage with one container, which answers."""
    made = ground.stage("STAGE-OWN", BRIDGE, 12, ONLY_CACHE)
    made.run("provision")
    yield made
    made.destroy()
    assert BRIDGE not in ground.names("networks")
    assert f"{BRIDGE}-isolation" not in ground.names("network-acls")


def set_key(stage: Stage, name: str) -> None:
    stage.exec("cache", "env", f"REDISCLI_AUTH={stage.password}", "valkey-cli", "SET", name, "x")


# -- what others delete meanwhile


@pytest.mark.both_lts
def test_an_access_list_is_there_while_others_are_made_and_deleted(ground: Ground) -> None:
    """The daemon says 404 of it when another one goes while it looks for what uses this one."""
    params = {"project": "default"}
    ends = threading.Event()

    def come_and_go(name: str) -> None:
        connection = Connection(IncusSettings(endpoint=str(ground.lab.socket)))

        def delete() -> None:
            connection.request("DELETE", ("network-acls", name), params=params)

        while not ends.is_set():
            connection.request("POST", ("network-acls",), params=params, body={"name": name})
            for _ in range(100):  # more than any user needs, as three of them are in each other's way all the time
                with contextlib.suppress(ServerRefused):
                    retried(delete)
                    break

    reader = Reader(ground.connection)
    ground.incus("network", "acl", "create", "kept-here")
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(come_and_go, f"gone-{number}") for number in range(3)]
        try:
            for _ in range(100):
                assert reader.acl("kept-here") is not None
                assert "kept-here" in reader.acls()
        finally:
            ends.set()
            for other in others:
                other.result()
            ground.incus("network", "acl", "delete", "kept-here")


# -- another stage


@pytest.mark.both_lts
def test_a_second_stage_by_its_name_alone_is_told_what_it_needs_and_touches_nothing(own: Stage) -> None:
    """Not even with another address, or by destroying what never was."""
    elsewhere = {"STAGEGBO_NETWORK__ADDRESS": "10.0.13.1/24"}
    with own.ground.events() as events:
        for command in ("provision",), ("provision", "--dry-run"), ("provision", "--recreate"):
            for environment in {}, elsewhere:
                done = own.run("--project", "STAGE-2", *command, env=environment, check=False)
                assert done.returncode == 4, done.stderr
                assert f"network {BRIDGE} belongs to stage {own.project}" in done.stderr
                for setting in ('project = "STAGE-2"', "network.name = ", "network.address = "):
                    assert setting in done.stderr
        findings = json.loads(own.run("--project", "STAGE-2", "doctor", "--json", check=False).stdout)["findings"]
        (finding,) = (each for each in findings if each["subject"] == "stage")
        assert finding["state"] == "failed"
        assert f"belongs to stage {own.project}" in finding["seen"]
        assert "nothing to remove" in own.run("--project", "STAGE-2", "destroy", "--yes").stdout
        assert own.run("--project", "STAGE-2", "expose", "--close").stdout == "nothing is exposed\n"
        assert own.json("provision")["changed"] is False
    assert events == []


def test_what_is_suggested_to_a_second_stage_works(own: Stage) -> None:
    said = own.run("--project", "STAGE-2", "provision", check=False).stderr
    network, address = (said.partition(f'network.{key} = "')[2].partition('"')[0] for key in ("name", "address"))
    place = {"STAGEGBO_NETWORK__NAME": network, "STAGEGBO_NETWORK__ADDRESS": address}
    own.run("--project", "STAGE-2", "provision", env=place)
    try:
        assert own.json("provision")["changed"] is False
    finally:
        own.run("--project", "STAGE-2", "destroy", "--yes", env=place)
    assert network not in own.ground.names("networks")
    assert own.json("provision")["changed"] is False


def test_what_an_earlier_version_made_is_adopted(own: Stage) -> None:
    """It did not say which stage a thing was made for."""
    ground, documents, instance = own.ground, own.documents(), own.clone("cache")["config"][marks.INSTANCE]
    ground.incus("network", "unset", BRIDGE, marks.PROJECT)
    ground.incus("network", "acl", "unset", f"{BRIDGE}-isolation", marks.PROJECT)
    ground.incus("project", "unset", own.project, marks.PROJECT)
    ground.incus("config", "unset", "cache", marks.INSTANCE, project=own.project)
    assert own.run("--project", "STAGE-2", "provision", check=False).returncode == 4
    assert "nothing to remove" in own.run("--project", "STAGE-2", "destroy", "--yes").stdout
    steps = own.json("provision")["steps"]
    assert not {"remove:cache", "start:cache"} & set(steps)
    assert own.documents() == documents
    assert own.clone("cache")["config"][marks.INSTANCE] == instance


@pytest.mark.both_lts
def test_destroy_without_a_terminal_needs_its_option_whatever_is_piped_into_it(own: Stage) -> None:
    """In cron, or with `echo n |` and even `echo y |` before it, it removed everything."""
    for answer in "n\n", "y\n", "":
        done = run(own.argv("destroy"), env=own.environment(), stdin=answer, check=False)
        assert done.returncode == 2, done.stderr
        assert "--yes does it without asking" in done.stderr
    assert own.json("provision")["changed"] is False


# -- what people put into the stage


@pytest.mark.both_lts
def test_a_copy_of_a_clone_is_left_alone_and_named_before_anything_is_removed(own: Stage) -> None:
    """It inherits the clone's marks. So are a snapshot of the clone, a volume and a profile."""
    ground, project = own.ground, own.project
    ground.incus("copy", "cache", "kept", "--device", "eth0,ipv4.address=10.0.12.77", project=project)
    ground.incus("snapshot", "create", "cache", "mine", project=project)
    ground.incus("storage", "volume", "create", "pool", "notes", project=project)
    ground.incus("profile", "create", "extra", project=project)
    try:
        assert own.json("provision")["changed"] is False
        ground.incus("start", "kept", project=project)
        done = own.run("verify", "--check", "exposure.bridge", check=False)
        assert done.returncode == 9, done.stdout
        assert "kept of the stage's project, which is no" in " ".join(done.stdout.split()).replace("│ ", "")
        ground.incus("stop", "--force", "kept", project=project)
        before = ground.instances(project)
        assert set(before) == {"cache", "kept"}
        done = own.run("destroy", "--yes", check=False)
        assert done.returncode == 4
        commands = (
            "incus delete --force kept",
            "incus snapshot delete cache mine",
            "incus storage volume delete pool notes",
            "incus profile delete extra",
        )
        for command in commands:
            assert f"  {command} --project {project}\n" in done.stderr
        done = own.run("provision", "--recreate", check=False)
        assert done.returncode == 4
        assert "snapshot cache/mine" in done.stderr
        assert ground.instances(project) == before
    finally:
        ground.incus("delete", "--force", "kept", project=project)
        ground.incus("snapshot", "delete", "cache", "mine", project=project)
        ground.incus("storage", "volume", "delete", "pool", "notes", project=project)
        ground.incus("profile", "delete", "extra", project=project)


def test_a_clone_that_was_renamed_or_copied_back_is_somebody_s_own(own: Stage) -> None:
    ground, project = own.ground, own.project
    ground.incus("stop", "--force", "cache", project=project)
    ground.incus("rename", "cache", "kept", project=project)
    ground.incus("copy", "kept", "cache", project=project)
    try:
        done = own.run("provision", "--recreate", check=False)
        assert done.returncode == 4
        assert "instance cache in STAGE-OWN: not made by pytest-stagegbo" in done.stderr
        ground.incus("delete", "cache", project=project)
        ground.incus("config", "device", "set", "kept", "eth0", "ipv4.address=10.0.12.77", project=project)
        own.run("provision")
        assert set(ground.instances(project)) == {"cache", "kept"}
    finally:
        ground.incus("delete", "--force", "kept", project=project)


def test_somebody_s_instance_on_the_bridge_keeps_it(own: Stage) -> None:
    """Also from another address. Incus itself deletes a bridge that an instance names as its parent."""
    ground = own.ground
    ground.incus("init", "--empty", "guest", "-d", "root,size=50MiB", "-s", "pool")
    ground.incus("config", "device", "add", "guest", "eth1", "nic", "nictype=bridged", f"parent={BRIDGE}")
    try:
        done = own.run("destroy", "--yes", check=False)
        assert done.returncode == 4
        assert f"instance guest of project default on {BRIDGE}" in done.stderr
        assert "  incus config device remove guest eth1\n" in done.stderr
        assert own.clone("cache")["status"] == "Running"
    finally:
        ground.incus("delete", "guest")


def test_clones_in_a_project_that_lost_its_mark_keep_their_bridge(own: Stage) -> None:
    """The project is somebody else's now, and what is in it stands on the stage's bridge."""
    ground = own.ground
    ground.incus("project", "set", own.project, "user.stagegbo.owner=somebody")
    try:
        for option in ("--dry-run", "--yes"):
            done = own.run("destroy", option, check=False)
            assert done.returncode == 4, done.stdout
            assert f"instance cache of project {own.project} on {BRIDGE}" in done.stderr
        assert BRIDGE in ground.names("networks")
    finally:
        ground.incus("project", "set", own.project, "user.stagegbo.owner=pytest-stagegbo")


# -- another name in the settings

NEXT = "stageown7"


def named(name: str = NEXT, address: str = "10.0.12.1/24") -> dict[str, str]:
    return {"STAGEGBO_NETWORK__NAME": name, "STAGEGBO_NETWORK__ADDRESS": address}


def furniture(ground: Ground) -> set[str]:
    """Bridges and access lists of these stages."""
    return {name for name in ground.names("networks") | ground.names("network-acls") if name.startswith("stageown")}


@pytest.mark.both_lts
@pytest.mark.parametrize("address", ["10.0.12.1/24", "10.0.14.1/24"])
def test_a_bridge_with_a_former_name_goes_and_what_others_have_on_it_keeps_it(own: Stage, address: str) -> None:
    """It stayed for ever, with its access list; with the same address it was said to overlap itself."""
    ground, wanted = own.ground, named(address=address)
    ground.incus("init", "--empty", "guest", "-d", "root,size=50MiB", "-s", "pool")
    ground.incus("config", "device", "add", "guest", "eth1", "nic", "nictype=bridged", f"parent={BRIDGE}")
    try:
        with ground.events() as events:
            done = own.run("provision", env=wanted, check=False)
            assert done.returncode == 4, done.stderr
            assert f"instance guest of project default on {BRIDGE}" in done.stderr
            assert "  incus config device remove guest eth1\n" in done.stderr
        assert events == []
        ground.incus("config", "device", "remove", "guest", "eth1")
        planned = own.run("provision", "--dry-run", env=wanted).stdout
        assert f"delete network {BRIDGE}\n" in planned
        assert f"delete access list {BRIDGE}-isolation\n" in planned
        done = own.run("provision", env=wanted)
        assert furniture(ground) == {NEXT, f"{NEXT}-isolation"}
        assert own.run("provision", "--json", env=wanted).returncode == 0
        own.run("verify", "--check", "reach.stage", "--check", "locked.project", env=wanted)
        assert own.json("provision")["changed"] is True
        assert furniture(ground) == {BRIDGE, f"{BRIDGE}-isolation"}
        assert own.json("provision")["changed"] is False
    finally:
        ground.incus("delete", "guest")


def test_destroy_finds_a_bridge_with_a_former_name_and_leaves_one_that_somebody_renamed(ground: Ground) -> None:
    made = ground.stage("STAGE-FORMER", "stageown3", 15, ONLY_CACHE)
    made.run("provision")
    mark = [f"{marks.OWNER}={marks.OWNER_VALUE}", f"{marks.PROJECT}={made.project}"]
    ground.incus("network", "create", "stageownkept", "ipv4.address=none", "ipv6.address=none", *mark)
    try:
        said = ground.stage("STAGE-FORMER-2", "stageown4", 16, ONLY_CACHE).run("provision", "--dry-run").stdout
        assert "`stagegbo --project STAGE-FORMER destroy` removes the former one" in " ".join(said.split())
        made.run("destroy", "--yes", env=named("stageown5", "10.0.17.1/24"))
        assert not {"stageown3", "stageown3-isolation"} & furniture(ground)
        assert "stageownkept" in furniture(ground)
    finally:
        ground.incus("network", "delete", "stageownkept")


# -- what was taken from the stage


def bridge_deleted(stage: Stage) -> None:
    stage.ground.incus("network", "delete", BRIDGE)


def interface_deleted(stage: Stage) -> None:
    stage.ground.inside("ip", "link", "delete", BRIDGE)


def interface_down(stage: Stage) -> None:
    stage.ground.inside("ip", "link", "set", BRIDGE, "down")


def address_gone(stage: Stage) -> None:
    stage.ground.inside("ip", "address", "flush", "dev", BRIDGE)


def device_removed(stage: Stage) -> None:
    stage.ground.incus("config", "device", "remove", "cache", "eth0", project=stage.project)


def device_removed_and_stopped(stage: Stage) -> None:
    stage.ground.incus("stop", "--force", "cache", project=stage.project)
    device_removed(stage)


def unplugged(stage: Stage) -> None:
    veth = stage.clone("cache")["config"]["volatile.eth0.host_name"]
    stage.ground.inside("ip", "link", "set", veth, "nomaster")


def everything(stage: Stage) -> None:
    bridge_deleted(stage)
    stage.ground.incus("network", "acl", "delete", f"{BRIDGE}-isolation")


@pytest.mark.parametrize("breach", [pytest.param(interface_deleted, marks=pytest.mark.both_lts), unplugged])
def test_a_clone_without_its_network_is_said_at_once_with_the_command_that_mends_it(
    own: Stage, breach: Callable[[Stage], None]
) -> None:
    """A reset waited for it until the ready time-out, two minutes."""
    gone = "is gone" if breach is interface_deleted else "has no connection to cache"
    fault = f"the stage's bridge {BRIDGE} {gone}"
    breach(own)
    done = own.run("reset", "cache", check=False, timeout=30)
    assert done.returncode == 1
    assert f"ERROR SG320 cache can't be reached: {fault}" in done.stderr
    assert "provision`: it mends the bridge" in done.stderr
    assert fault in own.run("status", check=False).stdout
    done = own.run("exec", "cache", "--", "hostname")
    assert fault in done.stderr
    done = own.run("verify", "--check", "reach.stage", "--json", check=False)
    (line,) = json.loads(done.stdout)["findings"]
    assert line["state"] == "red"
    assert line["evidence"][0] == fault
    assert "it mends the bridge" in line["remedy"]
    own.run("provision")
    own.run("reset", "cache")


@pytest.mark.parametrize("breach", [interface_down, address_gone, pytest.param(interface_deleted, id="deleted")])
def test_a_reset_that_failed_for_the_bridge_does_not_keep_it_from_being_mended(
    own: Stage, breach: Callable[[Stage], None]
) -> None:
    """The reset is finished once the bridge is there again."""
    set_key(own, "left")
    breach(own)
    assert own.run("reset", "cache", check=False).returncode == 1
    own.run("provision")
    if breach is not interface_deleted:  # else the clone was restarted, and is reset by whoever uses it next
        assert own.valkey_keys() == []
    own.run("reset", "cache")
    assert own.valkey_keys() == []
    assert own.json("provision")["changed"] is False


@pytest.mark.parametrize(
    "breach",
    [
        bridge_deleted,  # 7.0 keeps a bridge that is in use
        pytest.param(interface_deleted, marks=pytest.mark.both_lts),
        interface_down,
        address_gone,
        pytest.param(device_removed, marks=pytest.mark.both_lts),
        device_removed_and_stopped,
        unplugged,
        everything,
    ],
)
def test_a_clone_without_its_network_gets_it_back_and_keeps_its_data(
    own: Stage, breach: Callable[[Stage], None]
) -> None:
    documents, made = own.documents(), own.clone("cache")["created_at"]
    set_key(own, breach.__name__)
    breach(own)
    result = own.json("provision")
    assert result["containers"]["cache"]["state"] == "ready"
    assert result["changed"] is True
    assert own.clone("cache")["created_at"] == made
    assert breach.__name__ in own.valkey_keys()
    assert own.documents() == documents
    assert own.json("provision")["changed"] is False
