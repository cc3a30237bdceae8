"""What one line of Incus does differently from the other, seen on the server at hand; and what the user reads of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_stagegbo.guest import boot_folder_of
from pytest_stagegbo.incus import connection, operations
from pytest_stagegbo.settings import IncusSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]


@pytest.fixture(scope="module")
def takes_own_networks(ground: Ground) -> Iterator[bool]:
    """Whether the server makes a project with networks of its own, although there is no OVN."""
    yield bool(ground.incus("project", "create", "probe", "-c", "features.networks=true", check=False))
    ground.incus("project", "delete", "probe", check=False)


@pytest.fixture(scope="module")
def found(stage: Stage) -> dict[str, dict[str, Any]]:
    """What `doctor` found, by subject."""
    return {each["subject"]: each for each in stage.json("doctor")["findings"]}


def test_networks_are_the_project_s_own_where_the_server_lets_them(
    ground: Ground, stage: Stage, takes_own_networks: bool
) -> None:
    config = ground.get(f"projects/{stage.project}")["config"]
    assert config["features.networks"] == json.dumps(takes_own_networks)
    assert config["restricted.networks.access"] == "stagebr0"
    nic = stage.clone("cache")["expanded_devices"]["eth0"]
    assert nic["parent" if takes_own_networks else "network"] == "stagebr0"


def test_doctor_says_what_became_of_them(found: dict[str, dict[str, Any]], takes_own_networks: bool) -> None:
    said = found["project STAGE-GBO"]
    assert said["state"] == "ok"
    assert f"features.networks={json.dumps(takes_own_networks)}" in said["seen"]


def test_doctor_says_how_the_server_stands_to_what_was_tested(ground: Ground, found: dict[str, dict[str, Any]]) -> None:
    line = ground.lab.paths.version
    said = found[f"Incus {ground.lab.status().incus_version}"]
    assert said["state"] == "ok"
    assert said["seen"].startswith(f"long-term line {line}, tested with {line}.")


def test_an_operation_that_takes_longer_than_a_server_waits_for_it_is_waited_for(
    ground: Ground, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6.0 answers with an error then."""
    monkeypatch.setattr(operations, "WAIT_SECONDS", 1)
    link = connection.Connection(IncusSettings(endpoint=str(ground.lab.socket)))
    body = {"command": ["sh", "-c", "sleep 2.5; exit 7"], "interactive": False, "wait-for-websocket": False}
    begun = link.request("POST", ("instances", "cache", "exec"), params={"project": stage.project}, body=body)
    assert link.wait(begun, "sleeping", 60)["return"] == 7


def test_folders_are_folders_and_files_have_owner_and_mode(stage: Stage) -> None:
    """A server that does not know the headers of a request makes files of all, with modes of its own."""
    folder = boot_folder_of(stage.clone("cache")["config"])
    paths = [folder, f"{folder}/boot"]
    assert stage.exec("cache", "stat", "-c", "%F %a %U:%G", *paths).splitlines() == [
        "directory 755 root:root",
        "regular file 755 root:root",
    ]
