"""A clone is safe before it boots for the first time, whatever its source carries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab import unsafe_sources
from tests.lab.support import SIX, TRAPS, until

if TYPE_CHECKING:
    from tests.lab.support import Ground, Stage

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]

PREPARE = "stagegbo-prepare.service"
UNITS = {
    "system": "botserver.service",
    "tables": "postgresql.service",
    "vault": "vault.service",
    "cache": "valkey.service",
    "drive": "minio.service",
    "llm": "llm.service",
}
GONE = ("backup", "eth1", "fuse", "host", "shared", "web")
ENDED = sorted({*unsafe_sources.CONFIG, *unsafe_sources.PROFILE["config"]} - {"environment.OWN", "environment.COMPANY"})


@pytest.fixture(scope="module")
def source(trapped: Stage) -> dict[str, Any]:
    """Drive's source, as it is after it was cloned."""
    found: dict[str, Any] = trapped.ground.get("instances/devices", project=TRAPS)
    return found


@pytest.fixture(scope="module")
def clone(trapped: Stage) -> dict[str, Any]:
    return trapped.clone("drive")


@pytest.fixture(scope="module")
def notes(trapped: Stage) -> str:
    plan = json.loads(trapped.config.with_suffix(".plan").read_text())
    return "\n".join(plan["notes"])


@pytest.mark.parametrize("device", GONE)
def test_a_device_of_the_source_is_left_behind(source: dict[str, Any], clone: dict[str, Any], device: str) -> None:
    assert device in source["expanded_devices"]
    assert clone["expanded_devices"].get(device, {"type": "none"}) == {"type": "none"}


@pytest.mark.parametrize("device", GONE)
def test_the_plan_and_the_run_say_which_devices_are_left_behind(trapped: Stage, notes: str, device: str) -> None:
    assert f"device {device} (" in notes
    assert f"device {device} (" in trapped.config.with_suffix(".log").read_text()


def test_a_clone_has_nothing_but_a_root_disk_and_the_stage_s_network_device(clone: dict[str, Any]) -> None:
    devices = {name: device for name, device in clone["expanded_devices"].items() if device["type"] != "none"}
    assert devices["root"] == {"type": "disk", "path": "/", "pool": "pool", "size": "10GB"}
    assert devices["eth0"]["ipv4.address"] == "10.0.54.14"
    assert "stagetrap0" in {devices["eth0"].get("network"), devices["eth0"].get("parent")}
    assert set(devices) == {"root", "eth0"}


@pytest.mark.parametrize("key", [key for key in ENDED if key != "boot.autostart"])
def test_a_key_of_the_source_is_left_behind(
    source: dict[str, Any], clone: dict[str, Any], notes: str, key: str
) -> None:
    if key == "limits.memory" or key == "limits.processes":
        assert clone["expanded_config"][key] == source["expanded_config"][key]
        return
    assert key in source["expanded_config"]
    assert not clone["expanded_config"].get(key)
    assert f"config {key}" in notes


def test_a_clone_is_not_started_with_the_host(source: dict[str, Any], clone: dict[str, Any]) -> None:
    assert source["expanded_config"]["boot.autostart"] == "true"
    assert clone["expanded_config"]["boot.autostart"] == "false"


def test_environment_and_limits_come_along_from_a_profile_that_the_stage_does_not_have(clone: dict[str, Any]) -> None:
    assert clone["profiles"] == ["default"]
    kept = {key: clone["expanded_config"].get(key) for key in ("environment.COMPANY", "environment.OWN")}
    assert kept == {"environment.COMPANY": "gbo", "environment.OWN": "kept"}
    assert clone["expanded_config"]["limits.memory"] == "1GiB"


def test_a_fixed_mac_address_is_replaced(source: dict[str, Any], clone: dict[str, Any]) -> None:
    assert source["expanded_devices"]["eth0"]["hwaddr"] == unsafe_sources.HARDWARE_ADDRESS
    assert "hwaddr" not in clone["expanded_devices"]["eth0"]
    assert clone["config"]["volatile.eth0.hwaddr"] != unsafe_sources.HARDWARE_ADDRESS


def test_a_clone_of_a_privileged_container_is_unprivileged(trapped: Stage) -> None:
    first = trapped.exec("drive", "head", "-n1", "/proc/self/uid_map").split()
    assert first[0] == "0"
    assert first[1] != "0"


def test_snapshots_stay_with_the_source(trapped: Stage) -> None:
    found = trapped.ground.get("instances/devices/snapshots", project=TRAPS)
    assert [each for each in found if "/before-traps" in each], "other tests make snapshots there as well"
    assert trapped.ground.get("instances/drive/snapshots", project=trapped.project) == []


def test_a_volume_of_the_source_is_neither_copied_nor_attached(trapped: Stage) -> None:
    volumes = {name for name in trapped.ground.volumes() if name.startswith(f"{trapped.project}/custom")}
    assert volumes == set()
    assert trapped.exec("drive", "findmnt", "-n", "/mnt/backup", check=False) == ""


def test_the_restrictions_of_the_project_are_back_after_low_level_keys_were_taken_away(trapped: Stage) -> None:
    config = trapped.ground.get(f"projects/{trapped.project}")["config"]
    assert config["restricted"] == "true"
    assert config["restricted.containers.lowlevel"] == "block"
    assert trapped.run("provision", "--json").stdout.count('"changed": false') == 1


def test_an_interfaces_file_that_is_a_link_gets_the_clone_s_address_as_well(trapped: Stage) -> None:
    files = [
        rootfs / "etc/network/interfaces"
        for rootfs in (trapped.ground.rootfs("devices", TRAPS), trapped.rootfs("drive"))
    ]
    assert f"address {unsafe_sources.DRIVE_ADDRESS}" in files[0].read_text()
    assert "address 10.0.54.14" in files[1].read_text()
    assert unsafe_sources.DRIVE_ADDRESS not in files[1].read_text()


def test_the_source_goes_on_with_everything_that_it_had(source: dict[str, Any]) -> None:
    assert source["status"] == "Running"
    assert unsafe_sources.CONFIG.items() <= source["config"].items()
    assert source["devices"] == unsafe_sources.DEVICES


def test_nothing_that_starts_by_itself_in_production_has_run_in_a_clone(trapped: Stage) -> None:
    assert list(trapped.ground.rootfs("files", TRAPS).glob("usr/local/bin/production"))
    assert list(trapped.rootfs("cache").glob("production-*")) == []


def test_the_manager_knows_no_unit_but_those_of_its_folder(trapped: Stage) -> None:
    assert trapped.exec("cache", "systemctl", "show", "--property=UnitPath", "--value") == "/run/systemd/generator\n"
    shown = ("list-units", "--all", "--plain", "--no-legend", "--type=service,timer", "--state=loaded")
    loaded = {line.split()[0] for line in trapped.exec("cache", "systemctl", *shown).splitlines()}
    own = {"valkey.service", "valkey-server.service", "networking.service", PREPARE}
    assert loaded - own == {"systemd-journald.service"}


def test_a_failed_boot_job_of_production_is_no_failure_of_the_clone_s(trapped: Stage) -> None:
    assert trapped.exec("cache", "systemctl", "is-system-running") == "running\n"


def test_a_restart_of_a_clone_starts_nothing_more(trapped: Stage) -> None:
    trapped.ground.incus("restart", "cache", project=trapped.project)
    until(lambda: trapped.run("status", check=False).returncode == 0, "the stage answers again")
    assert list(trapped.rootfs("cache").glob("production-*")) == []


def test_the_plan_says_what_a_clone_may_start(trapped: Stage) -> None:
    plan = json.loads(trapped.config.with_suffix(".plan").read_text())
    said = next(step["text"] for step in plan["steps"] if step["key"] == "prepare:cache")
    assert "start only valkey.service" in said


def test_a_clone_whose_boot_is_no_longer_confined_is_replaced(trapped: Stage) -> None:
    """Its next boot would start production's units."""
    key = "environment.SYSTEMD_UNIT_PATH"
    before = trapped.clone("cache")["config"]["volatile.uuid"]
    trapped.ground.incus("config", "unset", "cache", key, project=trapped.project)
    done = trapped.run("verify", "--check", "locked.instances", check=False)
    assert done.returncode == 9
    assert key in done.stdout
    trapped.run("provision")
    assert trapped.clone("cache")["config"][key] == "/run/systemd/generator"
    assert trapped.clone("cache")["config"]["volatile.uuid"] != before
    assert list(trapped.rootfs("cache").glob("production-*")) == []


def test_a_full_boot_comes_after_one_that_makes_the_clone_safe(ground: Ground, trapped: Stage) -> None:
    """Then everything of production's runs, and finds what was wiped empty."""
    assert trapped.project
    settings = unsafe_sources.one_container("cache", "files") + 'cache.boot = "full"\n'
    stage = ground.stage("STAGE-FULL", "stagefull0", 13, settings)
    try:
        stage.run("provision")
        expected = {"sysinit.target", "local-fs.target", "journald", "timer", "etc-init.d", "reboot"}
        expected = {f"production-{name}" for name in expected}
        until(lambda: expected <= {file.name for file in stage.rootfs("cache").glob("production-*")}, "all have run")
        seen = {file.name: file.read_text() for file in stage.rootfs("cache").glob("production-*")}
        assert set(seen["production-local-fs.target"].split()) <= {"tmpfiles"}
        assert stage.clone("cache")["config"].get("environment.SYSTEMD_UNIT_PATH", "") == ""
        assert stage.json("provision")["changed"] is False
    finally:
        stage.destroy()


def test_a_clone_that_does_not_boot_as_it_must_is_stopped(ground: Ground, trapped: Stage) -> None:
    assert trapped.project
    settings = "timeouts.ready = 3\n" + unsafe_sources.one_container("llm", "hijacked")
    stage = ground.stage("STAGE-HIJACKED", "stagehijack0", 14, settings)
    try:
        done = stage.run("provision", check=False)
        assert done.returncode == 6
        assert "so it was stopped" in done.stderr
        assert stage.clone("llm")["status"] == "Stopped"
    finally:
        stage.destroy()


# -- the six


@pytest.mark.parametrize("name", SIX)
def test_nothing_is_started_before_the_clone_is_prepared(stage: Stage, name: str) -> None:
    """Times are systemd's own, in microseconds of the monotonic clock; 0: never."""
    prepared = stage.properties(name, PREPARE)
    done = int(prepared["ExecMainExitTimestampMonotonic"])
    assert prepared["Result"] == "success"
    assert done > 0
    for unit in ("sysinit.target", "networking.service", UNITS[name]):
        began = int(stage.properties(name, unit)["InactiveExitTimestampMonotonic"])
        assert began > done, unit


@pytest.mark.parametrize("name", SIX)
def test_the_clone_s_interface_never_had_another_address(stage: Stage, name: str) -> None:
    """The kernel's own list has one address, and ifupdown's journal has no other."""
    addresses = json.loads(stage.exec(name, "ip", "-j", "-4", "address", "show", "eth0"))
    own = f"10.0.3.{10 + SIX.index(name)}"
    assert [each["local"] for each in addresses[0]["addr_info"]] == [own]
    assert f"address {own}" in (stage.rootfs(name) / "etc/network/interfaces").read_text()
    assert stage.properties(name, "networking.service")["NRestarts"] == "0"
    boots = stage.exec(name, "journalctl", "--no-pager", "-q", "-u", "networking.service", "-o", "cat")
    assert "10.0.2." not in boots


@pytest.mark.parametrize("name", SIX)
def test_a_clone_has_an_identity_of_its_own(stage: Stage, name: str) -> None:
    machine = [
        rootfs.joinpath("etc/machine-id").read_text() for rootfs in (stage.rootfs(name), stage.ground.rootfs(name))
    ]
    assert machine[0] != machine[1]
    assert len(machine[0].strip()) == 32
    assert stage.exec(name, "hostname").strip() == name
    config = [stage.clone(name)["config"], stage.ground.get(f"instances/{name}", project="default")["config"]]
    assert config[0]["volatile.eth0.hwaddr"] != config[1]["volatile.eth0.hwaddr"]
    assert config[0]["volatile.uuid"] != config[1]["volatile.uuid"]


def test_no_two_clones_have_the_same_identity(stage: Stage) -> None:
    assert len({stage.rootfs(name).joinpath("etc/machine-id").read_text() for name in SIX}) == len(SIX)


@pytest.mark.parametrize("name", SIX)
def test_no_cron_and_no_timer_of_production_runs_in_a_clone(stage: Stage, name: str) -> None:
    assert stage.ground.exec(name, "systemctl", "is-active", "cron.service").strip() == "active"
    assert stage.exec(name, "systemctl", "is-active", "cron.service", check=False).strip() == "inactive"
    assert stage.exec(name, "systemctl", "list-units", "--type=timer", "--state=active", "--plain", "--no-legend") == ""


def test_clones_ask_the_stage_s_own_name_server(stage: Stage) -> None:
    assert stage.exec("system", "cat", "/etc/resolv.conf") == "nameserver 10.0.3.1\n"
