"""Which lab the environment means, and where it keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.lab.paths import Paths
from pytest_stagegbo.progress import Silent


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STAGEGBO_LAB_DIR", "STAGEGBO_LAB_NAME", "STAGEGBO_LAB_INCUS", "STAGEGBO_LAB_MEMBER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STAGEGBO_LAB_DIR", str(tmp_path / "state"))


def test_the_default_lab_has_the_older_long_term_version() -> None:
    assert Paths.find().version == "6.0"


def test_labs_of_two_versions_share_nothing_but_the_cache() -> None:
    old, new = Paths.find("6.0"), Paths.find("7.0")
    assert old.cache == new.cache
    assert old.netns != new.netns
    assert old.lab not in (new.lab, *new.lab.parents)


def test_the_default_namespace_has_a_plain_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAGEGBO_LAB_DIR")
    assert Paths.find("7.0").netns == "stagegbo-lab-7.0"


def test_labs_in_two_state_folders_do_not_share_a_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = Paths.find()
    monkeypatch.setenv("STAGEGBO_LAB_DIR", str(tmp_path / "elsewhere"))
    assert Paths.find().netns != here.netns


def test_a_named_lab_stands_beside_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEGBO_LAB_NAME", "second")
    assert Paths.find().netns.startswith("stagegbo-lab-second")
    assert Paths.find().host_root.name == "host-6.0"


def test_a_lab_that_was_made_keeps_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEGBO_LAB_NAME", "second")
    made = Paths.find("7.0")
    made.lab.mkdir(parents=True)
    made.marker.write_text('{"image": "x", "incus": "7.0"}')
    assert Paths.find() == made


@pytest.mark.skipif(os.geteuid() != 0, reason="the lab is root's")
def test_a_lab_is_not_brought_up_with_another_version_than_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEGBO_LAB_NAME", "second")
    made = Paths.find("7.0")
    made.lab.mkdir(parents=True)
    made.marker.write_text('{"image": "x", "incus": "7.0"}')
    with pytest.raises(LabError, match=r"the lab second has Incus 7\.0, not 6\.0"):
        Lab.find("6.0").up(Silent())


def test_a_version_that_no_suite_carries_is_refused() -> None:
    with pytest.raises(LabError, match=r"choose one of 6\.0, 7\.0"):
        Paths.find("5.0")


@pytest.mark.parametrize("name", ["../other", "UPPER", "a b", "-x"])
def test_a_name_that_is_no_file_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEGBO_LAB_NAME", name)
    with pytest.raises(LabError, match="cannot be named"):
        Paths.find()


@pytest.mark.parametrize("folder", ["/etc/passwd", "/etc/passwd/lab", "/tmp/a\nb", "/dev/null", "/proc/self/fd/\x1b"])
def test_what_can_be_no_folder_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEGBO_LAB_DIR", folder)
    with pytest.raises(LabError, match="STAGEGBO_LAB_DIR") as caught:
        Paths.find()
    assert "\x1b" not in str(caught.value)


def test_looking_for_a_lab_touches_nothing(tmp_path: Path) -> None:
    lab = Lab.find()
    status = lab.status()
    assert not status.running
    assert status.incus_version == "6.0"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["join_network", "exec_argv"])
def test_getting_into_a_lab_that_is_down_says_so(what: str) -> None:
    lab = Lab.find()
    with pytest.raises(LabError, match="run `stagegbo lab up`"):
        lab.join_network() if what == "join_network" else lab.exec_argv(["true"])


def test_the_environment_of_a_lab_aims_at_its_socket() -> None:
    lab = Lab.find("7.0")
    environment = lab.environment()
    assert environment["INCUS_SOCKET"] == str(lab.socket)
    assert environment["PATH"].startswith(str(lab.paths.bin))
    assert Path(environment["STAGEGBO_LAB_DIR"]) == lab.paths.state


def test_members_of_a_lab_share_its_production_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Paths.find()
    monkeypatch.setenv("STAGEGBO_LAB_MEMBER", "member2")
    second = Paths.find()
    assert (second.base, second.marker, second.credentials) == (first.base, first.marker, first.credentials)
    assert first.base in second.lab.parents
    assert second.socket != first.socket
    assert second.netns != first.netns
    assert second.of("member1") == first == first.of("member1")


def test_a_lab_may_be_named_as_another_ones_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEGBO_LAB_NAME", "some")
    member = Paths.find().of("member2")
    monkeypatch.setenv("STAGEGBO_LAB_NAME", "some-member2")
    assert Paths.find().netns != member.netns


@pytest.mark.parametrize("name", ["member0", "member6", "other", "../x"])
def test_a_member_that_no_lab_can_have_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("STAGEGBO_LAB_MEMBER", name)
    with pytest.raises(LabError, match="no member") as caught:
        Paths.find()
    assert "member1, member2" in caught.value.remedy
