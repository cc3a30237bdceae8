"""What makes a clone safe before anything in it runs: the files placed in it, and the script, run for real."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import time
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_stagegbo.guest import (
    STAMP,
    boot_environment,
    boot_file,
    boot_folder,
    identity,
    release,
    shown_stamp,
    variable,
)
from pytest_stagegbo.guest.clearing import MOUNTS
from pytest_stagegbo.guest.place import INTERFACES, NETWORK, PLACE, TWINS
from pytest_stagegbo.guest.removal import ASIDE
from pytest_stagegbo.guest.units import BOOT, FOLDER, PREPARE, UNIT_FOLDER
from pytest_stagegbo.settings import ContainerSettings, Settings

SETTINGS = Settings()
SYSTEM, TABLES = SETTINGS.containers["system"], SETTINGS.containers["tables"]
ENVIRON = "/proc/1/environ"
OWN = "0123456789abcdef"
FOLDER_OF_BOOT = boot_folder(OWN)
OWN_BOOT = f"{FOLDER_OF_BOOT}/{BOOT}"
"""A clone's identity."""


def script(container: ContainerSettings = TABLES, settings: Settings = SETTINGS) -> str:
    return boot_file(container, settings).content


def without_twins() -> Settings:
    return replace(SETTINGS, network=replace(SETTINGS.network, twins=False))


class TestFile:
    def test_there_is_one_and_it_can_be_run(self) -> None:
        file = boot_file(TABLES, SETTINGS)
        assert (file.name, file.mode) == ("boot", 0o755)
        assert file.content.startswith("#!/bin/sh\n")

    def test_equal_settings_make_equal_files(self) -> None:
        assert boot_file(TABLES, SETTINGS) == boot_file(TABLES, Settings())

    @pytest.mark.parametrize("name", SETTINGS.containers)
    def test_it_names_no_address_of_production_but_for_twins(self, name: str) -> None:
        """What it names is the subnet, as a whole and to keep out of it."""
        found = script(SETTINGS.containers[name], without_twins())
        assert "10.0.2." not in found.replace("unreachable 10.0.2.0/24", "")

    def test_later_boots_are_confined_unless_the_settings_want_them_whole(self) -> None:
        assert boot_environment(TABLES, "/own") == {
            "environment.SYSTEMD_UNIT_PATH": "/run/systemd/generator",
            "environment.SYSTEMD_GENERATOR_PATH": "/own",
            "environment.SYSTEMD_ENVIRONMENT_GENERATOR_PATH": "/own/none",
        }
        assert boot_environment(replace(TABLES, boot="full"), "/own") == {}


class TestTwins:
    """Inside the stage, production's addresses belong to the clones."""

    def script(self, container: ContainerSettings = TABLES, settings: Settings = SETTINGS) -> list[str]:
        return script(container, settings).splitlines()

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
        assert TWINS not in script(TABLES, without_twins())


def can_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


PROGRAMS = {"systemctl": f"echo {UNIT_FOLDER}", "systemd-tmpfiles": "exit 65", "hostname": 'echo "$1" >/etc/named'}


class Clone:
    """A root folder of its own, with the host's programs, in which the script is run as a clone's boot runs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folders = (
            "usr",
            "dev",
            "etc/network",
            "opt/gbo",
            "mnt",
            "proc/1",
            "proc/self",
            "proc/sys/kernel/random",
            "run",
        )
        for folder in (*folders, FOLDER.lstrip("/"), "units", "programs"):
            (root / folder).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
            elif Path("/", name).is_dir():
                (root / name).mkdir()
        (root / "etc/resolv.conf").write_text("nameserver 8.8.8.8\n")
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        self.path("/proc/sys/kernel/random/uuid").write_text("01234567-89ab-cdef-0123-456789abcdef\n")
        self.tell(f"{OWN}:")
        for name, line in PROGRAMS.items():
            self.program(name, line)

    def program(self, name: str, line: str) -> None:
        """One that the script finds before the host's: nothing may reach the host's own systemd."""
        file = self.path(f"/programs/{name}")
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)

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
        self,
        *,
        wipe: tuple[str, ...] = (),
        logs: tuple[str, ...] = (),
        mounts: str = "",
        settings: Settings = SETTINGS,
        word: str = "prepare",
        **more: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run the script with a word; `mounts` is shell run before it, in the mount namespace, with the root as `$1`.

        Args:
            more: Further settings of the container.
        """
        container = replace(TABLES, **{"system_logs": False, "data": "", "wipe": wipe, "logs": logs, **more})
        settings = replace(settings, containers={**settings.containers, "tables": container})
        path = self.path(OWN_BOOT)
        path.parent.mkdir(exist_ok=True)
        path.write_text(script(container, settings).replace("export LC_ALL=C PATH=", "export LC_ALL=C PATH=/programs:"))
        path.chmod(0o755)
        inside = f"""set -eu
for name in usr dev bin sbin lib lib64; do
    [ -L "$1/$name" ] || [ ! -d "$1/$name" ] || mount --bind "/$name" "$1/$name"
done
{mounts}
sed "s# $1/# /#g" /proc/self/mountinfo >"$1/proc/self/mountinfo"
exec chroot "$1" {OWN_BOOT} {word}
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

    def units(self, **more: Any) -> dict[str, str]:
        """What the script makes as a generator: each unit's text, or where its link leads to."""
        done = self.boot(word="/units /units /units", **more)
        assert (done.returncode, done.stderr) == (0, "")
        files = [file for file in self.path("/units").rglob("*") if not file.is_dir() or file.is_symlink()]
        return {
            str(file.relative_to(self.path("/units"))): str(file.readlink()) if file.is_symlink() else file.read_text()
            for file in files
        }

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
            pytest.param(
                f'mkdir "$1{DATA}/a"; mount -t tmpfs none "$1{DATA}/a"; ' + READ_ONLY.format(DATA), id="mounts"
            ),
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
        assert left == ["network", "prepare.log", "prepared", "twins"]

    def test_nothing_to_clear_is_stamped_too(self, clone: Clone) -> None:
        assert clone.boot().returncode == 0
        assert clone.stamp == ""

    def test_a_clone_of_a_container_with_another_name_has_its_own(self, clone: Clone) -> None:
        """The manager has set the name of its source by then."""
        clone.path("/etc/hostname").write_text("prod-tables\n")
        assert clone.boot().returncode == 0
        assert clone.path("/etc/hostname").read_text() == clone.path("/etc/named").read_text() == "tables\n"

    def test_a_clone_without_a_list_of_hosts_gets_one(self, clone: Clone) -> None:
        clone.path("/etc/hosts").unlink()
        assert clone.boot().returncode == 0
        assert "127.0.0.1 localhost\n" in clone.path("/etc/hosts").read_text()

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

    def test_no_hook_of_ifupdown_is_run(self, clone: Clone) -> None:
        """They are production's."""
        clone.boot()
        assert "if-up.d" not in clone.path(NETWORK).read_text()

    def test_without_twins_there_is_no_twins_script(self, clone: Clone) -> None:
        assert clone.boot(settings=without_twins()).returncode == 0
        assert not clone.path(TWINS).exists()


class TestCopies:
    """A copy of a clone that was booted has its files, and gets its own network configuration."""

    ELSEWHERE = replace(
        SETTINGS,
        network=replace(SETTINGS.network, address=IPv4Interface("10.0.4.1/24")),
        containers={
            name: replace(each, address=IPv4Address(f"10.0.4.{each.address.packed[3]}"))
            for name, each in SETTINGS.containers.items()
        },
    )

    def place(self) -> str:
        return variable(self.ELSEWHERE.containers["tables"], self.ELSEWHERE, golden=True)

    def test_a_later_boot_of_the_same_clone_keeps_what_it_has(self, clone: Clone) -> None:
        for place in (variable(TABLES, SETTINGS, golden=False), self.place()):
            clone.tell(place)
            assert clone.boot(wipe=(DATA,)).returncode == 0
            folder = clone.fill(DATA, "made since")
            assert clone.boot(wipe=(DATA,)).returncode == 0
            assert [path.name for path in folder.iterdir()] == ["made since"]

    def test_the_first_boot_of_a_copy_clears_again_and_says_whose_it_was(self, clone: Clone) -> None:
        assert clone.boot(wipe=(DATA,), logs=(LOGS,)).returncode == 0
        assert clone.place == OWN
        folder = clone.fill(DATA, "of the golden clone")
        place = self.place()
        clone.tell(place)
        assert clone.boot(wipe=(DATA,), logs=(LOGS,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert clone.stamp == f"emptied {DATA}\nabsent {LOGS}\n"
        assert clone.place == identity(place)
        assert re.fullmatch("[0-9a-f]{16}", identity(place))

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
        clone.tell("fedcba9876543210:bm90IGd6aXA=")
        assert clone.boot().returncode != 0
        assert clone.place is None

    def test_every_copy_has_an_identity_of_its_own(self) -> None:
        assert self.place() != self.place()
        assert self.place().partition(":")[2] == self.place().partition(":")[2] != ""
        assert len(self.place()) < 2000

    def test_a_copy_of_production_has_an_identity_and_no_place(self) -> None:
        assert re.fullmatch("[0-9a-f]{16}:", variable(TABLES, SETTINGS, golden=False))

    def test_one_without_an_identity_does_not_boot(self, clone: Clone) -> None:
        clone.path(ENVIRON).write_bytes(b"container=lxc\0")
        assert clone.boot().returncode != 0
        assert clone.stamp is None


class TestSourceThatWasAClone:
    """Promoted, or restored from a copy: what a clone leaves is in it."""

    @pytest.mark.parametrize("line", ["placed ", "placed 0000000000000000"])
    def test_its_stamp_is_not_the_clones(self, clone: Clone, line: str) -> None:
        folder = clone.fill(DATA, "of production")
        clone.path(STAMP).write_text(f"emptied {DATA}\n{line}\n")
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert clone.place == OWN

    def test_its_word_that_services_may_start_is_not_the_clones(self, clone: Clone) -> None:
        """Its own may be there before its boot has come far."""
        old, own = clone.path(release(FOLDER_OF_BOOT, "0000000000000000")), clone.path(release(FOLDER_OF_BOOT, OWN))
        old.parent.mkdir()
        old.touch()
        own.touch()
        assert clone.boot().returncode == 0
        assert not old.exists()
        assert own.exists()
        assert f"PathExists={release(FOLDER_OF_BOOT, OWN)}" in clone.units(needs=("vault",))["stagegbo-services.path"]

    def test_no_folder_of_generators_that_its_source_had_as_a_clone_stays(self, clone: Clone) -> None:
        old = clone.path(boot_folder("0000000000000000"))
        old.mkdir()
        (old / "boot").touch()
        assert clone.boot().returncode == 0
        assert not old.exists()
        assert clone.path(OWN_BOOT).exists()

    def test_the_word_goes_to_a_folder_that_is_there_before_the_boot(self) -> None:
        assert Path(release(FOLDER_OF_BOOT, OWN)).parent == Path(FOLDER_OF_BOOT)

    def test_the_copy_of_its_database_is_not_the_clones(self, clone: Clone) -> None:
        data = "/opt/gbo/data/pgdata"
        clone.fill(data, "now")
        for name in (".stagegbo-golden", ".stagegbo-next", ".stagegbo-spare", ".stagegbo-spare.new"):
            clone.fill(data + name, "then")
        clone.path(data + ".stagegbo-golden.clean").touch()
        assert clone.boot(data=data).returncode == 0
        left = [file.name for file in clone.path("/opt/gbo/data").rglob("*") if file.is_file()]
        assert "then" not in left
        assert "pgdata.stagegbo-golden.clean" not in left


class TestMounts:
    """What is mounted below a folder is somebody else's: it is not entered, and said."""

    def mount(self, at: str) -> str:
        return f'at="$1"{shlex.quote(at)}; mkdir -p "$at"; mount --bind "$1/srv" "$at"'

    @pytest.mark.parametrize("name", ["m", "with space", "*", "deep/er/m"])
    @pytest.mark.parametrize(("setting", "folder"), [("wipe", DATA), ("logs", LOGS)])
    def test_a_mount_below_a_folder_is_left_alone(self, clone: Clone, setting: str, folder: str, name: str) -> None:
        kept = clone.fill("/srv", "kept", "folder/kept")
        clone.fill(folder, "file", "deep/file", "other/file")
        done = clone.boot(mounts=self.mount(f"{folder}/{name}"), **{setting: (folder,)})  # type: ignore[arg-type]
        assert done.returncode == 0, clone.log
        assert sorted(file.name for file in kept.rglob("*")) == ["folder", "kept", "kept"]
        left = [file for file in clone.path(folder).rglob("*") if not file.is_dir()]
        assert left == []
        assert f"not entered, since it is a mount: {folder}/{name}\n" in (clone.stamp or "")

    @pytest.mark.parametrize("name", ["m", "with space", "it's", "deep/er/m"])
    def test_each_boot_tells_resets_of_mounts_in_folders_to_wipe(self, clone: Clone, name: str) -> None:
        clone.fill("/srv", "kept")
        clone.fill(DATA, "file")
        for _ in range(2):
            assert clone.boot(mounts=self.mount(f"{DATA}/{name}"), wipe=(DATA,)).returncode == 0
            script = clone.path(MOUNTS).read_text()
            clone.path(MOUNTS).unlink()  # as at a boot, whose /run is empty
        command = ["sh", "-c", f"{script}; printf '%s\\n' \"$@\""]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert words[:4] == ["-path", f"{DATA}/{name}", "-prune", "-o"]
        assert [word for word in words[4:] if word.startswith("/")] == (
            [f"{DATA}/deep/er", f"{DATA}/deep"] if name == "deep/er/m" else []
        )

    def test_a_boot_without_mounts_tells_nothing(self, clone: Clone) -> None:
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert not clone.path(MOUNTS).exists()

    def test_a_folder_that_is_a_mount_is_emptied(self, clone: Clone) -> None:
        data = clone.fill("/srv", "file")
        clone.fill(DATA)
        assert clone.boot(mounts=self.mount(DATA), wipe=(DATA,)).returncode == 0
        assert list(data.iterdir()) == []


class TestVeryManyFiles:
    def test_the_first_boot_waits_until_they_are_deleted(self, clone: Clone) -> None:
        """Its stamp is the proof that they are gone."""
        clone.program("timeout", "exit 124")
        clone.program("nice", "exit 0")
        folder = clone.fill(DATA, "file", "a/file", "b/c/file")
        assert clone.boot(wipe=(DATA,)).returncode == 0
        assert list(folder.iterdir()) == []
        assert not clone.path(DATA + ASIDE).exists()
        assert clone.stamp == f"emptied {DATA}\n"

    @pytest.mark.parametrize("boot", ["units", "full"])
    def test_the_first_boot_deletes_what_the_source_has_moved_aside(self, clone: Clone, boot: str) -> None:
        clone.program("nice", "exit 0")
        clone.fill(DATA + ASIDE, "a/file")
        assert clone.boot(wipe=(DATA,), boot=boot).returncode == 0
        assert not clone.path(DATA + ASIDE).exists()

    def test_and_fails_if_it_can_not(self, clone: Clone) -> None:
        clone.program("rm", f'case "$*" in *{ASIDE}*) exit 1 ;; esac; exec /usr/bin/rm "$@"')
        clone.fill(DATA + ASIDE, "a/file")
        assert clone.boot(wipe=(DATA,)).returncode == 1
        assert clone.stamp is None

    def test_a_later_boot_deletes_what_a_reset_moved_aside(self, clone: Clone) -> None:
        clone.program("nice", 'shift 2; exec "$@" >/deleted')
        assert clone.boot(wipe=(DATA,)).returncode == 0
        clone.fill(DATA + ASIDE, "a/file")
        assert clone.boot(wipe=(DATA,)).returncode == 0
        deadline = time.monotonic() + 10
        while clone.path(DATA + ASIDE).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not clone.path(DATA + ASIDE).exists()


class TestSystemLogs:
    def test_files_stay_empty_and_journals_go(self, clone: Clone) -> None:
        folder = clone.fill("/var/log", "mail.log", "postgresql/15.log", "journal/0123/system.journal")
        (folder / "mail.log").chmod(0o640)
        assert clone.boot(system_logs=True).returncode == 0
        assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == [
            "mail.log",
            "postgresql/15.log",
        ]
        assert {file.stat().st_size for file in folder.rglob("*.log")} == {0}
        assert stat.S_IMODE((folder / "mail.log").stat().st_mode) == 0o640
        assert clone.stamp == "truncated /var/log\n"

    def test_they_stay_where_the_settings_say_so(self, clone: Clone) -> None:
        folder = clone.fill("/var/log", "mail.log")
        assert clone.boot(system_logs=False).returncode == 0
        assert (folder / "mail.log").read_text() == "data"


class TestConfined:
    def test_a_manager_that_looks_elsewhere_for_units_ends_the_boot(self, clone: Clone) -> None:
        """Production's /etc/systemd/system.conf can set `ManagerEnvironment=`."""
        clone.program("systemctl", "echo /etc/systemd/system")
        assert clone.boot().returncode != 0
        assert "/etc/systemd/system" in clone.log
        assert clone.stamp is None

    def test_files_of_the_journal_are_small_from_every_boot_on(self, clone: Clone) -> None:
        file = clone.path("/run/systemd/journald.conf.d/zz-stagegbo.conf")
        for _ in range(2):
            assert clone.boot().returncode == 0
            assert file.read_text() == "[Journal]\nSystemMaxFileSize=1M\nRuntimeMaxFileSize=1M\n"
            file.unlink()

    def test_a_line_of_tmpfiles_that_fails_does_not_end_the_boot(self, clone: Clone) -> None:
        assert "exit 65" in PROGRAMS["systemd-tmpfiles"]
        assert clone.boot().returncode == 0


FOLDERS = ("/etc/systemd/", "/run/systemd/system", "/usr/local/lib/", "/etc/init.d", "/etc/fstab", "/lib/systemd")


class Generator:
    """The script as PID 1's generator, in a folder for the clone's units, with folders of a test's own to look in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = root / "units"
        self.etc, self.package = root / "etc/systemd/system", root / "lib/systemd/system"
        self.generators = root / "lib/systemd/system-generators"
        for folder in (self.output, self.etc, self.package, self.generators, root / "etc/init.d"):
            folder.mkdir(parents=True)
        for name in ("sysinit.target", "systemd-journald.service", "cron.service", "dbus.socket"):
            (self.package / name).touch()

    def unit(self, path: Path, text: str = "[Service]\nExecStart=/bin/true\n") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, container: ContainerSettings) -> dict[str, str]:
        """Each unit's text, or where its link leads to."""
        text = script(container)
        for folder in FOLDERS:
            text = text.replace(folder, f"{self.root}{folder}").replace(f"/usr{self.root}/lib", f"{self.root}/usr/lib")
        text = re.sub(r"place=.*", f"place={OWN}:", text, count=1)
        done = subprocess.run(
            ["sh", "-c", text, OWN_BOOT, *[str(self.output)] * 3],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return {
            str(file.relative_to(self.output)): str(file.readlink()) if file.is_symlink() else file.read_text()
            for file in self.output.rglob("*")
            if file.is_symlink() or not file.is_dir()
        }


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    return Generator(tmp_path)


class TestUnits:
    """What a clone may start is one folder."""

    def test_it_holds_the_settings_units_ours_and_a_few_of_systemds(self, generator: Generator) -> None:
        generator.unit(generator.etc / "postgresql.service")
        generator.unit(generator.etc / "backup.service")
        found = generator.run(TABLES)
        assert set(found) == {
            *("default.target", PREPARE, "networking.service", "systemd-journald.service.d/stagegbo.conf"),
            *("sysinit.target", "systemd-journald.service", "dbus.socket", "postgresql.service", ".missing"),
        }
        assert found["postgresql.service"] == str(generator.etc / "postgresql.service")

    def test_the_target_starts_the_units_and_needs_the_first_boots_work(self, generator: Generator) -> None:
        found = generator.run(TABLES)["default.target"].splitlines()
        assert "Wants=systemd-journald.service networking.service postgresql.service" in found
        assert f"Requires={PREPARE} sysinit.target" in found

    @pytest.mark.parametrize(
        "line",
        [
            pytest.param("DefaultDependencies=no", id="early"),
            pytest.param("After=local-fs.target", id="after-mounts"),
            pytest.param("FailureAction=poweroff-force", id="failure-stops-the-boot"),
            pytest.param("Type=oneshot", id="oneshot"),
            pytest.param(f"ExecStart={OWN_BOOT} prepare", id="script"),
        ],
    )
    def test_the_first_boots_work_comes_before_the_network_and_every_service(
        self, generator: Generator, line: str
    ) -> None:
        assert line in generator.run(TABLES)[PREPARE].splitlines()

    def test_services_that_wait_are_started_by_the_clones_own_file(self, generator: Generator) -> None:
        found = generator.run(SYSTEM)
        assert "Wants=systemd-journald.service networking.service stagegbo-services.path" in found["default.target"]
        assert (
            f"PathExists={release(FOLDER_OF_BOOT, OWN)}\nUnit=stagegbo-services.target"
            in found["stagegbo-services.path"]
        )
        assert "Wants=botserver.service botui.service" in found["stagegbo-services.target"]

    @pytest.mark.parametrize("changes", [{"needs": ()}, {"hooks": ("mask.sh",)}], ids=["needs-nothing", "has-hooks"])
    def test_others_start_with_the_boot(self, generator: Generator, changes: dict[str, Any]) -> None:
        found = generator.run(replace(SYSTEM, **changes))
        assert "stagegbo-services.path" not in found
        assert "networking.service botserver.service botui.service" in found["default.target"]

    def test_drop_ins_of_a_unit_come_along_and_those_for_all_do_not(self, generator: Generator) -> None:
        generator.unit(generator.package / "postgresql.service")
        generator.unit(generator.package / "postgresql.service.d/limits.conf", "package")
        generator.unit(generator.etc / "postgresql.service.d/limits.conf", "administrator")
        generator.unit(generator.etc / "service.d/all.conf", "all")
        found = generator.run(TABLES)
        assert found["postgresql.service.d/limits.conf"] == str(generator.etc / "postgresql.service.d/limits.conf")
        assert not [name for name in found if name.startswith("service.d")]

    def test_another_name_of_a_unit_brings_the_unit(self, generator: Generator) -> None:
        generator.unit(generator.package / "postgres-server.service")
        (generator.etc / "postgresql.service").symlink_to(generator.package / "postgres-server.service")
        found = generator.run(TABLES)
        assert found["postgres-server.service"] == str(generator.package / "postgres-server.service")
        assert found["postgresql.service"] == str(generator.output / "postgres-server.service")

    def test_a_masked_unit_stays_masked(self, generator: Generator) -> None:
        (generator.etc / "postgresql.service").symlink_to("/dev/null")
        assert generator.run(TABLES)["postgresql.service"] == str(generator.etc / "postgresql.service")

    def test_an_instance_brings_its_template(self, generator: Generator) -> None:
        generator.unit(generator.package / "postgresql@.service")
        found = generator.run(replace(TABLES, units=("postgresql@15-main.service",)))
        assert found["postgresql@.service"] == str(generator.package / "postgresql@.service")

    def test_a_socket_brings_its_service(self, generator: Generator) -> None:
        for name in ("postgresql.socket", "postgresql.service"):
            generator.unit(generator.package / name)
        assert "postgresql.service" in generator.run(replace(TABLES, units=("postgresql.socket",)))

    def test_the_generator_of_the_units_own_package_is_run(self, generator: Generator) -> None:
        """Debian's has `postgresql.service` want an instance for each cluster."""
        generator.unit(generator.package / "postgresql.service")
        generator.unit(generator.package / "postgresql@.service")
        for name in ("postgresql-generator", "other-generator"):
            (generator.generators / name).write_text(f'#!/bin/sh\ntouch "$1/made-by-{name}"\n')
            (generator.generators / name).chmod(0o755)
        found = generator.run(TABLES)
        assert {"postgresql@.service", "made-by-postgresql-generator"} <= set(found)
        assert "made-by-other-generator" not in found

    def test_what_a_unit_requires_and_nobody_named_is_written_down(self, generator: Generator) -> None:
        generator.unit(generator.etc / "postgresql.service", "[Unit]\nRequires=sysinit.target helper.service\n")
        assert generator.run(TABLES)[".missing"] == (
            "postgresql.service requires helper.service, which is not in containers.tables.units\n"
        )

    def test_only_folders_of_the_containers_own_and_memory_are_mounted(self, generator: Generator) -> None:
        lines = ("# comment", "/srv /opt/data none bind 0 0", "server:/x /mnt nfs defaults 0 0", "t /tmp tmpfs size=1M")
        (generator.root / "etc/fstab").write_text("\n".join(lines) + "\n")
        fstab = generator.generators / "systemd-fstab-generator"
        fstab.write_text('#!/bin/sh\ncp "$SYSTEMD_FSTAB" "$1/mounted"\n')
        fstab.chmod(0o755)
        assert generator.run(TABLES)["mounted"] == "/srv /opt/data none bind 0 0\nt /tmp tmpfs size=1M 0 0\n"

    def test_a_full_boot_comes_after_one_that_starts_nothing_and_ends(self, generator: Generator) -> None:
        generator.unit(generator.etc / "postgresql.service")
        found = generator.run(replace(TABLES, boot="full"))
        assert "postgresql.service" not in found
        assert "Wants=" not in found["default.target"]
        assert "SuccessAction=poweroff-force" in found[PREPARE]


class TestShownStamp:
    """The stamp as it is on the console."""

    WHOLE = (
        "Welcome\r\n\r\nstagegbo-stamp 1a emptied /opt/x\r\nstagegbo-stamp 1a placed 1a\r\n"
        "stagegbo-stamp 1a lines 2\r\nlogin:"
    )

    def test_it_is_what_the_file_says(self) -> None:
        assert shown_stamp(self.WHOLE, "1a") == "emptied /opt/x\nplaced 1a\n"

    @pytest.mark.parametrize(
        ("console", "own"),
        [
            pytest.param("", "1a", id="nothing"),
            pytest.param(WHOLE, "2b", id="another's"),
            pytest.param(WHOLE, "", id="no identity"),
            pytest.param(WHOLE.partition("lines")[0], "1a", id="no end"),
            pytest.param(WHOLE.replace("stagegbo-stamp 1a emp", "emp"), "1a", id="beginning lost"),
            pytest.param(WHOLE.replace("2\r", "3\r"), "1a", id="a line lost"),
        ],
    )
    def test_nothing_where_it_is_not_whole(self, console: str, own: str) -> None:
        assert shown_stamp(console, own) == ""
