"""Running commands for the lab, and its writing and deleting of files."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.errors import LabError, MissingRequirement
from pytest_stagegbo.lab import command
from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    from pathlib import Path


def test_a_failing_command_is_reported_with_its_last_lines_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(LabError) as caught:
        command.run(["sh", "-c", "seq 30 >&2; exit 3"], log=log, what="counting")
    assert caught.value.message == "counting failed with status 3"
    assert caught.value.seen.splitlines() == [str(number) for number in range(16, 31)]
    assert str(log) in caught.value.remedy


def test_what_a_successful_command_prints_is_returned_and_not_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert command.run(["sh", "-c", "cat"], log=log, what="echoing", stdin="a secret") == "a secret"
    assert "a secret" not in log.read_text()


def test_a_command_that_cannot_be_started_is_a_lab_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="starting failed"):
        command.run(["/nonexistent"], log=tmp_path / "log", what="starting")


def test_a_command_that_takes_too_long_is_a_lab_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="timed out"):
        command.run(["sleep", "5"], log=tmp_path / "log", what="sleeping", timeout=0.05)


def test_a_written_file_has_its_mode_and_no_remains(tmp_path: Path) -> None:
    target = tmp_path / "credentials.json"
    (tmp_path / "credentials.json.partial").write_text("of an earlier try")
    command.write_atomic(target, "{}", mode=0o600)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_with_a_mount_in_it_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root/proc").mkdir(parents=True)
    monkeypatch.setattr(command, "_mount_points", lambda: [tmp_path / "root/proc"])
    with pytest.raises(LabError, match="mounted"):
        command.remove_tree(tmp_path / "root")
    assert (tmp_path / "root/proc").exists()


def test_without_root_the_lab_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingRequirement, match="run it with sudo"):
        command.require_root()


def test_a_missing_tool_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "PATH", str(tmp_path))
    monkeypatch.setattr(command, "_KEYRING", tmp_path / "none")
    assert command.missing_packages() == [
        "debian-archive-keyring",
        "iproute2",
        "mmdebstrap",
        "mount",
        "squashfs-tools",
        "util-linux",
    ]


def test_a_machine_without_apt_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "PATH", str(tmp_path))
    with pytest.raises(MissingRequirement, match="mmdebstrap"):
        command.install_missing(Silent(), tmp_path / "log")


def test_a_failed_installation_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho no such package >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setattr(command, "PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(command, "missing_packages", lambda: ["mmdebstrap"])
    with pytest.raises(MissingRequirement) as caught:
        command.install_missing(Silent(), tmp_path / "log")
    assert "no such package" in caught.value.seen
    assert "apt-get update && apt-get install -y mmdebstrap" in caught.value.remedy
