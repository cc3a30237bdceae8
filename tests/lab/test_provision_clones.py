"""Six clones of a production that goes on working, in a project of their own; production is the same afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.lab.inner_pytest import wait_until
from tests.lab.support import OWNER, SIX, sql

from pytest_stagegbo.apply.scheduler import AT_ONCE
from pytest_stagegbo.guest import PLACE, boot_folder_of, identity, release

if TYPE_CHECKING:
    from tests.lab.support import FirstRun, Stage

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]


# -- production


@pytest.mark.parametrize("kind", ["instances", "states", "snapshots", "profiles", "network", "volumes", "files"])
def test_production_is_the_same_afterwards(first: FirstRun, kind: str) -> None:
    """Instances with their config and devices, running states, volumes; checksums of files that nothing writes to."""
    assert first.before[kind]
    assert first.after[kind] == first.before[kind]


def test_nothing_happened_to_production_meanwhile(first: FirstRun) -> None:
    """No lifecycle event names an instance of production, its profiles, its network or its volumes.

    Copying itself is an event of the clone."""
    of_stage = [event for event in first.events if event["project"] == first.stage.project]
    assert {event["metadata"]["action"] for event in of_stage} >= {"instance-created", "instance-started"}
    others = [event["metadata"] for event in first.events if event["project"] != first.stage.project]
    assert {(each["action"], each["source"].partition("?")[0]) for each in others} == {
        ("network-acl-created", "/1.0/network-acls/stagebr0-isolation"),
        ("network-created", "/1.0/networks/stagebr0"),
    }


def test_no_packet_went_to_production_until_the_stage_answered(first: FirstRun) -> None:
    """First boots, and services with production's addresses in their configuration, included."""
    assert first.packets == 0


def test_production_went_on_writing_while_it_was_copied(first: FirstRun) -> None:
    assert first.beats[1] > first.beats[0]


def test_no_clone_ever_wrote_to_production_s_database(first: FirstRun) -> None:
    """Each row says from where it was written, and by whom."""
    ground = first.stage.ground
    assert first.stage.sql("SELECT count(*) > 0 FROM heartbeat WHERE writer = 'system'") == "t"
    assert sql(ground, "SELECT DISTINCT client FROM heartbeat") == "10.0.2.10"
    rate = sql(ground, "SELECT max(n) FROM (SELECT count(*) n FROM heartbeat GROUP BY date_trunc('second', at)) x")
    assert int(rate) <= 2, "one writer, once a second"


def test_the_clients_current_project_and_remotes_are_unchanged(first: FirstRun) -> None:
    before, after = first.client
    assert before == after


# -- project, network, profile


def test_the_project_isolates_profiles_volumes_and_where_possible_networks(stage: Stage) -> None:
    config = stage.ground.get(f"projects/{stage.project}")["config"]
    assert config["features.profiles"] == "true"
    assert config["features.storage.volumes"] == "true"
    assert config["features.storage.buckets"] == "true"
    own_networks = config["features.networks"] == "true"
    assert own_networks or config["restricted.networks.access"] == "stagebr0"
    assert config["restricted"] == "true"
    assert config[OWNER]


def test_no_note_is_about_details_of_incus(first: FirstRun) -> None:
    assert not any("features.networks" in note for note in first.result["notes"])


def test_the_network_is_the_staging_guide_s(stage: Stage) -> None:
    network = stage.ground.get("networks/stagebr0")
    assert network["type"] == "bridge"
    expected = {"ipv4.address": "10.0.3.1/24", "ipv4.nat": "true", "ipv6.address": "none"}
    assert expected.items() <= network["config"].items()


def test_the_default_profile_is_the_staging_guide_s(stage: Stage) -> None:
    devices = stage.ground.get("profiles/default", project=stage.project)["devices"]
    assert devices["root"] == {"type": "disk", "path": "/", "pool": "pool", "size": "10GB"}
    assert devices["eth0"]["type"] == "nic"
    assert "stagebr0" in {devices["eth0"].get("network"), devices["eth0"].get("parent")}


def test_a_stage_of_its_own_profiles_sees_none_of_production_s(stage: Stage) -> None:
    assert stage.ground.names("profiles", stage.project) == {"default"}


# -- clones


def test_there_are_exactly_six_and_they_run(stage: Stage) -> None:
    found = stage.ground.instances(stage.project)
    assert {name: each["status"] for name, each in found.items()} == dict.fromkeys(SIX, "Running")


@pytest.mark.parametrize("name", SIX)
def test_a_clone_is_limited_and_on_its_source_s_pool(stage: Stage, name: str) -> None:
    root = stage.clone(name)["expanded_devices"]["root"]
    assert root == {"type": "disk", "path": "/", "pool": "pool", "size": "10GB"}


def test_the_limit_is_the_disk_s_own(stage: Stage) -> None:
    """A file that would be larger can't be written. Of a small limit, since the pool is not much larger than 10 GB."""
    small = stage.ground.stage("STAGE-SMALL", "stagesmall0", 59, 'disk_limit = "2GB"\n' + ONLY_CACHE)
    small.run("provision")
    try:
        small.exec("cache", "sh", "-c", "! fallocate -l 2G /root/large 2>/dev/null")
        small.exec("cache", "fallocate", "-l", "50M", "/root/little")
    finally:
        small.destroy()


def test_another_limit_reaches_a_clone_and_replaces_none(stage: Stage) -> None:
    small = stage.ground.stage("STAGE-SMALL", "stagesmall0", 59, "[limits]\nprocesses = 300\n" + ONLY_CACHE)
    small.run("provision")
    try:
        first = small.clone("cache")
        kept = {key: first["expanded_config"].get(key) for key in ("limits.cpu.allowance", "limits.processes")}
        assert kept == {"limits.cpu.allowance": "50%", "limits.processes": "300"}
        small.config.write_text(small.config.read_text().replace("processes = 300", "processes = 3000"))
        small.run("provision")
        second = small.clone("cache")
        assert second["expanded_config"]["limits.processes"] == "3000"
        assert second["created_at"] == first["created_at"]
        assert "nothing to change" in small.run("provision").stdout
    finally:
        small.destroy()


ONLY_CACHE = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name != "cache")


def test_a_journal_takes_no_more_room_than_it_needs(stage: Stage) -> None:
    """By default each of its files gets eight megabytes at once, which is most of what a slot takes of the disk."""
    for name in SIX:
        assert stage.exec(name, "journalctl", "-q", "--no-pager", "-n", "1"), name
        files = stage.exec(name, "sh", "-c", "stat -c '%b %B' /var/log/journal/*/system.journal").splitlines()
        assert [line for line in files if int(line.split()[0]) * int(line.split()[1]) > 2 << 20] == [], name


def test_clones_are_made_at_the_same_time(first: FirstRun) -> None:
    """As many copies as may be began before the first one had ended."""
    copies = [each for each in first.result["timings"] if each["key"].startswith("copy:")]
    assert len(copies) == 6
    earliest = min(each["ended"] for each in copies)
    assert sum(each["began"] < earliest for each in copies) == AT_ONCE


def test_services_wait_for_those_that_they_need_and_the_boot_does_not(first: FirstRun) -> None:
    timings = {each["key"]: each for each in first.result["timings"]}
    needed = [timings[f"await:{name}"]["ended"] for name in SIX if name != "system"]
    assert timings["start:system"]["began"] < max(needed) <= timings["await:system"]["began"]


def test_services_that_wait_are_started_by_one_file_and_by_nothing_else(stage: Stage) -> None:
    units = ("botserver.service", "botui.service")
    path, target = "stagegbo-services.path", "stagegbo-services.target"

    def states() -> list[str]:
        return [stage.properties("system", unit)["ActiveState"] for unit in units]

    assert states() == ["active", "active"]
    stage.exec("system", "systemctl", "stop", path)  # which would start the target again
    stage.exec("system", "systemctl", "stop", target, *units)
    config = stage.clone("system")["config"]
    file = release(boot_folder_of(config), identity(config[f"environment.{PLACE}"]))
    stage.exec("system", "rm", file)
    try:
        stage.exec("system", "systemctl", "start", path)
        assert states() == ["inactive", "inactive"]
    finally:
        stage.exec("system", "touch", file)
    wait_until(lambda: states() == ["active", "active"])
    stage.run("provision")  # waits until it answers


def test_no_file_of_a_running_clone_is_read(first: FirstRun) -> None:
    """Each such file starts a process of the daemon's, which then has all of the pool written, production's data too:
    what a first boot did is read from the console."""
    actions = [(each["metadata"]["action"], each["metadata"]["source"]) for each in first.events]
    assert not [source for action, source in actions if action == "instance-file-retrieved"]


def test_all_six_answered(first: FirstRun) -> None:
    assert {name: each["state"] for name, each in first.result["containers"].items()} == dict.fromkeys(SIX, "ready")


def test_a_fresh_stage_costs_less_than_5_percent_of_what_its_sources_occupy(first: FirstRun) -> None:
    """Bytes that each clone had for itself by btrfs's own accounting, metadata included."""
    ground = first.stage.ground
    occupied = {name: int(ground.lab_command("du", "-sxB1", _folder(name)).split()[0]) for name in SIX}
    assert min(first.own.values()) > 0
    assert min(occupied.values()) > 100 << 20
    assert sum(first.own.values()) < sum(occupied.values()) * 0.05, (first.own, occupied)


def _folder(name: str) -> str:
    return f"/var/lib/incus/storage-pools/pool/containers/{name}"
