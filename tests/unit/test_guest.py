"""What makes a clone safe before anything in it runs: the files placed in it, and the script, run for real."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from pytest_stagegbo.guest import STAMP, GuestFile, guest_files, machine_id
from pytest_stagegbo.guest.files import RELEASE, SCRIPT, UNIT
from pytest_stagegbo.guest.place import FOLDER, INTERFACES, NETWORK, PLACE, TWINS, identity, variable
from pytest_stagegbo.settings import ContainerSettings, NetworkSettings, Settings

SETTINGS = Settings()
SYSTEM, TABLES = SETTINGS.containers["system"], SETTINGS.containers["tables"]
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
TARGET = "/etc/systemd/system/default.target"
HOLD_PATH = "/etc/systemd/system/stagegbo-services.path"
HOLD_TARGET = "/etc/systemd/system/stagegbo-services.target"
ENVIRON = "/proc/1/environ"
NETWORKING = "/etc/systemd/system/networking.service.d/stagegbo.conf"
DROP_IN = "/etc/systemd/system/sysinit.target.d/stagegbo.conf"


def placed(container: ContainerSettings = TABLES, settings: Settings = SETTINGS) -> dict[str, GuestFile]:
    return {file.path: file for file in guest_files(container, settings)}


def lines(path: str, container: ContainerSettings = TABLES, settings: Settings = SETTINGS) -> list[str]:
    return placed(container, settings)[path].content.splitlines()


def without_twins() -> Settings:
    return replace(SETTINGS, network=replace(SETTINGS.network, twins=False))


class TestFiles:
    def test_a_clone_that_starts_only_its_units_gets_a_target_of_its_own(self) -> None:
        assert list(placed()) == ["/etc/network/interfaces", SCRIPT, UNIT_PATH, NETWORKING, TARGET]

    def test_a_clone_that_boots_in_full_keeps_its_target(self) -> None:
        assert list(placed(replace(TABLES, boot="full"))) == ["/etc/network/interfaces", SCRIPT, UNIT_PATH, DROP_IN]

    def test_one_that_needs_others_has_its_services_wait_for_a_file(self) -> None:
        assert list(placed(SYSTEM)) == [*placed(), HOLD_PATH, HOLD_TARGET]

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"needs": ()}, id="needs-nothing"),
            pytest.param({"hooks": ("mask.sh",)}, id="hooks-may-want-the-services"),
        ],
    )
    def test_one_that_waits_for_nothing_starts_its_services_as_it_boots(self, changes: dict[str, tuple[str]]) -> None:
        container = replace(SYSTEM, **changes)  # type: ignore[arg-type]
        assert HOLD_PATH not in placed(container)
        assert "Wants=networking.service botserver.service botui.service" in lines(TARGET, container)

    def test_the_target_is_replaced_and_not_written_through(self) -> None:
        """It is a link to a target of systemd's package."""
        assert [path for path, file in placed().items() if file.replaces_link] == [TARGET]

    def test_the_script_can_be_run_and_the_rest_is_only_read(self) -> None:
        assert {path: file.mode for path, file in placed().items() if file.mode != 0o644} == {SCRIPT: 0o755}

    def test_equal_settings_make_equal_files(self) -> None:
        assert guest_files(TABLES, SETTINGS) == guest_files(TABLES, Settings())

    @pytest.mark.parametrize("name", SETTINGS.containers)
    def test_no_file_of_a_clone_names_productions_address_but_for_its_twins(self, name: str) -> None:
        """What it names is the subnet, as a whole and to keep out of it."""
        for file in guest_files(SETTINGS.containers[name], without_twins()):
            assert "10.0.2." not in file.content.replace("unreachable 10.0.2.0/24", "")


class TestMachineId:
    def test_is_one(self) -> None:
        file = machine_id()
        assert (file.path, file.mode) == ("/etc/machine-id", 0o444)
        assert re.fullmatch(r"[0-9a-f]{32}\n", file.content)

    def test_is_another_each_time(self) -> None:
        assert machine_id() != machine_id()


class TestInterfaces:
    PATH = "/etc/network/interfaces"

    def test_the_clone_has_its_stage_address_and_the_stage_as_gateway(self) -> None:
        assert lines(self.PATH, settings=without_twins()) == [
            "# Written by pytest-stagegbo.",
            "auto lo",
            "iface lo inet loopback",
            "",
            "auto eth0",
            "iface eth0 inet static",
            "    address 10.0.3.11",
            "    netmask 255.255.255.0",
            "    gateway 10.0.3.1",
            "    dns-nameservers 10.0.3.1",
            "    up bash -c 'echo >/dev/udp/10.0.3.1/9' || true",
            "    up ip route replace unreachable 10.0.2.0/24",
        ]

    def test_twins_come_up_with_the_network(self) -> None:
        assert lines(self.PATH)[-1] == f"    up {TWINS}"

    def test_another_subnet_is_followed(self) -> None:
        settings = replace(SETTINGS, network=NetworkSettings(address=IPv4Interface("172.20.0.1/20")))
        found = lines(self.PATH, replace(TABLES, address=IPv4Address("172.20.1.11")), settings)
        assert {"    address 172.20.1.11", "    netmask 255.255.240.0", "    gateway 172.20.0.1"} <= set(found)


class TestTwins:
    """Inside the stage, production's addresses belong to the clones."""

    def script(self, container: ContainerSettings = TABLES, settings: Settings = SETTINGS) -> list[str]:
        return lines(SCRIPT, container, settings)

    def test_the_clone_has_its_twins_address(self) -> None:
        assert "address add 10.0.2.11/32 dev twin0" in self.script()

    def test_packets_between_twins_carry_stage_addresses(self) -> None:
        (link,) = (line for line in self.script() if line.startswith("link add"))
        assert link.endswith("local 10.0.3.11 dev eth0 nolearning")

    def test_every_other_twin_is_known_beforehand(self) -> None:
        script = self.script()
        for name, container in SETTINGS.containers.items():
            known = f"neighbour add {container.production_address} lladdr" in "\n".join(script)
            assert known is (name != "tables")
            path = [line for line in script if line.startswith("fdb add") and line.endswith(f"dst {container.address}")]
            assert len(path) == (name != "tables")

    def test_both_ends_agree_on_an_address_of_the_wire(self) -> None:
        own = next(line.split()[4] for line in self.script(TABLES) if line.startswith("link add"))
        known = next(line for line in self.script(SYSTEM) if line.startswith("neighbour add 10.0.2.11 "))
        assert known.split()[4] == own

    def test_what_of_production_has_no_twin_is_unreachable(self) -> None:
        assert "route add unreachable 10.0.2.0/24" in self.script()

    def test_a_container_without_a_twin_reaches_those_of_the_others(self) -> None:
        script = self.script(replace(TABLES, production_address=None))
        assert not [line for line in script if line.startswith("address add")]
        assert "route add 10.0.2.12/32 dev twin0" in script

    def test_a_container_whose_source_has_no_address_is_nobodys_twin(self) -> None:
        vault = replace(SETTINGS.containers["vault"], production_address=None)
        settings = replace(SETTINGS, containers={"tables": TABLES, "vault": vault})
        assert not [
            line for line in self.script(TABLES, settings) if line.startswith(("neighbour", "fdb", "route add 1"))
        ]

    def test_without_twins_there_is_no_script(self) -> None:
        assert TWINS not in placed(TABLES, without_twins())[SCRIPT].content


class TestUnits:
    @pytest.mark.parametrize(
        "line",
        [
            pytest.param("DefaultDependencies=no", id="early"),
            pytest.param("After=local-fs.target", id="after-mounts"),
            pytest.param(
                "Before=sysinit.target network-pre.target networking.service systemd-networkd.service shutdown.target",
                id="before-network-and-services",
            ),
            pytest.param("Wants=network-pre.target", id="network-pre"),
            pytest.param("FailureAction=poweroff-force", id="failure-stops-the-boot"),
            pytest.param("Type=oneshot", id="oneshot"),
            pytest.param(f"ExecStart={SCRIPT}", id="script"),
        ],
    )
    def test_the_unit_runs_before_the_network_and_every_service(self, line: str) -> None:
        assert line in lines(UNIT_PATH)

    def test_the_stages_target_requires_the_unit_and_comes_after_it(self) -> None:
        assert {f"Requires={UNIT} sysinit.target", f"After={UNIT} sysinit.target networking.service"} <= set(
            lines(TARGET)
        )

    def test_the_stages_target_starts_the_network_and_the_units_only(self) -> None:
        assert [line for line in lines(TARGET) if line.startswith("Wants=")] == [
            "Wants=networking.service postgresql.service"
        ]

    def test_services_that_wait_are_started_by_the_file_and_by_nothing_else(self) -> None:
        assert [line for line in lines(TARGET, SYSTEM) if line.startswith("Wants=")] == [
            "Wants=networking.service stagegbo-services.path"
        ]
        assert {f"PathExists={RELEASE}", "Unit=stagegbo-services.target"} <= set(lines(HOLD_PATH, SYSTEM))
        assert "Wants=botserver.service botui.service" in lines(HOLD_TARGET, SYSTEM)

    def test_in_a_full_boot_every_service_waits_for_the_unit(self) -> None:
        assert {f"Requires={UNIT}", f"After={UNIT}"} <= set(lines(DROP_IN, replace(TABLES, boot="full")))

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
    @pytest.mark.parametrize(
        "container",
        [
            pytest.param(TABLES, id="units"),
            pytest.param(replace(TABLES, boot="full"), id="full"),
            pytest.param(SYSTEM, id="waits"),
        ],
    )
    def test_systemd_finds_nothing_to_complain_about(self, tmp_path: Path, container: ContainerSettings) -> None:
        for file in guest_files(container, SETTINGS):
            path = tmp_path / file.path.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.content)
            path.chmod(file.mode)
        package = tmp_path / "usr/lib/systemd/system"
        package.mkdir(parents=True)
        for name in ("sysinit", "shutdown", "local-fs", "network-pre", "umount", "rescue"):
            (package / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        for name in ("rescue", "networking", "postgresql", "botserver", "botui", "systemd-networkd"):
            (package / f"{name}.service").write_text(f"[Service]\nExecStart={SCRIPT}\n")
        units = ["sysinit.target" if container.boot == "full" else "default.target", UNIT]
        units += [Path(path).name for path in (HOLD_PATH, HOLD_TARGET) if path in placed(container)]
        command = ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", *units]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "--root" in found.stderr and "not supported" in found.stderr:
            pytest.skip("this systemd can't verify units below another root")
        assert (found.returncode, found.stderr) == (0, "")


def can_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


class Clone:
    """A root folder of its own, with the host's programs, in which the script is run as a clone's boot runs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("usr", "dev", "etc/network", "opt/gbo", "mnt", "proc/1", FOLDER.lstrip("/")):
            (root / folder).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
            elif Path("/", name).is_dir():
                (root / name).mkdir()
        (root / "etc/resolv.conf").write_text("nameserver 8.8.8.8\n")
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        self.path(ENVIRON).write_bytes(b"container=lxc\0TERM=linux\0")

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def fill(self, path: str, *files: str) -> Path:
        folder = self.path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("data")
        return folder

    def boot(
        self, *, wipe: tuple[str, ...] = (), logs: tuple[str, ...] = (), mounts: str = "", settings: Settings = SETTINGS
    ) -> subprocess.CompletedProcess[str]:
        """Run the script; `mounts` is shell run before it, in the mount namespace, with the root as `$1`."""
        container = replace(TABLES, wipe=wipe, logs=logs)
        settings = replace(settings, containers={**settings.containers, "tables": container})
        self.path(SCRIPT).write_text(placed(container, settings)[SCRIPT].content)
        self.path(SCRIPT).chmod(0o755)
        inside = f"""set -eu
for name in usr dev bin sbin lib lib64; do
    [ -L "$1/$name" ] || [ ! -d "$1/$name" ] || mount --bind "/$name" "$1/$name"
done
{mounts}
exec chroot "$1" {SCRIPT}
"""
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, "sh", str(self.root)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def tell(self, place: str) -> None:
        """What Incus puts into the environment of the first process."""
        self.path(ENVIRON).write_bytes(f"container=lxc\0{PLACE}={place}\0TERM=linux\0".encode())

    @property
    def stamp(self) -> str | None:
        """Without its last line, which says whose it is."""
        return None if self.place is None else self.path(STAMP).read_text().rpartition("placed ")[0]

    @property
    def place(self) -> str | None:
        path = self.path(STAMP)
        return path.read_text().splitlines()[-1].removeprefix("placed ") if path.exists() else None

    @property
    def log(self) -> str:
        return self.path(f"{FOLDER}/prepare.log").read_text()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    if not can_unshare():
        pytest.skip("needs root and mount namespaces")
    return Clone(tmp_path / "root")


DATA = "/opt/gbo/data/minio"
LOGS = "/opt/gbo/logs"

NAMES = [
    pytest.param("plain", id="plain"),
    pytest.param(".hidden", id="dot-file"),
    pytest.param(".minio.sys/format.json", id="dot-folder"),
    pytest.param("with space", id="space"),
    pytest.param("with\nnewline", id="newline"),
    pytest.param("\n", id="only-a-newline"),
    pytest.param("-delete", id="leading-dash"),
    pytest.param("--", id="two-dashes"),
    pytest.param("*", id="star"),
    pytest.param("$(touch x)`touch y`", id="shell"),
    pytest.param("'\"\\", id="quotes"),
    pytest.param(os.fsdecode(b"\xff\xfe"), id="not-utf-8"),
    pytest.param("/".join(["deep"] * 100), id="deep"),
]


class TestEmptying:
    """Wiped folders: nothing below them stays; they themselves do."""

    @pytest.mark.parametrize("name", NAMES)
    def test_takes_everything_whatever_its_name(self, clone: Clone, name: str) -> None:
        folder = clone.fill(DATA, name, "other")
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert clone.stamp == f"emptied {DATA}\n"

    def test_takes_ten_thousand_files(self, clone: Clone) -> None:
        folder = clone.fill(DATA)
        for number in range(10_000):
            (folder / f"{number}.part").touch()
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(folder.iterdir()) == []

    def test_takes_sockets_pipes_and_links_that_lead_nowhere(self, clone: Clone) -> None:
        folder = clone.fill(DATA)
        os.mkfifo(folder / "pipe")
        (folder / "link").symlink_to("/no/such/file")
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(folder.iterdir()) == []

    def test_takes_what_may_not_be_written(self, clone: Clone) -> None:
        folder = clone.fill(DATA, "closed/file")
        (folder / "closed/file").chmod(0o000)
        (folder / "closed").chmod(0o000)
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(folder.iterdir()) == []

    def test_keeps_the_folder_with_its_owner_and_mode(self, clone: Clone) -> None:
        folder = clone.fill(DATA, "file")
        os.chown(folder, 106, 112)
        folder.chmod(0o2750)
        clone.boot(wipe=(DATA,))
        found = folder.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (106, 112, 0o2750)

    def test_keeps_what_links_lead_to(self, clone: Clone) -> None:
        outside = clone.fill("/srv", "precious", "folder/precious")
        folder = clone.fill(DATA)
        (folder / "file").symlink_to("/srv/precious")
        (folder / "folder").symlink_to("/srv/folder")
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert (outside / "precious").read_text() == (outside / "folder/precious").read_text() == "data"

    def test_keeps_what_is_beside(self, clone: Clone) -> None:
        clone.fill("/opt/gbo/data/minio-old", "kept")
        clone.fill(DATA, "file")
        clone.boot(wipe=(DATA,))
        assert clone.path("/opt/gbo/data/minio-old/kept").exists()

    def test_reaches_through_a_link_to_the_folder(self, clone: Clone) -> None:
        real = clone.fill("/srv/minio", "file")
        clone.fill("/opt/gbo/data")
        clone.path(DATA).symlink_to("/srv/minio")
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(real.iterdir()) == []
        assert clone.path(DATA).is_symlink()

    @pytest.mark.parametrize(
        "path", ["/opt/gbo/my data", "/opt/gbo/it's", "/opt/gbo/-x", "/opt/gbo/$HOME", r"/opt/gbo/back\nslash"]
    )
    def test_takes_the_setting_as_it_is(self, clone: Clone, path: str) -> None:
        folder = clone.fill(path, "file")
        assert clone.boot(wipe=(path,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert clone.stamp == f"emptied {path}\n"

    def test_says_of_a_folder_that_is_not_there_that_it_is_absent(self, clone: Clone) -> None:
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert clone.stamp == f"absent {DATA}\n"

    def test_says_of_a_link_that_leads_nowhere_that_it_is_absent(self, clone: Clone) -> None:
        clone.fill("/opt/gbo/data")
        clone.path(DATA).symlink_to("/srv/minio")
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert clone.stamp == f"absent {DATA}\n"


class TestClearing:
    """Log folders: files go, folders stay as they are, since services fail without them."""

    @pytest.mark.parametrize("name", NAMES)
    def test_takes_every_file_whatever_its_name(self, clone: Clone, name: str) -> None:
        folder = clone.fill(LOGS, name, "postgresql/15.log")
        assert clone.boot(logs=(LOGS,)).returncode == 0
        assert [path for path in folder.rglob("*") if not path.is_dir()] == []
        assert (folder / "postgresql").is_dir()
        assert clone.stamp == f"cleared {LOGS}\n"

    def test_keeps_folders_with_owners_and_modes(self, clone: Clone) -> None:
        folder = clone.fill(LOGS, "postgresql/15.log", "valkey/a/b.log")
        for number, path in enumerate(("postgresql", "valkey", "valkey/a")):
            os.chown(folder / path, 106 + number, 112 + number)
            (folder / path).chmod(0o2700 + number)

        def look() -> list[tuple[str, int, int, int]]:
            found = sorted(path for path in folder.rglob("*") if path.is_dir())
            return [(str(path), (s := path.stat()).st_uid, s.st_gid, s.st_mode) for path in found]

        before = look()
        assert clone.boot(logs=(LOGS,)).returncode == 0
        assert look() == before
        assert len(before) == 3

    def test_takes_links_and_keeps_what_they_lead_to(self, clone: Clone) -> None:
        outside = clone.fill("/srv", "precious", "folder/precious")
        folder = clone.fill(LOGS)
        (folder / "file.log").symlink_to("/srv/precious")
        (folder / "folder").symlink_to("/srv/folder")
        assert clone.boot(logs=(LOGS,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert (outside / "precious").exists()
        assert (outside / "folder/precious").exists()

    def test_reaches_through_a_link_to_the_folder(self, clone: Clone) -> None:
        real = clone.fill("/var/log/gbo", "postgresql/15.log")
        clone.path(LOGS).symlink_to("/var/log/gbo")
        assert clone.boot(logs=(LOGS,)).returncode == 0
        assert list(real.rglob("*")) == [real / "postgresql"]

    def test_says_of_a_folder_that_is_not_there_that_it_is_absent(self, clone: Clone) -> None:
        assert clone.boot(logs=(LOGS,)).returncode == 0
        assert clone.stamp == f"absent {LOGS}\n"


class TestFailure:
    """What can't be cleared ends the script with an error and without a stamp: the boot stops, the next tries again."""

    READ_ONLY = 'mount --bind "$1{0}" "$1{0}"; mount -o remount,ro,bind "$1{0}"'

    @pytest.mark.parametrize(
        "mounts",
        [
            pytest.param(READ_ONLY.format(DATA), id="read-only"),
            pytest.param(f'mkdir "$1{DATA}/busy"; mount -t tmpfs none "$1{DATA}/busy"', id="busy"),
        ],
    )
    def test_of_emptying(self, clone: Clone, mounts: str) -> None:
        clone.fill(DATA, "file")
        assert clone.boot(wipe=(DATA,), mounts=mounts).returncode != 0
        assert clone.stamp is None
        assert DATA in clone.log

    def test_of_clearing(self, clone: Clone) -> None:
        clone.fill(LOGS, "postgresql/15.log")
        assert clone.boot(logs=(LOGS,), mounts=self.READ_ONLY.format(LOGS)).returncode != 0
        assert clone.stamp is None
        assert LOGS in clone.log

    @pytest.mark.parametrize("setting", ["wipe", "logs"])
    def test_of_a_setting_that_names_a_file(self, clone: Clone, setting: str) -> None:
        clone.fill("/opt/gbo/data", "dump.rdb")
        path = "/opt/gbo/data/dump.rdb"
        result = clone.boot(wipe=(path,)) if setting == "wipe" else clone.boot(logs=(path,))
        assert result.returncode != 0
        assert clone.stamp is None
        assert clone.log == f"not a folder: {path}\n"

    def test_of_one_folder_after_another_was_done(self, clone: Clone) -> None:
        clone.fill("/opt/gbo/work", "file")
        clone.fill(DATA, "file")
        assert clone.boot(wipe=("/opt/gbo/work", DATA), mounts=self.READ_ONLY.format(DATA)).returncode != 0
        assert clone.stamp is None

    def test_is_made_good_by_the_next_boot(self, clone: Clone) -> None:
        folder = clone.fill(DATA, "file")
        clone.boot(wipe=(DATA,), mounts=self.READ_ONLY.format(DATA))
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert clone.stamp == f"emptied {DATA}\n"

    @pytest.mark.parametrize("path", ["/etc/hosts", "/etc/resolv.conf"])
    def test_of_a_file_that_the_network_needs(self, clone: Clone, path: str) -> None:
        assert clone.boot(mounts=self.READ_ONLY.format(path)).returncode != 0
        assert clone.stamp is None

    def test_of_a_folder_that_the_script_lives_in(self, clone: Clone) -> None:
        """Without a place for its stamp nothing counts as done."""
        clone.fill(DATA, "file")
        assert clone.boot(wipe=(DATA,), mounts=self.READ_ONLY.format(FOLDER)).returncode != 0


class TestRest:
    def test_the_stamp_tells_of_every_folder(self, clone: Clone) -> None:
        clone.fill(DATA, "file")
        clone.fill(LOGS, "file")
        assert clone.boot(wipe=(DATA, "/opt/gbo/work"), logs=(LOGS,)).returncode == 0
        assert clone.stamp == f"emptied {DATA}\nabsent /opt/gbo/work\ncleared {LOGS}\n"

    def test_a_second_run_ends_the_same(self, clone: Clone) -> None:
        clone.fill(DATA, "file")
        clone.boot(wipe=(DATA,), logs=(LOGS,))
        first = clone.stamp
        assert clone.boot(wipe=(DATA,), logs=(LOGS,)).returncode == 0
        assert clone.stamp == first
        left = sorted(path.name for path in clone.path(FOLDER).iterdir())
        assert left == ["network", "prepare", "prepare.log", "prepared", "twins"]

    def test_nothing_to_clear_is_stamped_too(self, clone: Clone) -> None:
        assert clone.boot().returncode == 0
        assert clone.stamp == ""

    def test_names_are_looked_up_at_the_stage(self, clone: Clone) -> None:
        clone.boot()
        assert clone.path("/etc/resolv.conf").read_text() == "nameserver 10.0.3.1\n"

    def test_a_resolver_of_the_containers_own_is_left_alone(self, clone: Clone) -> None:
        clone.path("/etc/resolv.conf").unlink()
        clone.path("/etc/resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
        assert clone.boot().returncode == 0
        assert clone.path("/etc/resolv.conf").is_symlink()

    def test_clones_know_each_other_by_name(self, clone: Clone) -> None:
        clone.boot()
        hosts = clone.path("/etc/hosts").read_text().splitlines()
        assert hosts[0] == "127.0.0.1 localhost"
        assert {"10.0.3.10 system", "10.0.3.11 tables", "10.0.3.15 llm"} <= set(hosts)

    def test_the_twins_script_is_placed_whole(self, clone: Clone) -> None:
        clone.boot()
        path = clone.path(TWINS)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert path.read_text().startswith("#!/bin/sh\n")
        assert path.read_text().endswith("\nEND\n")
        assert subprocess.run(["sh", "-n", path], check=False).returncode == 0

    @pytest.mark.parametrize("settings", [SETTINGS, without_twins()], ids=["twins", "no-twins"])
    def test_the_network_script_says_what_the_interfaces_say(self, clone: Clone, settings: Settings) -> None:
        clone.boot(settings=settings)
        script = clone.path(NETWORK).read_text()
        assert subprocess.run(["sh", "-n", clone.path(NETWORK)], check=False).returncode == 0
        assert stat.S_IMODE(clone.path(NETWORK).stat().st_mode) == 0o755
        assert {"address replace 10.0.3.11/24 broadcast + dev eth0", "link set lo up"} <= set(script.splitlines())
        assert "route replace default via 10.0.3.1 dev eth0 onlink" in script
        ups = [line.partition(" up ")[2] for line in clone.path(INTERFACES).read_text().splitlines() if " up " in line]
        assert script.splitlines()[-len(ups) :] == ups

    @pytest.mark.parametrize(("hook", "ifupdown"), [("resolved", False), ("a hook", True)])
    def test_hooks_of_ifupdown_are_left_to_it(self, clone: Clone, hook: str, ifupdown: bool) -> None:
        clone.boot()
        clone.fill("/etc/network/if-up.d", hook)
        clone.fill("/etc/network/if-pre-up.d")
        root, programs = clone.root, clone.fill("/programs")
        for name in ("ip", "ifup", "bash"):
            (programs / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
            (programs / name).chmod(0o755)
        script = clone.path(NETWORK).read_text().replace("export PATH=", f"export PATH={programs}:")
        script = script.replace("/etc/network", str(root / "etc/network")).replace(TWINS, "true")
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=10, check=True)
        first = "ifup -a --read-environment" if ifupdown else "ip -batch -"
        assert done.stdout.splitlines()[0] == first
        assert (len(done.stdout.splitlines()) == 1) == ifupdown

    def test_without_twins_there_is_no_twins_script(self, clone: Clone) -> None:
        assert clone.boot(settings=without_twins()).returncode == 0
        assert not clone.path(TWINS).exists()


class TestCopies:
    """A copy of a clone that was booted has its files, and is told its own place."""

    ELSEWHERE = replace(
        SETTINGS,
        network=replace(SETTINGS.network, address=IPv4Interface("10.0.4.1/24")),
        containers={
            name: replace(each, address=IPv4Address(f"10.0.4.{each.address.packed[3]}"))
            for name, each in SETTINGS.containers.items()
        },
    )

    def place(self) -> str:
        return variable(self.ELSEWHERE.containers["tables"], self.ELSEWHERE)

    def test_a_later_boot_of_the_same_clone_keeps_what_it_has(self, clone: Clone) -> None:
        for place in ("", self.place()):
            if place:
                clone.tell(place)
            assert clone.boot(wipe=(DATA,)).returncode == 0
            folder = clone.fill(DATA, "made since")
            assert clone.boot(wipe=(DATA,)).returncode == 0
            assert [path.name for path in folder.iterdir()] == ["made since"]

    def test_the_first_boot_of_a_copy_clears_again_and_says_whose_it_was(self, clone: Clone) -> None:
        assert clone.boot(wipe=(DATA,), logs=(LOGS,)).returncode == 0
        assert clone.place == ""
        folder = clone.fill(DATA, "of the golden clone")
        clone.tell(self.place())
        assert clone.boot(wipe=(DATA,), logs=(LOGS,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert clone.stamp == f"emptied {DATA}\nabsent {LOGS}\n"
        assert clone.place == identity(self.place())
        assert re.fullmatch("[0-9a-f]{16}", identity(self.place()))

    def test_it_has_addresses_of_its_own_and_none_of_the_golden_clones(self, clone: Clone) -> None:
        clone.boot()
        clone.tell(self.place())
        clone.boot()
        for path in (INTERFACES, NETWORK, TWINS, "/etc/hosts", "/etc/resolv.conf"):
            text = clone.path(path).read_text()
            assert "10.0.3." not in text
            assert "10.0.4." in text
        assert "address 10.0.4.11\n" in clone.path(INTERFACES).read_text()
        assert "10.0.4.15 llm" in clone.path("/etc/hosts").read_text().splitlines()

    def test_one_whose_place_can_not_be_read_does_not_boot(self, clone: Clone) -> None:
        clone.boot()
        clone.path(ENVIRON).unlink()
        assert clone.boot(wipe=(DATA,)).returncode != 0

    def test_one_whose_place_is_broken_does_not_boot(self, clone: Clone) -> None:
        clone.boot()
        clone.tell("0123456789abcdef:bm90IGd6aXA=")
        assert clone.boot().returncode != 0
        assert clone.place is None

    def test_equal_settings_make_equal_places(self) -> None:
        assert self.place() == self.place() != variable(TABLES, SETTINGS)
        assert len(self.place()) < 2000
