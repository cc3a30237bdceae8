"""The host has a packet filter of its own: Docker's, firewalld's, somebody's."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

DOCKER = (
    "table ip filter { chain DOCKER-USER { }; chain FORWARD { type filter hook forward priority 0; policy drop; "
    'iifname "prodbr0" accept; %s jump DOCKER-USER; }; }'
)
"""As Docker makes it; production, which the lab's Incus has on the same host, is let through."""
RULESETS = Path(__file__).parent / "rulesets"
COMMAND = "iptables -I DOCKER-USER -i stagebr0 -o stagebr0 -j ACCEPT"


ROOT_PROGRAMS = Path("/usr/sbin")
LEGACY = """*filter
:FORWARD %s [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -i prodbr0 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -j DOCKER-USER
COMMIT
*nat
:DOCKER - [0:0]
%s
COMMIT
"""
"""As a host has them whose iptables is the old one."""
LEGACY_EMPTY = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*nat\nCOMMIT\n"


@contextlib.contextmanager
def filtered(ground: Ground, table: str, rules: str) -> Iterator[None]:
    ground.lab_command("sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1")
    ground.lab_command("nft", rules)
    try:
        yield
    finally:
        ground.lab_command("nft", "delete", "table", *table.split())


@pytest.mark.both_lts
def test_a_filter_that_drops_between_clones_is_named_before_the_first_write(stage: Stage) -> None:
    """By provisioning, its dry run and the doctor, with the command that lets the stage through."""
    ground = stage.ground
    with filtered(ground, "ip filter", DOCKER % ""):
        with ground.events() as events:
            for command in (("provision", "--recreate"), ("provision", "--recreate", "--dry-run")):
                done = stage.run(*command, check=False, timeout=20)
                assert done.returncode == 3, done.stderr
                assert "packets between the clones are dropped by the host's packet filter" in done.stderr
                assert "chain ip filter FORWARD, policy drop" in done.stderr
                assert COMMAND in done.stderr
        assert events == []
        doctor = json.loads(stage.run("doctor", "--json", check=False).stdout)["findings"]
        assert COMMAND in next(each["remedy"] for each in doctor if each["state"] == "failed")
        done = stage.run("verify", "--check", "reach.twins", "--json", check=False)
        (line,) = json.loads(done.stdout)["findings"]
        assert line["state"] == "red"
        assert COMMAND in "\n".join(line["evidence"])
        ground.lab_command("nft", "add rule ip filter DOCKER-USER iifname stagebr0 oifname stagebr0 accept")
        stage.run("provision", "--recreate", "--dry-run")
        done = stage.run("verify", "--check", "reach.twins", "--check", "exposure.host-rules")
        assert done.returncode == 0


@pytest.mark.both_lts
@pytest.mark.parametrize(
    ("tool", "table", "chain", "command"),
    [
        pytest.param(
            "firewalld",
            "inet firewalld",
            "chain inet firewalld filter_FWD_public, rule with handle",
            "firewall-cmd --permanent --zone=trusted --add-interface=stagebr0 && firewall-cmd --reload",
            id="firewalld",
        ),
        pytest.param(
            "ufw",
            "ip filter",
            "chain ip filter FORWARD, policy drop",
            "ufw route allow in on stagebr0 out on stagebr0",
            id="ufw",
        ),
    ],
)
def test_what_real_tools_drop_is_named_and_what_their_command_makes_of_it_lets_the_stage_through(
    stage: Stage, tool: str, table: str, chain: str, command: str
) -> None:
    """Rules as firewalld 1.3.3 and ufw 0.36.2 of Debian 12 made them on a lab, as they come and after the command.

    With protocols by their numbers, since the lab's Debian has no /etc/protocols."""
    ground = stage.ground
    with filtered(ground, table, (RULESETS / f"{tool}.nft").read_text()), ground.events() as events:
        done = stage.run("provision", "--recreate", check=False, timeout=20)
        assert done.returncode == 3, done.stderr
        assert "packets between the clones are dropped by the host's packet filter" in done.stderr
        assert chain in done.stderr
        assert f"on the daemon's host: {command}\n" in done.stderr
    assert events == []
    with filtered(ground, table, (RULESETS / f"{tool}-let-through.nft").read_text()):
        stage.run("provision", "--recreate", "--dry-run")
        done = stage.run("verify", "--check", "reach.twins", "--check", "reach.stage", "--check", "exposure.host-rules")
        assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def filtered_by_legacy(ground: Ground, nat: str = "") -> Iterator[None]:
    """With the machine's iptables, in the lab's network, which keeps the empty tables."""
    if not (ROOT_PROGRAMS / "iptables-legacy").exists():
        pytest.fail("iptables-legacy is missing: apt-get install iptables")
    ground.lab_command("sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1")
    restore = f'printf %s "$1" | {ROOT_PROGRAMS}/iptables-legacy-restore'
    ground.inside("sh", "-c", restore, "sh", LEGACY % ("DROP", nat))
    try:
        yield
    finally:
        ground.inside("sh", "-c", restore, "sh", LEGACY_EMPTY)


def test_rules_of_the_old_iptables_are_read_too(stage: Stage) -> None:
    """`nft list ruleset` does not show them."""
    ground = stage.ground
    command = COMMAND.replace("iptables", "iptables-legacy")
    with filtered_by_legacy(ground):
        with ground.events() as events:
            done = stage.run("provision", "--recreate", check=False, timeout=20)
        assert done.returncode == 3, done.stderr
        assert "chain iptables-legacy filter FORWARD, policy drop" in done.stderr
        assert f"on the daemon's host: {command}\n" in done.stderr
        assert events == []
        ground.inside(*command.split())
        stage.run("provision", "--recreate", "--dry-run")
        done = stage.run("verify", "--check", "reach.twins", "--check", "reach.stage", "--check", "exposure.host-rules")
        assert done.returncode == 0, done.stdout
    leads_in = "-A DOCKER -p tcp -m tcp --dport 8443 -j DNAT --to-destination 10.0.3.11:5432"
    with filtered_by_legacy(ground, leads_in):
        done = stage.run("verify", "--check", "exposure.host-rules", check=False)
        assert done.returncode != 0
        assert "10.0.3.11:5432" in done.stdout + done.stderr


@pytest.mark.both_lts
@pytest.mark.parametrize(
    ("table", "rules", "words"),
    [
        pytest.param(
            "ip filter", DOCKER % "meta mark 0x7 accept;", "system can't connect to ", id="between the clones"
        ),
        pytest.param(
            "inet fw",
            "table inet fw { chain out { type filter hook output priority 0; meta mark 0x7 accept; "
            'oifname "stagebr0" drop; }; }',
            "packets of the host to the clones are dropped by the host's packet filter: chain inet fw out",
            id="host to stage",
        ),
    ],
)
def test_a_filter_that_cannot_be_read_is_found_by_packets(stage: Stage, table: str, rules: str, words: str) -> None:
    """In seconds, instead of after the ready time-out of two minutes."""
    stage.exec("system", "systemctl", "stop", "botserver.service")
    try:
        with filtered(stage.ground, table, rules):
            stage.exec("system", "systemctl", "start", "--no-block", "botserver.service")
            done = stage.run("provision", check=False, timeout=40)
            assert done.returncode not in {0, 3}, done.stdout
            assert words in done.stderr
            assert "raise the ready time-out" not in done.stderr
    finally:
        stage.exec("system", "systemctl", "restart", "botserver.service")
        until(lambda: stage.run("status", check=False).returncode == 0, "the stage answers")
