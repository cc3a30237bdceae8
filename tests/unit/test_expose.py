"""What may be exposed, what is known of it from the server, and what the access list makes of it."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, Any

import pytest
from fakes import StrictConnection, bare_host, finished, network, refused
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.exposure import Exposure, exposures, forward_body, over, read_forward
from pytest_stagegbo.errors import NotOurs, ProductionProtected, SettingsError, StageGboError
from pytest_stagegbo.facts.guests import Guest
from pytest_stagegbo.incus import Reader
from pytest_stagegbo.incus.hostnet import HostNetwork
from pytest_stagegbo.plan.access_list import access_list
from pytest_stagegbo.plan.destroy import plan_destroy
from pytest_stagegbo.plan.exposure_request import new_exposure, refuse
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.settings import NetworkSettings, Settings
from pytest_stagegbo.settings.duration import parse_duration

if TYPE_CHECKING:
    from pytest_stagegbo.facts.facts import Facts

SETTINGS = Settings()
LISTEN = "198.51.100.7"


def exposure(**changes: Any) -> Exposure:
    until = int(time.time()) + 600
    return replace(Exposure("tables", "10.0.3.11", 5432, LISTEN, 15432, until), **changes)


def with_rules(*exposed: Exposure) -> dict[str, Any]:
    return access_list(bare_host(SETTINGS), SETTINGS, exposed)


# -- lengths of time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("90s", 90, id="seconds"),
        pytest.param("30m", 1800, id="minutes"),
        pytest.param(" 2H ", 7200, id="hours"),
        pytest.param("7d", 604800, id="days"),
    ],
)
def test_a_length_of_time_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "0h", "-1h", "1.5h", "2 h", "1h30m", "forever"])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a length of time"):
        parse_duration(text)


# -- what is asked for


@pytest.mark.parametrize(
    ("target", "listen", "port", "listen_port"),
    [
        pytest.param("tables", LISTEN, 5432, 5432, id="its-only-port"),
        pytest.param("tables:5433", LISTEN, 5433, 5433, id="a-port"),
        pytest.param("llm:http", f"{LISTEN}:443", 8081, 443, id="a-protocol"),
    ],
)
def test_what_is_asked_for(target: str, listen: str, port: int, listen_port: int) -> None:
    wanted = new_exposure(SETTINGS, target, listen, "2h")
    assert (wanted.port, wanted.listen, wanted.listen_port) == (port, LISTEN, listen_port)
    assert wanted.address == str(SETTINGS.containers[wanted.container].address)
    assert 7190 < wanted.until - time.time() <= 7200


@pytest.mark.parametrize(
    ("target", "listen", "length", "error", "words"),
    [
        pytest.param("nobody", LISTEN, "2h", SettingsError, "no container nobody", id="container"),
        pytest.param("system", LISTEN, "2h", SettingsError, "one port", id="two-ports"),
        pytest.param("tables:http", LISTEN, "2h", SettingsError, "one port", id="protocol"),
        pytest.param("tables:70000", LISTEN, "2h", SettingsError, "one port", id="port"),
        pytest.param("tables", "example.org", "2h", SettingsError, "not an IPv4 address", id="name"),
        pytest.param("tables", f"{LISTEN}:x", "2h", SettingsError, "not an IPv4 address", id="listen-port"),
        pytest.param("tables", f"{LISTEN}:0", "2h", SettingsError, "not a port", id="port-0"),
        pytest.param("tables", "0.0.0.0", "2h", SettingsError, "one non-loopback address", id="all-addresses"),
        pytest.param("tables", "127.0.0.1", "2h", SettingsError, "one non-loopback address", id="loopback"),
        pytest.param("tables", "10.0.3.1", "2h", SettingsError, "one non-loopback address", id="the-stages-bridge"),
        pytest.param("tables", "10.0.2.1", "2h", ProductionProtected, "production's network", id="production"),
        pytest.param("tables", LISTEN, "2", SettingsError, "length of time", id="no-unit"),
        pytest.param("tables", LISTEN, "25h", SettingsError, "expose.longest, 24h", id="too-long"),
    ],
)
def test_what_can_not_be_exposed(target: str, listen: str, length: str, error: type[StageGboError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        new_exposure(SETTINGS, target, listen, length)
    assert raised.value.remedy


def reader(forwards: list[dict[str, Any]]) -> Reader:
    bridges = ("prodbr0", "stagebr0")
    answers = {("GET", f"networks/{name}/forwards"): forwards for name in bridges}
    answers["GET", "networks"] = [{"name": name, "managed": True} for name in bridges]
    return Reader(StrictConnection(answers).as_connection())


@pytest.mark.parametrize(
    ("facts", "forwards", "addresses", "error", "words"),
    [
        pytest.param({"exposed": (exposure(),)}, [], [LISTEN], SettingsError, "exposed already", id="exposed"),
        pytest.param({}, [{"listen_address": LISTEN}], [LISTEN], NotOurs, "not made by", id="foreign"),
        pytest.param({}, [], ["192.0.2.1"], SettingsError, "not an address of the host", id="address"),
        pytest.param(
            {"networks": {"prodbr0": network("prodbr0", "198.51.100.1/24")}},
            [],
            [LISTEN],
            ProductionProtected,
            "a network of production",
            id="production",
        ),
    ],
)
def test_what_is_in_the_way(
    facts: dict[str, Any], forwards: list[dict[str, Any]], addresses: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        refuse(reader(forwards), finished(SETTINGS, **facts), SETTINGS, exposure(), addresses)


@pytest.mark.parametrize("listen", ["tcp:0.0.0.0:15432", "tcp:198.51.100.7:80,15000-16000"])
def test_a_port_that_production_publishes_stays_productions(listen: str) -> None:
    facts = finished(SETTINGS)
    web = replace(
        facts.sources["system"], expanded_devices={"web": {"type": "proxy", "listen": listen, "connect": "tcp::80"}}
    )
    with pytest.raises(ProductionProtected, match="port 15432 of the host"):
        refuse(reader([]), replace(facts, sources={"system": web}), SETTINGS, exposure(), [LISTEN])


# -- what the server knows of it


def test_a_forward_tells_what_is_exposed_and_until_when() -> None:
    assert read_forward(forward_body(exposure())) == exposure()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"config": {}}, id="no-mark"),
        pytest.param({"config": {marks.OWNER: marks.OWNER_VALUE}}, id="no-mark-but-an-owner"),
        pytest.param({"config": {"user.stagegbo.expose": "tables:5432 expires=9999999999"}}, id="no-owner"),
        pytest.param(
            {"config": {**forward_body(exposure())["config"], "target_address": "10.0.3.12"}}, id="all-other-ports"
        ),
        pytest.param({"ports": []}, id="no-port"),
        pytest.param({"ports": [*forward_body(exposure())["ports"]] * 2}, id="two-ports"),
        pytest.param({"ports": [{**forward_body(exposure())["ports"][0], "target_port": "22"}]}, id="another-port"),
        pytest.param({"ports": [{**forward_body(exposure())["ports"][0], "protocol": "udp"}]}, id="udp"),
        pytest.param({"ports": [{**forward_body(exposure())["ports"][0], "listen_port": "1-9"}]}, id="range"),
    ],
)
def test_a_forward_that_does_something_else_is_not_ours(change: dict[str, Any]) -> None:
    assert read_forward({**forward_body(exposure()), **change}) is None


def test_it_is_open_while_the_access_list_lets_it_through() -> None:
    forwards = [forward_body(exposure())]
    assert [each.state for each in exposures(forwards, with_rules(exposure()))] == ["open"]
    assert [each.state for each in exposures(forwards, with_rules())] == ["unfinished"]
    assert [each.state for each in exposures(forwards, None)] == ["unfinished"]


def test_what_is_to_be_closed_has_expired_or_was_never_finished() -> None:
    expired, unfinished = exposure(until=int(time.time()) - 1), exposure(complete=False)
    assert over((exposure(), expired, unfinished)) == (expired, unfinished)


# -- what the access list makes of it


def test_production_is_rejected_before_others_are_let_through() -> None:
    plain, opened = with_rules(), with_rules(exposure())
    assert opened["egress"] == plain["egress"]
    reject, allow = opened["ingress"][len(plain["ingress"]) :]
    assert (reject["action"], reject["source"]) == ("reject", "10.0.2.0/24")
    assert allow["action"] == "allow"
    for rule in (reject, allow):
        assert (rule["destination"], rule["destination_port"], rule["protocol"]) == ("10.0.3.11/32", "5432", "tcp")


def test_provisioning_leaves_what_is_open_and_takes_away_what_has_expired() -> None:
    still, gone = exposure(), exposure(until=int(time.time()) - 1)
    facts = finished(SETTINGS, exposed=(still,), acl={"name": "stagebr0-isolation", **with_rules(still)})
    assert make_plan(facts, SETTINGS).changes == ()
    later = replace(facts, exposed=(gone,))
    assert [step.key for step in make_plan(later, SETTINGS).changes] == ["access-list:stagebr0-isolation"]


def rejected(facts: Facts, settings: Settings) -> set[IPv4Network]:
    (kept_out,) = (
        rule["destination"]
        for rule in access_list(facts, settings)["egress"]
        if rule["description"] == "not the internet"
    )
    return {IPv4Network(each) for each in kept_out.split(",")}


def guest(*networks: str, unknown: bool = False, project: str = "default") -> Guest:
    found = [IPv4Interface(each) for each in networks]
    addresses = frozenset(each.ip for each in found)
    return Guest(project, "drive", frozenset(each.network for each in found), addresses, unknown)


ONLINE = replace(SETTINGS, network=replace(NetworkSettings(), internet=True))


def test_networks_of_the_host_and_of_all_other_instances_are_never_the_internet() -> None:
    """Whatever their kind: private ones are closed already."""
    host = (
        HostNetwork(IPv4Network("203.0.113.0/24"), "eth0", IPv4Address("203.0.113.9")),
        HostNetwork(IPv4Network("198.51.100.128/25"), "tun0", table=220),
        HostNetwork(IPv4Network("10.0.3.0/24"), "stagebr0", IPv4Address("10.0.3.1")),
    )
    others = (guest("192.0.2.5/24"), guest("198.18.0.4/32", project="shop"))
    found = rejected(finished(ONLINE, host=host, guests=others), ONLINE)
    for text in ("203.0.113.0/24", "198.51.100.128/25", "192.0.2.0/24", "198.18.0.4/32"):
        assert IPv4Network(text) in found
    assert not [each for each in found if each.overlaps(ONLINE.network.subnet)]


def test_what_a_stopped_instance_had_stays_closed_and_what_a_running_one_had_is_opened() -> None:
    before = finished(ONLINE, guests=(guest("192.0.2.5/24"),))
    old = access_list(before, ONLINE)
    stopped = replace(before, acl=old, guests=(guest(unknown=True),))
    assert IPv4Network("192.0.2.0/24") in rejected(stopped, ONLINE)
    moved = replace(before, acl=old, guests=(guest("198.18.0.5/24"),))
    assert IPv4Network("192.0.2.0/24") not in rejected(moved, ONLINE)


def test_a_changed_network_is_a_change_of_the_plan() -> None:
    facts = finished(ONLINE, guests=())
    facts = replace(facts, acl={"name": "x", **access_list(facts, ONLINE)})
    assert not make_plan(facts, ONLINE).changes
    (step,) = make_plan(replace(facts, guests=(guest("192.0.2.5/24"),)), ONLINE).changes
    assert step.verb == "access-list"


def test_production_does_not_come_in_from_its_other_networks() -> None:
    """Only its own addresses there: the rest of a LAN is whom a port is exposed to."""
    facts = finished(SETTINGS, guests=(guest("198.51.100.5/24"), guest("198.51.100.6/24", project="shop")))
    rules = access_list(facts, SETTINGS, [exposure()])["ingress"]
    (out,) = (rule["source"] for rule in rules if rule["action"] == "reject")
    assert out == "10.0.2.0/24,198.51.100.5/32"


# -- destroying


def destroying(*forwards: dict[str, Any]) -> list[str]:
    facts = finished(SETTINGS)
    bridge = facts.networks["stagebr0"]
    answers: dict[tuple[str, str], Any] = {
        ("GET", "projects"): [],
        ("GET", "networks/stagebr0"): {"name": "stagebr0", "config": dict(bridge.config), "managed": True},
        ("GET", "instances"): [],
        ("GET", "networks"): [],
        ("GET", "network-acls"): [],
        ("GET", "network-acls/stagebr0-isolation"): refused(404),
        ("GET", "networks/stagebr0/forwards"): list(forwards),
    }
    return [step.key for step in plan_destroy(Reader(StrictConnection(answers).as_connection()), SETTINGS)]


def test_destroying_closes_what_is_exposed_before_the_bridge_goes() -> None:
    assert destroying(forward_body(exposure())) == [f"remove-forward:{LISTEN}", "remove-network:stagebr0"]


def test_a_forward_of_somebody_else_keeps_the_bridge() -> None:
    with pytest.raises(NotOurs, match=LISTEN):
        destroying({**forward_body(exposure()), "config": {}})
