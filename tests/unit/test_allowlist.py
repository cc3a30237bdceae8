"""What a clone may keep of production's configuration. A copy here is merged as Incus merges one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import PRODUCTION_PROFILE, clone, copied, source
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.allowlist import CloneConfig, clone_config, nic, violations
from pytest_stagegbo.guest import PLACE, boot_folder_of, identity
from pytest_stagegbo.settings import Settings

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Instance

SETTINGS = Settings()
TABLES = SETTINGS.containers["tables"]

DEVICES = [
    pytest.param({"type": "proxy", "listen": "tcp:0.0.0.0:80", "connect": "tcp:127.0.0.1:80"}, id="proxy"),
    pytest.param({"type": "disk", "path": "/mnt", "source": "/srv/backups"}, id="host-folder"),
    pytest.param({"type": "disk", "path": "/mnt", "source": "shared", "pool": "tank"}, id="custom-volume"),
    pytest.param({"type": "unix-char", "path": "/dev/ttyUSB0"}, id="unix-char"),
    pytest.param({"type": "unix-block", "path": "/dev/sdb"}, id="unix-block"),
    pytest.param({"type": "gpu"}, id="gpu"),
    pytest.param({"type": "usb", "vendorid": "1234"}, id="usb"),
    pytest.param({"type": "tpm", "path": "/dev/tpm0"}, id="tpm"),
    pytest.param({"type": "nic", "name": "eth1", "network": "prodbr0"}, id="second-nic-on-production"),
    pytest.param({"type": "nic", "name": "eth1", "network": "stagebr0"}, id="second-nic-on-the-stage"),
]

KEYS = [
    pytest.param("security.privileged", "true", id="privileged"),
    pytest.param("security.nesting", "true", id="nesting"),
    pytest.param("security.syscalls.intercept.mount", "true", id="syscalls"),
    pytest.param("raw.lxc", "lxc.apparmor.profile=unconfined", id="raw-lxc"),
    pytest.param("raw.idmap", "both 1000 1000", id="raw-idmap"),
    pytest.param("linux.kernel_modules", "br_netfilter", id="kernel-modules"),
    pytest.param("boot.autorestart", "true", id="autorestart"),
    pytest.param("boot.autostart.priority", "10", id="autostart-priority"),
    pytest.param("boot.stop.priority", "10", id="stop-priority"),
    pytest.param("snapshots.schedule", "@daily", id="snapshot-schedule"),
    pytest.param("snapshots.expiry", "1d", id="snapshot-expiry"),
    pytest.param("cloud-init.user-data", "#cloud-config", id="cloud-init"),
    pytest.param("user.vendor-data", "#cloud-config", id="old-cloud-init"),
    pytest.param("migration.stateful", "true", id="migration"),
    pytest.param("cluster.evacuate", "live-migrate", id="cluster"),
    pytest.param("nvidia.runtime", "true", id="nvidia"),
    pytest.param("limits.memory.swap", "false", id="low-level-swap"),
    pytest.param("limits.memory.oom_priority", "1", id="low-level-oom"),
    pytest.param("key.of.some.later.incus", "1", id="unknown"),
]

KEPT = [
    pytest.param("environment.LANG", "de_DE.UTF-8", id="environment"),
    pytest.param("limits.cpu", "2", id="cpu"),
    pytest.param("limits.cpu.allowance", "50%", id="cpu-allowance"),
    pytest.param("limits.memory", "2GiB", id="memory"),
    pytest.param("limits.memory.enforce", "soft", id="memory-enforce"),
    pytest.param("limits.processes", "500", id="processes"),
    pytest.param("limits.kernel.nofile", "65536", id="kernel"),
    pytest.param("image.os", "Debian", id="image"),
]


def overrides(origin: Instance, settings: Settings = SETTINGS, *, managed: bool = True) -> CloneConfig:
    return clone_config(origin, settings.containers["tables"], settings, managed=managed, golden=False)


def clone_of(origin: Instance) -> Instance:
    return copied(origin, overrides(origin), SETTINGS)


class TestCopy:
    """The request takes away what the source has and the clone must not have."""

    @pytest.mark.parametrize("device", DEVICES)
    def test_a_device_of_the_source_does_not_come_along(self, device: dict[str, str]) -> None:
        origin = source(devices={"extra": device})
        assert overrides(origin).devices["extra"] == {"type": "none"}
        assert violations(clone_of(origin), SETTINGS) == []

    @pytest.mark.parametrize("device", DEVICES)
    def test_a_dropped_device_is_reported_with_its_type(self, device: dict[str, str]) -> None:
        (reported,) = overrides(source(devices={"extra": device})).dropped
        assert reported.startswith(f"device extra ({device['type']}")

    def test_a_dropped_device_is_reported_with_what_it_reached(self) -> None:
        devices = {"data": {"type": "disk", "path": "/mnt", "source": "/srv/backups"}}
        assert overrides(source(devices=devices)).dropped == ("device data (disk /srv/backups)",)

    @pytest.mark.parametrize(("key", "value"), KEYS)
    def test_a_key_of_the_source_does_not_come_along(self, key: str, value: str) -> None:
        origin = source(config={key: value})
        assert key not in clone_of(origin).config
        assert violations(clone_of(origin), SETTINGS) == []

    @pytest.mark.parametrize(("key", "value"), KEYS)
    def test_a_dropped_key_is_reported_without_its_value(self, key: str, value: str) -> None:
        assert overrides(source(config={key: value})).dropped == (f"config {key}",)

    @pytest.mark.parametrize(("key", "value"), KEPT)
    def test_what_stays_inside_the_container_is_kept(self, key: str, value: str) -> None:
        origin = source(config={key: value})
        assert clone_of(origin).config[key] == value
        assert overrides(origin).dropped == ()
        assert violations(clone_of(origin), SETTINGS) == []

    @pytest.mark.parametrize(("key", "value"), KEPT)
    def test_what_is_kept_may_come_from_a_profile_that_the_stage_lacks(self, key: str, value: str) -> None:
        origin = source(profile_config={key: value})
        assert clone_of(origin).config[key] == value

    def test_what_a_profile_of_production_adds_is_reported_and_not_asked_for(self) -> None:
        mount = {"type": "disk", "path": "/mnt", "source": "/srv"}
        origin = source(
            profile_config={"security.nesting": "true"}, profile_devices={**PRODUCTION_PROFILE, "mount": mount}
        )
        assert overrides(origin).dropped == ("config security.nesting", "device mount (disk /srv)")
        assert "security.nesting" not in overrides(origin).config
        assert "mount" not in overrides(origin).devices

    @pytest.mark.parametrize("autostart", ["true", "false", ""])
    def test_a_clone_never_starts_with_the_host(self, autostart: str) -> None:
        assert clone_of(source(config={"boot.autostart": autostart})).config["boot.autostart"] == "false"

    def test_volatile_keys_are_the_servers_business(self) -> None:
        made = overrides(source(config={"volatile.eth0.hwaddr": "00:16:3e:01:02:03"}))
        assert [key for key in made.config if key.startswith("volatile.")] == ["volatile.apply_template"]
        assert made.dropped == ()

    def test_programs_for_its_first_process_are_in_a_folder_that_nobody_can_know_before(self) -> None:
        """Production may have any other in its root, with programs in it or as a link."""
        first, second = overrides(source()).config, overrides(source()).config
        assert boot_folder_of(first) != boot_folder_of(second) != ""
        assert boot_folder_of(first).removeprefix("/stagegbo-") == identity(first[f"environment.{PLACE}"])

    def test_a_copy_of_a_golden_clone_boots_from_the_folder_that_is_in_it(self) -> None:
        golden = source(config=overrides(source()).config)
        made = clone_config(golden, SETTINGS.containers["tables"], SETTINGS, managed=True, golden=True).config
        assert boot_folder_of(made) == boot_folder_of(golden.config) != ""
        assert made[f"environment.{PLACE}"] != golden.config[f"environment.{PLACE}"]

    @pytest.mark.parametrize("folder", ["/opt/programs", "/stagegbo-../../x", ""])
    def test_a_clone_that_takes_programs_from_elsewhere_is_not_started(self, folder: str) -> None:
        clone = clone_of(source())
        changed = {**clone.expanded_config, "environment.SYSTEMD_GENERATOR_PATH": folder}
        assert (
            "config environment.SYSTEMD_GENERATOR_PATH"
            in violations(replace(clone, expanded_config=changed), SETTINGS)[0]
        )

    def test_the_network_device_is_the_stages_own(self) -> None:
        fixed = {
            "type": "nic",
            "name": "eth0",
            "network": "prodbr0",
            "hwaddr": "00:16:3e:01:02:03",
            "host_name": "veth0",
        }
        assert clone_of(source(devices={"eth0": fixed})).expanded_devices["eth0"] == {
            "type": "nic",
            "name": "eth0",
            "network": "stagebr0",
            "ipv4.address": "10.0.3.11",
            "security.mac_filtering": "true",
            "security.ipv4_filtering": "true",
        }

    def test_the_network_device_names_the_bridge_as_parent_where_the_project_does_not_see_it(self) -> None:
        eth0 = overrides(source(), managed=False).devices["eth0"]
        assert (eth0["nictype"], eth0["parent"]) == ("bridged", "stagebr0")
        assert "network" not in eth0

    def test_a_network_device_of_another_name_goes(self) -> None:
        origin = source(
            devices={"lan": {"type": "nic", "name": "eth0", "network": "prodbr0"}},
            profile_devices={"root": PRODUCTION_PROFILE["root"]},
        )
        nics = [name for name, device in clone_of(origin).expanded_devices.items() if device["type"] == "nic"]
        assert nics == ["eth0"]

    def test_the_root_disk_is_on_the_sources_pool_with_the_stages_limit(self) -> None:
        own = {"root": {"type": "disk", "path": "/", "pool": "fast", "size": "80GB"}}
        assert clone_of(source(devices=own)).expanded_devices["root"] == {
            "type": "disk",
            "path": "/",
            "pool": "fast",
            "size": "10GB",
        }

    def test_a_containers_own_limit_goes_before_the_stages(self) -> None:
        roomy = replace(SETTINGS, containers={"tables": replace(TABLES, disk_limit="25GB")})
        assert overrides(source(), roomy).devices["root"]["size"] == "25GB"

    def test_a_root_disk_of_another_name_goes_and_its_pool_stays(self) -> None:
        origin = source(
            devices={"system-disk": {"type": "disk", "path": "/", "pool": "fast"}},
            profile_devices={"eth0": PRODUCTION_PROFILE["eth0"]},
        )
        disks = {name: device for name, device in clone_of(origin).expanded_devices.items() if device["type"] == "disk"}
        assert {name: device["pool"] for name, device in disks.items()} == {"root": "fast"}
        assert overrides(origin).dropped == ()

    def test_marks_of_a_source_that_is_itself_a_clone_are_replaced(self) -> None:
        origin = source(config={marks.STATE: marks.PREPARED, marks.FINGERPRINT: "old", "user.stagegbo.other": "1"})
        made = clone_of(origin).config
        assert made[marks.STATE] == marks.BUILDING
        assert made[marks.FINGERPRINT] == marks.fingerprint(TABLES, SETTINGS)
        assert "user.stagegbo.other" not in made

    def test_a_clone_is_marked_as_unfinished_from_its_first_moment(self) -> None:
        made = overrides(source()).config
        assert (made[marks.OWNER], made[marks.STATE], made[marks.SOURCE]) == (
            "pytest-stagegbo",
            "building",
            "default/tables",
        )

    def test_a_source_with_nothing_special_loses_nothing(self) -> None:
        assert overrides(source()).dropped == ()


class TestUnsafe:
    @pytest.mark.parametrize(
        ("key", "problems"),
        [
            pytest.param("user.foo", [], id="people's own"),
            pytest.param("user.team.owner", [], id="with dots"),
            pytest.param("user.user-data", ["config user.user-data"], id="cloud-init follows it"),
            pytest.param("security.privileged", ["config security.privileged"], id="a privilege"),
        ],
    )
    def test_what_people_note_at_a_clone_is_harmless(self, key: str, problems: list[str]) -> None:
        found = clone("tables", SETTINGS)
        config = {**found.expanded_config, key: "bar"}
        assert violations(replace(found, expanded_config=config), SETTINGS) == problems

    """A stopped clone that carries what the request should have taken away is not started."""

    def test_a_clean_clone_is_safe(self) -> None:
        assert violations(clone("tables", SETTINGS), SETTINGS) == []

    @pytest.mark.parametrize("device", DEVICES)
    def test_a_device_that_is_not_the_stages_is_unsafe(self, device: dict[str, str]) -> None:
        found = clone("tables", SETTINGS)
        found = replace(found, expanded_devices={**found.expanded_devices, "extra": device})
        assert violations(found, SETTINGS) == [f"device extra ({device['type']})"]

    @pytest.mark.parametrize(("key", "value"), KEYS)
    def test_a_key_outside_the_allowlist_is_unsafe(self, key: str, value: str) -> None:
        found = clone("tables", SETTINGS)
        found = replace(found, expanded_config={**found.expanded_config, key: value})
        assert violations(found, SETTINGS) == [f"config {key}"]

    def test_autostart_is_unsafe(self) -> None:
        found = clone("tables", SETTINGS)
        found = replace(found, expanded_config={**found.expanded_config, "boot.autostart": "true"})
        assert violations(found, SETTINGS) == ["config boot.autostart"]

    @pytest.mark.parametrize(
        "key", ["hwaddr", "host_name", "ipv4.routes", "ipv4.routes.external", "security.acls", "vlan", "limits.max"]
    )
    def test_a_network_device_with_more_than_the_stage_gives_it_is_unsafe(self, key: str) -> None:
        found = clone("tables", SETTINGS)
        eth0 = {**found.expanded_devices["eth0"], key: "x"}
        assert violations(replace(found, expanded_devices={**found.expanded_devices, "eth0": eth0}), SETTINGS) == [
            f"device eth0 with {key}"
        ]

    @pytest.mark.parametrize(
        "link",
        [
            pytest.param({"network": "prodbr0"}, id="managed-by-production"),
            pytest.param({"nictype": "bridged", "parent": "prodbr0"}, id="production-as-parent"),
            pytest.param({"network": "stagebr0", "parent": "prodbr0"}, id="both"),
            pytest.param({"nictype": "macvlan", "parent": "stagebr0"}, id="macvlan"),
            pytest.param({"nictype": "physical", "parent": "stagebr0"}, id="physical"),
            pytest.param({}, id="nowhere"),
        ],
    )
    def test_a_network_device_elsewhere_than_on_the_stages_bridge_is_unsafe(self, link: dict[str, str]) -> None:
        found = clone("tables", SETTINGS)
        devices = {**found.expanded_devices, "eth0": {"type": "nic", "name": "eth0", **link}}
        assert violations(replace(found, expanded_devices=devices), SETTINGS) == ["device eth0 (nic)"]

    @pytest.mark.parametrize("managed", [True, False])
    def test_both_ways_of_naming_the_stages_bridge_are_safe(self, managed: bool) -> None:
        found = clone("tables", SETTINGS)
        devices = {**found.expanded_devices, "eth0": nic(SETTINGS, managed=managed)}
        assert violations(replace(found, expanded_devices=devices), SETTINGS) == []

    @pytest.mark.parametrize(
        "root",
        [
            pytest.param({"type": "disk", "path": "/", "pool": "tank", "source": "/"}, id="host-root"),
            pytest.param({"type": "disk", "path": "/mnt", "pool": "tank"}, id="elsewhere"),
            pytest.param({"type": "unix-char", "path": "/"}, id="not-a-disk"),
        ],
    )
    def test_a_device_that_only_calls_itself_root_is_unsafe(self, root: dict[str, str]) -> None:
        found = clone("tables", SETTINGS)
        devices = {**found.expanded_devices, "root": root}
        assert violations(replace(found, expanded_devices=devices), SETTINGS) == [f"device root ({root['type']})"]

    def test_a_second_root_disk_is_unsafe(self) -> None:
        found = clone("tables", SETTINGS)
        devices = {**found.expanded_devices, "system-disk": {"type": "disk", "path": "/", "pool": "tank"}}
        assert violations(replace(found, expanded_devices=devices), SETTINGS) == ["device system-disk (disk)"]

    def test_a_removed_device_and_an_unset_key_are_safe(self) -> None:
        found = clone("tables", SETTINGS)
        devices = {**found.expanded_devices, "web": {"type": "none"}}
        config = {**found.expanded_config, "raw.lxc": ""}
        assert violations(replace(found, expanded_devices=devices, expanded_config=config), SETTINGS) == []

    def test_every_problem_is_named(self) -> None:
        found = clone("tables", SETTINGS)
        config = {**found.expanded_config, "raw.lxc": "x", "security.privileged": "true"}
        devices = {**found.expanded_devices, "web": {"type": "proxy"}}
        assert violations(replace(found, expanded_config=config, expanded_devices=devices), SETTINGS) == [
            "config raw.lxc",
            "config security.privileged",
            "device web (proxy)",
        ]
