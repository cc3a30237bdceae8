"""The host has networks of its own, which Incus knows nothing of: LANs, other bridges, VPNs."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

ONLY_CACHE = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name != "cache")


@pytest.fixture(scope="module")
def planned(ground: Ground) -> Stage:
    """Settings of a stage that does not exist."""
    return ground.stage("STAGE-LAN", "stagelan0", 44, ONLY_CACHE)


@contextlib.contextmanager
def interface(ground: Ground, *commands: tuple[str, ...]) -> Iterator[None]:
    """An interface `lan0` of the host, and what `ip` does with it."""
    ground.inside("ip", "link", "add", "lan0", "type", "bridge")
    try:
        ground.inside("ip", "link", "set", "lan0", "up")
        for command in commands:
            ground.inside("ip", *command)
        yield
    finally:
        ground.inside("ip", "link", "del", "lan0")


@pytest.mark.both_lts
@pytest.mark.parametrize(
    ("commands", "words"),
    [
        pytest.param(
            [("address", "add", "10.0.44.5/24", "dev", "lan0")], "interface lan0 has 10.0.44.5/24", id="an interface"
        ),
        pytest.param(
            [("route", "add", "10.0.44.128/25", "dev", "lan0", "table", "220")],
            "route of interface lan0 to 10.0.44.128/25 in table 220",
            id="a route of another table",
        ),
        pytest.param(
            [
                ("address", "add", "10.9.0.2/32", "peer", "10.9.0.1", "dev", "lan0"),
                ("route", "add", "10.0.0.0/8", "via", "10.9.0.1", "dev", "lan0"),
            ],
            "route of interface lan0 to 10.0.0.0/8 via 10.9.0.1 in table main",
            id="a VPN",
        ),
    ],
)
def test_a_subnet_of_the_hosts_own_is_not_taken(planned: Stage, commands: list[tuple[str, ...]], words: str) -> None:
    """Before the first write, and the error offers a subnet that is free: with it, provisioning would begin."""
    with interface(planned.ground, *commands), planned.ground.events() as events:
        for command in (("provision",), ("provision", "--dry-run")):
            done = planned.run(*command, check=False)
            assert done.returncode == 4, done.stderr
            assert "the stage's subnet 10.0.44.0/24 overlaps" in done.stderr
            assert words in done.stderr
        offered = done.stderr.split('network.address = "')[1].split('"')[0]
        found = {
            each["subject"]: each
            for each in json.loads(planned.run("doctor", "--json", check=False).stdout)["findings"]
        }
        assert found["subnet 10.0.44.0/24"]["state"] == "failed"
        assert words in found["subnet 10.0.44.0/24"]["seen"]
        planned.run("provision", "--dry-run", env={"STAGEGBO_NETWORK__ADDRESS": offered})
    assert events == []


def test_a_subnet_of_a_slot_is_looked_at_before_the_golden_copy_is_made(planned: Stage) -> None:
    """Slot 2 would have 10.0.46.0/24."""
    lan = ("address", "add", "10.0.46.1/24", "dev", "lan0")
    with interface(planned.ground, lan), planned.ground.events() as events:
        done = planned.run("provision", "--slots", "3", check=False)
        assert done.returncode == 4, done.stderr
        assert "interface lan0 has 10.0.46.1/24" in done.stderr
        assert "slots.address" in done.stderr
    assert events == []


@pytest.mark.both_lts
def test_a_vpn_that_comes_up_later_is_said_at_once(stage: Stage) -> None:
    """The host sends to it what is meant for the clones; wider ones than the stage's subnet are let be."""
    vpn = [
        ("route", "add", "10.0.0.0/8", "dev", "lan0"),
        ("route", "add", "10.0.3.13/32", "dev", "lan0", "table", "main"),
    ]
    words = "leads to interface lan0 instead of stagebr0: route of interface lan0 to 10.0.3.13/32 in table main"
    with interface(stage.ground, vpn[0]):
        assert stage.json("provision")["changed"] is False
        found = {each["subject"]: each for each in stage.json("doctor")["findings"]}
        assert found["subnet 10.0.3.0/24"]["state"] == "warning"
    with interface(stage.ground, *vpn):
        done = stage.run("provision", check=False, timeout=20)
        assert done.returncode == 4, done.stderr
        assert words in done.stderr
        assert words in json.loads(stage.run("status", "--json", check=False).stdout)["trouble"]
        done = stage.run("verify", "--check", "reach.stage", "--json", check=False)
        (line,) = json.loads(done.stdout)["findings"]
        assert line["state"] == "red"
        assert words in "\n".join(line["evidence"])


@contextlib.contextmanager
def a_second_network(ground: Ground) -> Iterator[None]:
    """Production's drive has another address, on a public bridge that Incus does not manage, and none of the host's."""
    ground.inside("ip", "link", "add", "public0", "type", "bridge")
    device = ("eth9", "nic", "nictype=bridged", "parent=public0", "name=eth9")
    try:
        ground.inside("ip", "link", "set", "public0", "up")
        ground.incus("config", "device", "add", "drive", *device)
        ground.exec("drive", "sh", "-c", "ip link set eth9 up; ip address add 198.51.100.14/24 dev eth9")
        yield
    finally:
        ground.incus("config", "device", "remove", "drive", "eth9", check=False)
        ground.inside("ip", "link", "del", "public0")


@pytest.mark.both_lts
def test_every_network_of_production_is_closed_where_the_stage_may_use_the_internet(ground: Ground) -> None:
    """Also one that came later, is public, and that neither Incus nor the host has an address in."""
    stage = ground.stage("STAGE-OUT", "stageout0", 45, ONLY_CACHE)
    online = {"STAGEGBO_NETWORK__INTERNET": "true"}

    def rejected() -> str:
        rules = ground.get("network-acls/stageout0-isolation")["egress"]
        return str(next(rule["destination"] for rule in rules if rule["description"] == "not the internet"))

    def verified() -> tuple[str, str]:
        argv = ("verify", "--check", "reach.production", "--check", "locked.project", "--json")
        found = {each["id"]: each for each in json.loads(stage.run(*argv, check=False, env=online).stdout)["findings"]}
        assert {each["state"] for each in found.values()} <= {"green", "red"}
        states = {each["state"] for each in found.values()}
        return "red" if "red" in states else "green", "\n".join(found["reach.production"]["evidence"])

    try:
        stage.run("provision", env=online)
        assert "198.51.100." not in rejected()
        with a_second_network(ground):
            ground.inside("ip", "route", "add", "198.51.100.0/24", "dev", "public0")
            ground.inside("ip", "address", "add", "192.0.2.77/32", "dev", "public0")  # the host's end of the way
            state, evidence = verified()
            assert state == "red", evidence
            assert "198.51.100.14" in evidence
            assert stage.json("provision", env=online)["changed"] is True
            assert "198.51.100.0/24" in rejected()
            assert stage.json("provision", env=online)["changed"] is False
            state, evidence = verified()
            assert state == "green", evidence
            assert "198.51.100.14" in evidence
            ground.inside("ip", "route", "del", "198.51.100.0/24", "dev", "public0")
            ground.inside("ip", "address", "del", "192.0.2.77/32", "dev", "public0")
            assert stage.json("provision", env=online)["changed"] is True  # 192.0.2.77 is open again
            assert "198.51.100.0/24" in rejected()  # seen in the container alone
        assert stage.json("provision", env=online)["changed"] is True
        assert "198.51.100." not in rejected()
    finally:
        stage.destroy()
