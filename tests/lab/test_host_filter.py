"""The host has a packet filter of its own: Docker's, firewalld's, somebody's."""

from __future__ import annotations

import contextlib
import json
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
COMMAND = "iptables -I DOCKER-USER -i stagebr0 -o stagebr0 -j ACCEPT"


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
        doctor = json.loads(stage.run("doctor", "--json", check=False).stdout)
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
