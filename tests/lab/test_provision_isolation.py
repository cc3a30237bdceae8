"""From inside of the stage nothing of production answers, and production's addresses are the stage's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SIX, sql, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]

PORTS = {"system": 5858, "tables": 5432, "vault": 8200, "cache": 6379, "drive": 9100, "llm": 8081}
TWINS = {name: f"10.0.2.{10 + number}" for number, name in enumerate(SIX)}
TLS_NAME = "tables.gbo.example"
ONLY_CACHE = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name != "cache")
DIAL = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2) as s:
        print("answers")
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def dial(stage: Stage, name: str, address: str, port: int) -> str:
    """From inside of a clone, with two seconds of patience."""
    return stage.exec(name, "python3", "-c", DIAL, address, str(port)).strip()


@pytest.mark.parametrize("name", [name for name in SIX if name != "system"])
def test_production_s_address_of_a_service_is_answered_by_its_clone(stage: Stage, name: str) -> None:
    """While the clone is stopped, nobody answers there, although production goes on."""
    assert dial(stage, "system", TWINS[name], PORTS[name]) == "answers"
    unit = {"drive": "minio", "cache": "valkey", "tables": "postgresql"}.get(name, name)
    if name == "vault":
        return  # would come back sealed
    stage.exec(name, "systemctl", "stop", f"{unit}.service")
    try:
        assert dial(stage, "system", TWINS[name], PORTS[name]) == "ConnectionRefusedError 111"
        assert stage.ground.exec(name, "systemctl", "is-active", f"{unit}.service").strip() == "active"
    finally:
        stage.exec(name, "systemctl", "start", f"{unit}.service")


def test_unchanged_configuration_writes_to_the_stage_s_own_database(stage: Stage) -> None:
    """BotServer's clone dials what Vault tells it, production's address, and its rows are in the stage."""
    after = int(stage.sql("SELECT max(id) FROM heartbeat"))
    row = until(
        lambda: stage.sql(f"SELECT writer, address, client FROM heartbeat WHERE id > {after + 1} LIMIT 1"),
        "the stage's BotServer writes",
    )
    assert row == "system|10.0.2.11|10.0.2.10"


def test_a_certificate_for_production_s_name_and_address_is_good_in_the_stage(stage: Stage) -> None:
    """A clone shows it, and another, which knows the name as production does, verifies both and ends at that clone."""
    folder, address = "mkdir -p /root/tls; cd /root/tls; ", TWINS["tables"]
    make = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout key.pem -out cert.pem "
        f"-subj /CN={TLS_NAME} -addext subjectAltName=DNS:{TLS_NAME},IP:{address} 2>/dev/null; "
    )
    serve = (
        "timeout 60 openssl s_server -accept 7443 -key key.pem -cert cert.pem -www >log 2>&1 </dev/null & echo $! >pid"
    )
    stage.exec("tables", "sh", "-euc", folder + make + serve)
    certificate = stage.exec("tables", "cat", "/root/tls/cert.pem")
    stage.exec("system", "sh", "-euc", f'{folder} printf %s "$1" >cert.pem; cp /etc/hosts hosts', "sh", certificate)
    stage.exec("system", "sh", "-euc", f"echo '{address} {TLS_NAME}' >>/etc/hosts")
    connect = (
        f"openssl s_client -connect {TLS_NAME}:7443 -CAfile /root/tls/cert.pem -verify_return_error "
        f"-verify_hostname {TLS_NAME} -brief </dev/null 2>&1"
    )
    try:
        until(lambda: "Verification: OK" in stage.exec("system", "sh", "-c", connect, check=False), "TLS is answered")
        by_address = connect.replace(f"-verify_hostname {TLS_NAME}", f"-verify_ip {address}")
        assert "Verification: OK" in stage.exec("system", "sh", "-c", by_address, check=False)
        other = connect.replace(f"-verify_hostname {TLS_NAME}", "-verify_hostname other.example")
        assert "hostname mismatch" in stage.exec("system", "sh", "-c", other, check=False)
    finally:
        stage.exec("system", "sh", "-c", "cat /root/tls/hosts >/etc/hosts; rm -r /root/tls")
        stage.exec("tables", "sh", "-c", "kill $(cat /root/tls/pid); rm -r /root/tls")


def test_twins_can_be_turned_off_and_production_stays_out_of_reach(ground: Ground) -> None:
    stage = ground.stage("STAGE-ALONE", "stagealone0", 33, ONLY_CACHE)
    off = {"STAGEGBO_NETWORK__TWINS": "false"}
    try:
        stage.run("provision", env=off)
        assert "twin0" not in stage.exec("cache", "ip", "-o", "link")
        assert "10.0.2." not in stage.exec("cache", "ip", "-o", "address")
        done = stage.run("verify", "--check", "reach.production", "--json", env=off)
        (line,) = json.loads(done.stdout)["findings"]
        assert line["state"] == "green"
    finally:
        stage.destroy()


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize(
    ("address", "port"),
    [
        pytest.param("10.0.2.1", 53, id="production's gateway"),
        pytest.param("10.0.2.1", 22, id="production's gateway, another port"),
        pytest.param("10.0.2.77", 80, id="a production address without a clone"),
    ],
)
def test_the_rest_of_production_s_subnet_is_unreachable_at_once(
    stage: Stage, name: str, address: str, port: int
) -> None:
    """Not by a time-out: `No route to host` or `Network is unreachable`."""
    assert dial(stage, name, address, port) in {"OSError 113", "OSError 101"}


@pytest.mark.parametrize("name", SIX)
def test_the_kernel_of_a_clone_has_no_way_to_production(stage: Stage, name: str) -> None:
    for other, address in TWINS.items():
        route = json.loads(stage.exec(name, "ip", "-j", "route", "get", address))[0]
        assert route["dev"] in {"twin0", "lo"}, f"{other}: {route}"


@pytest.fixture
def counted(ground: Ground) -> Iterator[Ground]:
    """Packets from the stage's bridge to production's and back are counted before any other filter sees them."""
    rules = (
        "table inet stagegbo-test { chain seen { type filter hook forward priority -400; "
        'iifname "stagebr0" oifname "prodbr0" counter; iifname "prodbr0" oifname "stagebr0" counter; }; }'
    )
    ground.lab_command("nft", rules)
    yield ground
    ground.lab_command("nft", "delete", "table", "inet", "stagegbo-test")


def packets(ground: Ground) -> list[int]:
    listed = json.loads(ground.lab_command("nft", "-j", "list", "table", "inet", "stagegbo-test"))["nftables"]
    rules = [each["rule"]["expr"] for each in listed if "rule" in each]
    return [expression["counter"]["packets"] for rule in rules for expression in rule if "counter" in expression]


def test_no_packet_passes_between_the_stage_and_production(stage: Stage, counted: Ground) -> None:
    """While every clone dials every address of production, and BotServer's clone does its work."""
    before = int(stage.sql("SELECT count(*) FROM heartbeat"))
    for name in SIX:
        for other, address in TWINS.items():
            dial(stage, name, address, PORTS[other])
        dial(stage, name, "10.0.2.1", 53)
    until(lambda: int(stage.sql("SELECT count(*) FROM heartbeat")) > before, "the stage's BotServer writes")
    assert packets(counted) == [0, 0]


def test_a_clone_that_is_told_to_go_around_its_twins_is_stopped_on_the_host(stage: Stage) -> None:
    """Even root in a clone, who removes the routes and asks the host to forward, does not reach production."""
    target = TWINS["cache"]
    stage.exec("llm", "ip", "route", "replace", f"{target}/32", "via", "10.0.3.1", "dev", "eth0", "src", "10.0.3.15")
    try:
        assert dial(stage, "llm", target, PORTS["cache"]) != "answers"
    finally:
        stage.exec("llm", "ip", "route", "delete", f"{target}/32", "via", "10.0.3.1", "dev", "eth0")
        stage.exec("llm", "/var/lib/stagegbo/twins")
    assert dial(stage, "llm", target, PORTS["cache"]) == "answers"


def test_production_s_own_clients_still_reach_production(stage: Stage) -> None:
    ground = stage.ground
    assert ground.exec("system", "python3", "-c", DIAL, TWINS["tables"], "5432").strip() == "answers"
    assert sql(ground, "SELECT DISTINCT client FROM heartbeat") == "10.0.2.10"


def test_the_host_reaches_the_stage(stage: Stage) -> None:
    script = DIAL.replace("sys.argv[1]", "'10.0.3.11'").replace("sys.argv[2]", "5432")
    assert stage.ground.inside("python3", "-c", script).stdout.strip() == "answers"


def test_the_stage_does_not_reach_the_host(stage: Stage) -> None:
    """Its API, for one, if it listened there: any port but DNS is rejected."""
    assert dial(stage, "system", "10.0.3.1", 8443) in {"ConnectionRefusedError 111", "OSError 113", "TimeoutError None"}
