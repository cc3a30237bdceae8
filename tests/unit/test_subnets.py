"""Whose the stage's subnet is: Incus's networks, interfaces, routes and VPNs of the host."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from fakes import finished, network
from msgspec.structs import replace

from pytest_stagegbo.desired import objects
from pytest_stagegbo.errors import ProductionProtected
from pytest_stagegbo.facts.subnets import free_subnet, lost_ways, neighbours, refuse_taken
from pytest_stagegbo.incus.hostnet import HostNetwork
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.slots.layout import golden_settings, slot_settings

SETTINGS = Settings()
MADE = {"stagebr0": replace(network("stagebr0", "10.0.3.1/24"), config=objects.network(SETTINGS))}
OWN = HostNetwork(IPv4Network("10.0.3.0/24"), "stagebr0", IPv4Address("10.0.3.1"))


def address(text: str, interface: str) -> HostNetwork:
    found = IPv4Interface(text)
    return HostNetwork(found.network, interface, found.ip)


def route(text: str, interface: str, table: int = 254, kind: str = "") -> HostNetwork:
    return HostNetwork(IPv4Network(text), interface, table=table, kind=kind)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        pytest.param(address("10.0.3.5/24", "lan0"), "interface lan0 has 10.0.3.5/24", id="LAN"),
        pytest.param(address("10.0.3.1/24", "lxcbr0"), "interface lxcbr0 has 10.0.3.1/24", id="LXC"),
        pytest.param(address("10.0.0.9/16", "docker0"), "interface docker0 has 10.0.0.9/16", id="wider"),
        pytest.param(address("10.0.3.77/32", "wg0"), "interface wg0 has 10.0.3.77/32", id="one address"),
        pytest.param(
            route("10.0.3.128/25", "tun0", 220), "route of interface tun0 to 10.0.3.128/25 in table 220", id="VPN"
        ),
        pytest.param(route("10.0.0.0/8", "wg0"), "route of interface wg0 to 10.0.0.0/8 in table main", id="wide VPN"),
        pytest.param(
            route("10.0.3.10/32", "", kind="blackhole"), "blackhole route to 10.0.3.10/32 in table main", id="nowhere"
        ),
    ],
)
def test_what_the_host_has_is_not_taken(found: HostNetwork, words: str) -> None:
    with pytest.raises(ProductionProtected) as caught:
        refuse_taken(SETTINGS, {}, [found])
    assert caught.value.seen == words
    offered = IPv4Interface(caught.value.remedy.split('"')[1])
    assert not offered.network.overlaps(found.network)
    refuse_taken(replace(SETTINGS, network=replace(SETTINGS.network, address=offered)), {}, [found])


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(OWN, id="own bridge"),
        pytest.param(address("10.0.4.1/24", "lan0"), id="next to it"),
        pytest.param(route("10.0.0.0/8", "", kind="unreachable"), id="a fence"),
    ],
)
def test_what_is_no_clash_is_none(found: HostNetwork) -> None:
    refuse_taken(SETTINGS, {}, [found])


def test_a_wider_network_that_came_later_leaves_a_stage_alone_that_is_reached() -> None:
    ways = {c.address: "stagebr0" for c in SETTINGS.containers.values()}
    vpn = route("10.0.0.0/8", "wg0")
    refuse_taken(SETTINGS, MADE, [OWN, vpn], ways)
    assert neighbours(SETTINGS, [OWN, vpn]) == (vpn,)
    facts = finished(SETTINGS, host=(OWN, vpn), ways=ways)
    assert "is wider than the stage's subnet" in "".join(make_plan(facts, SETTINGS, recreate=True).notes)


@pytest.mark.parametrize(
    ("vpn", "interface"),
    [
        pytest.param(route("10.0.0.0/8", "wg0", 51820), "wg0", id="another table"),
        pytest.param(route("10.0.3.0/25", "tun0"), "tun0", id="a closer route"),
        pytest.param(route("10.0.3.0/24", "", kind="prohibit"), None, id="nowhere"),
    ],
)
def test_a_vpn_that_takes_the_clones_is_named(vpn: HostNetwork, interface: str | None) -> None:
    ways = {IPv4Address("10.0.3.11"): interface}
    with pytest.raises(ProductionProtected, match=r"the host's way to 10\.0\.3\.11 leads to") as caught:
        refuse_taken(SETTINGS, MADE, [OWN, vpn], ways)
    assert str(vpn) in str(caught.value)
    with pytest.raises(ProductionProtected):
        make_plan(finished(SETTINGS, host=(OWN, vpn), ways=ways), SETTINGS)


def test_a_bridge_that_is_gone_is_not_taken_for_a_vpn() -> None:
    assert lost_ways(SETTINGS, [], {IPv4Address("10.0.3.11"): "eth0"}) == ""


def test_slots_and_the_golden_copy_name_their_own_settings() -> None:
    for settings, key in ((slot_settings(SETTINGS, 2), "slots.address"), (golden_settings(SETTINGS), "golden_address")):
        taken = address(f"{settings.network.address.ip + 7}/24", "lan0")
        with pytest.raises(ProductionProtected, match="lan0") as caught:
            refuse_taken(settings, {}, [OWN, taken], parent=SETTINGS.project)
        assert key in caught.value.remedy


@pytest.mark.parametrize(
    ("taken", "found"),
    [
        pytest.param(["10.0.3.0/24"], "10.0.4.1/24", id="the next"),
        pytest.param(["10.0.3.0/24", "10.0.6.0/24"], "10.0.7.1/24", id="with room for slots"),
        pytest.param(["10.0.3.0/24", "10.0.104.0/24"], "10.0.5.1/24", id="and for the golden copy"),
        pytest.param(["10.0.0.0/8"], "172.16.0.1/12", id="another block"),
        pytest.param(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], None, id="nothing is left"),
    ],
)
def test_a_free_subnet_has_room_for_all_that_follow_from_it(taken: list[str], found: str | None) -> None:
    offered = free_subnet(SETTINGS, [IPv4Network(each) for each in taken])
    assert str(offered) == (found.replace("/12", "/24") if found else "None")
