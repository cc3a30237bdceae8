"""The certificate: green on a stage that nobody touched, and each line turned red by a deliberate breach."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.support import SIX, immutable, run, until

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.guest import boot_folder_of
from pytest_stagegbo.guest.removal import ASIDE
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.settings import IncusSettings, load
from pytest_stagegbo.verify import Check, Finding, chosen, verify
from pytest_stagegbo.verify.finding import Result, Sight
from pytest_stagegbo.verify.table import CHECKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from tests.lab.support import Stage

    from pytest_stagegbo.verify.context import VerifyContext

pytestmark = [
    pytest.mark.lab,
    # Connections of threads that have ended are closed when they are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STAMP = "/var/lib/stagegbo/prepared"


Certify = Callable[..., dict[str, Finding]]


@pytest.fixture(scope="module")
def certify(stage: Stage) -> Iterator[Certify]:
    """`certify("reach.host")`: the findings of these checks, or of all, by id. Run in this process, in the lab's
    network; with `before`, a check of the test's own comes first."""
    connection = Connection(IncusSettings(endpoint=str(stage.ground.lab.socket)))
    with ThreadPoolExecutor(1, initializer=stage.ground.lab.join_network) as thread:

        def call(*names: str, before: Sequence[Check] = ()) -> dict[str, Finding]:
            checks = [*before, *(chosen(names or [check.id for check in CHECKS]) or ())]
            settings = load(stage.config, Path("/"), {}).settings
            certificate = thread.submit(lambda: verify(StageEngine(settings, connection), checks)).result(120)
            return {finding.id: finding for finding in certificate.findings}

        yield call


def lifted(restriction: str, *, value: str, otherwise: str) -> Callable[[Stage], AbstractContextManager[None]]:
    """A restriction of the project is gone, as somebody would do by hand."""

    @contextlib.contextmanager
    def breach(stage: Stage) -> Iterator[None]:
        stage.ground.incus("project", "set", stage.project, f"{restriction}={value}")
        try:
            yield
        finally:
            stage.ground.incus("project", "set", stage.project, f"{restriction}={otherwise}")

    return breach


@contextlib.contextmanager
def own_list_is_empty(stage: Stage) -> Iterator[None]:
    """The bridge's access list is not used any more."""
    stage.ground.incus("network", "unset", "stagebr0", "security.acls")
    try:
        yield
    finally:
        stage.ground.incus("network", "set", "stagebr0", "security.acls=stagebr0-isolation")


@contextlib.contextmanager
def no_twins(stage: Stage) -> Iterator[None]:
    """A clone's routes are gone: it asks the host to forward to production."""
    stage.exec("llm", "sh", "-c", "ip route del unreachable 10.0.2.0/24; ip link del twin0")
    try:
        yield
    finally:
        stage.exec("llm", "/var/lib/stagegbo/twins")


@contextlib.contextmanager
def a_way_out(stage: Stage) -> Iterator[None]:
    """The host has a way to the internet, which in the lab swallows what it is sent."""
    ground = stage.ground
    ground.inside("ip", "link", "add", "outside8", "type", "veth", "peer", "name", "outside9")
    try:
        ground.inside("ip", "link", "set", "outside9", "up")
        ground.inside("ip", "link", "set", "outside8", "up", "arp", "off")
        ground.inside("ip", "route", "add", "default", "dev", "outside8")
        yield
    finally:
        ground.inside("ip", "link", "del", "outside8")


@contextlib.contextmanager
def wrong_twin(stage: Stage) -> Iterator[None]:
    """For one clone, cache's address leads to drive."""
    mac = json.loads(stage.exec("drive", "ip", "-j", "link", "show", "twin0"))[0]["address"]
    stage.exec("drive", "ip", "address", "add", "10.0.2.13/32", "dev", "twin0")
    stage.exec("vault", "ip", "neighbour", "replace", "10.0.2.13", "lladdr", mac, "dev", "twin0", "nud", "permanent")
    try:
        yield
    finally:
        stage.exec("drive", "ip", "address", "del", "10.0.2.13/32", "dev", "twin0")
        stage.exec("vault", "/var/lib/stagegbo/twins")


@contextlib.contextmanager
def blackhole(stage: Stage) -> Iterator[None]:
    """The host's way to one clone is gone."""
    stage.ground.inside("ip", "route", "add", "blackhole", "10.0.3.10/32")
    try:
        yield
    finally:
        stage.ground.inside("ip", "route", "del", "blackhole", "10.0.3.10/32")


@contextlib.contextmanager
def proxy(stage: Stage) -> Iterator[None]:
    """A device of another project leads into the stage."""
    incus = stage.ground.incus
    incus("init", "--empty", "bridgehead", "-d", "root,size=50MiB")
    try:
        listen, connect = "listen=tcp:127.0.0.1:9901", "connect=tcp:10.0.3.11:5432"
        incus("config", "device", "add", "bridgehead", "web", "proxy", listen, connect)
        yield
    finally:
        incus("delete", "--force", "bridgehead")


@contextlib.contextmanager
def forward(stage: Stage) -> Iterator[None]:
    incus = stage.ground.incus
    incus("network", "forward", "create", "stagebr0", "10.0.77.1", "target_address=10.0.3.11")
    try:
        yield
    finally:
        incus("network", "forward", "delete", "stagebr0", "10.0.77.1")


@contextlib.contextmanager
def peer(stage: Stage) -> Iterator[None]:
    """An interface of the host's is put on the stage's bridge."""
    stage.ground.inside("ip", "link", "add", "intruder0", "type", "veth", "peer", "name", "intruder1")
    try:
        stage.ground.inside("ip", "link", "set", "intruder0", "master", "stagebr0")
        yield
    finally:
        stage.ground.inside("ip", "link", "del", "intruder0")


@contextlib.contextmanager
def host_rule(stage: Stage) -> Iterator[None]:
    rules = (
        "table ip published { chain in { type nat hook prerouting priority dstnat; "
        "tcp dport 8080 dnat to 10.0.3.10:5858; }; }"
    )
    stage.ground.lab_command("nft", rules)
    try:
        yield
    finally:
        stage.ground.lab_command("nft", "delete", "table", "ip", "published")


@contextlib.contextmanager
def privileged(stage: Stage) -> Iterator[None]:
    """While the restrictions were lifted, somebody added a container with a folder of the host."""
    incus = stage.ground.incus
    with lifted("restricted", value="false", otherwise="true")(stage):
        incus("init", "--empty", "guest", "-d", "root,size=50MiB", project=stage.project)
        try:
            incus("config", "set", "guest", "security.privileged=true", project=stage.project)
            incus(
                "config", "device", "add", "guest", "host", "disk", "source=/root", "path=/mnt", project=stage.project
            )
            yield
        finally:
            incus("delete", "--force", "guest", project=stage.project)


@contextlib.contextmanager
def unfiltered(stage: Stage) -> Iterator[None]:
    key = "security.mac_filtering"
    stage.ground.incus("config", "device", "set", "llm", "eth0", f"{key}=false", project=stage.project)
    try:
        yield
    finally:
        stage.ground.incus("config", "device", "set", "llm", "eth0", f"{key}=true", project=stage.project)


@contextlib.contextmanager
def address(stage: Stage) -> Iterator[None]:
    """Production's address is left over on the clone's interface."""
    stage.exec("llm", "ip", "address", "add", "10.0.2.15/24", "dev", "eth0")
    try:
        yield
    finally:
        stage.exec("llm", "ip", "address", "del", "10.0.2.15/24", "dev", "eth0")


@contextlib.contextmanager
def foreign_unit(stage: Stage) -> Iterator[None]:
    """As one of production's would be seen that found a way in: by a second generator, here."""
    file = boot_folder_of(stage.clone("llm")["config"]) + "/second"
    line = 'ln -s /usr/lib/systemd/system/cron.service "$1"'
    stage.exec(
        "llm", "sh", "-c", f"printf '#!/bin/sh\\n%s\\n' '{line}' >{file}; chmod 755 {file}; systemctl daemon-reload"
    )
    stage.exec("llm", "systemctl", "start", "cron.service")
    try:
        yield
    finally:
        stage.exec("llm", "sh", "-c", f"systemctl stop cron.service; rm {file}; systemctl daemon-reload")


def old_file(path: str, name: str) -> Callable[[Stage], AbstractContextManager[None]]:
    """A file older than the end of the wipe: the stamp is made younger than it, since nothing can make a file older."""

    @contextlib.contextmanager
    def breach(stage: Stage) -> Iterator[None]:
        stage.exec(name, "cp", "-p", STAMP, f"{STAMP}.kept")
        stage.exec(name, "sh", "-c", f"touch {path}/survivor && sleep 0.01 && touch {STAMP}")
        try:
            yield
        finally:
            stage.exec(name, "sh", "-c", f"rm {path}/survivor && mv {STAMP}.kept {STAMP}")

    return breach


@contextlib.contextmanager
def lost(stage: Stage) -> Iterator[None]:
    stage.exec("llm", "mv", "/opt/gbo/models", "/opt/gbo/moved")
    try:
        yield
    finally:
        stage.exec("llm", "mv", "/opt/gbo/moved", "/opt/gbo/models")


@contextlib.contextmanager
def twin_identity(stage: Stage) -> Iterator[None]:
    own = stage.exec("llm", "cat", "/etc/machine-id")
    stage.exec("llm", "sh", "-c", f"echo {stage.exec('cache', 'cat', '/etc/machine-id').strip()} >/etc/machine-id")
    try:
        yield
    finally:
        stage.exec("llm", "sh", "-c", f"echo {own.strip()} >/etc/machine-id")


Breach = tuple[str, str, "Callable[[Stage], AbstractContextManager[None]]"]
"""A line, how its evidence says that it was this, and what to do to the stage."""

LOOKED_AT: list[Breach] = [
    ("exposure.devices", "device web of default/bridgehead leads to tcp:10.0.3.11:5432", proxy),
    ("exposure.networks", "forward 10.0.77.1 of network stagebr0", forward),
    ("exposure.bridge", "interface intruder0 is on bridge stagebr0", peer),
    ("exposure.host-rules", "dnat", host_rule),
    (
        "locked.project",
        "project: restricted is 'false', not 'true'",
        lifted("restricted", value="false", otherwise="true"),
    ),
    (
        "locked.project",
        "project: restricted.devices.unix-char is 'allow', which lifts a restriction",
        lifted("restricted.devices.unix-char", value="allow", otherwise=""),
    ),
    ("locked.instances", "guest: ", privileged),
    ("locked.boot", "llm: cron.service has run, and the settings don't name it", foreign_unit),
    ("locked.filters", "llm: security.mac_filtering is 'false', not true", unfiltered),
    ("locked.addresses", "llm: eth0 has 10.0.2.15", address),
    (
        "data.wiped",
        "cache: /opt/gbo/data/valkey/",
        old_file("/opt/gbo/data/valkey", "cache"),
    ),
    ("data.logs", "llm: /opt/gbo/logs/", old_file("/opt/gbo/logs", "llm")),
    ("data.kept", "llm: no file of production is left", lost),
    ("data.identity", "have the same machine id", twin_identity),
]
"""Breaches that have nothing to do with each other, so that one certificate shows them all."""
TRIED: list[Breach] = [
    ("reach.host", "drive connects to the host at 10.0.3.1:", own_list_is_empty),
    ("reach.production", "packets were on prodbr0, a bridge of production", no_twins),
    ("reach.twins", "vault: at 10.0.2.13 should be its clone, and was drive", wrong_twin),
    ("reach.internet", "drive: a packet to 192.0.2.1 was not turned back", a_way_out),
    ("reach.stage", "system at 10.0.3.10: ", blackhole),
]
"""Breaches of who reaches whom. With the access list in its place the others would show nothing."""
ALONE = {"limits.disk", "production.unchanged", "production.events"}
"""Lines whose breaches have tests of their own."""


def test_every_line_has_a_breach() -> None:
    assert {line for line, _, _ in (*LOOKED_AT, *TRIED)} | ALONE == {check.id for check in CHECKS}


@pytest.mark.both_lts
def test_a_stage_that_nobody_touched_is_green(stage: Stage) -> None:
    done = stage.run("verify", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert {each["id"]: each["evidence"] for each in found["findings"] if each["state"] != "green"} == {}
    assert found["holds"] is True


@pytest.mark.both_lts
@pytest.mark.parametrize("breaches", [pytest.param(LOOKED_AT, id="looked-at"), pytest.param(TRIED, id="tried")])
def test_breaches_turn_their_lines_red(stage: Stage, certify: Certify, breaches: list[Breach]) -> None:
    """And say what each means and what to do."""
    with contextlib.ExitStack() as stack:
        for _, _, breach in breaches:
            stack.enter_context(breach(stage))
        found = certify(*(line for line, _, _ in breaches))
    for line, words, _ in breaches:
        finding = found[line]
        assert finding.state == "red", finding
        assert words in "\n".join(finding.evidence), finding
        assert finding.means
        assert finding.remedy


def test_a_red_line_is_an_exit_status_and_a_remedy(stage: Stage) -> None:
    with unfiltered(stage):
        done = stage.run("verify", "--check", "locked.filters", check=False)
    assert done.returncode == 9, done.stdout
    assert "replaces the clones" in done.stdout


def test_what_a_reset_moved_aside_and_could_not_delete_is_red(stage: Stage, certify: Certify) -> None:
    aside = f"/opt/gbo/data/valkey{ASIDE}"
    stage.exec("cache", "sh", "-c", f"mkdir {aside} && touch {aside}/stuck")
    file = stage.rootfs("cache") / aside.lstrip("/") / "stuck"
    immutable(file, True)
    try:
        found = certify("data.wiped")["data.wiped"]
    finally:
        immutable(file, False)
    assert found.state == "red"
    assert f"cache: {aside} was moved aside by a reset, and can't be deleted" in found.evidence
    assert certify("data.wiped")["data.wiped"].state == "green"
    assert not file.exists()


@contextlib.contextmanager
def replaced(stage: Stage, name: str, program: str, script: str) -> Iterator[None]:
    """A program of a clone is a shell script; `$real` is what it was."""
    stage.exec(name, "mv", program, f"{program}.real")
    text = f"#!/bin/sh\nreal={program}.real\n{script}\n"
    stage.exec(name, "sh", "-c", 'printf %s "$1" >"$2" && chmod 755 "$2"', "sh", text, program)
    try:
        yield
    finally:
        stage.exec(name, "mv", f"{program}.real", program)


@pytest.mark.both_lts
def test_what_was_not_seen_is_red(stage: Stage, certify: Certify) -> None:
    """In one clone Perl and find say nothing, in another Perl is killed in the middle of its answers."""
    with (
        replaced(stage, "cache", "/usr/bin/perl", "exit 0"),
        replaced(stage, "cache", "/usr/bin/find", "exit 0"),
        replaced(stage, "llm", "/usr/bin/find", "exit 0"),
        replaced(stage, "drive", "/usr/bin/perl", '"$real" "$@" | head -n 5'),
    ):
        found = certify()
    red = {line: "\n".join(each.evidence) for line, each in found.items() if each.state != "green"}
    reach = {"reach.production", "reach.twins", "reach.host", "reach.internet"}
    assert red.keys() == {*reach, "reach.stage", "data.wiped", "data.logs", "data.kept", "data.identity"}
    for line in reach:
        assert "cache: not looked at" in red[line]
        assert "drive: not looked at" in red[line]
        assert "cache did not even reach itself" in red[line]
        assert found[line].remedy
    assert "cache: not looked at" in red["data.wiped"]
    assert "llm: not looked at" in red["data.logs"]


@pytest.mark.both_lts
def test_a_program_that_a_clone_lacks_is_named_with_the_clone(stage: Stage, certify: Certify) -> None:
    """The others' connections are tried all the same."""
    stage.exec("cache", "mv", "/usr/bin/perl", "/usr/bin/perl.away")
    try:
        found = certify("reach.production", "reach.stage")
    finally:
        stage.exec("cache", "mv", "/usr/bin/perl.away", "/usr/bin/perl")
    for line in found.values():
        assert line.state == "red"
    evidence = "\n".join(found["reach.production"].evidence)
    assert "cache: perl, which every Debian has, said perl: there is no such program" in evidence
    assert "drive: " not in evidence


def test_a_clone_that_does_not_run_is_red_wherever_it_was_to_be_looked_into(stage: Stage, certify: Certify) -> None:
    """A container that is paused answers as little as one that is broken."""
    stage.ground.incus("pause", "llm", project=stage.project)
    try:
        found = certify()
    finally:
        stage.ground.incus("start", "llm", project=stage.project)
    seen = {line for line, each in found.items() if each.state == "green"}
    assert seen == {
        "exposure.devices",
        "exposure.networks",
        "exposure.host-rules",
        "locked.project",
        "locked.instances",
        "locked.filters",
        "data.wiped",  # llm has nothing that is wiped
        "production.unchanged",
        "production.events",
    }
    assert "llm is frozen" in "\n".join(found["reach.host"].evidence)


def test_a_limit_that_was_taken_away_is_red(stage: Stage, certify: Certify) -> None:
    """Behind Incus's back, in the storage driver. A small one, for which the pool has room."""
    plain = stage.config.read_text()
    stage.config.write_text(f'disk_floor = "1GB"\n{plain}\n[containers.llm]\ndisk_limit = "3GB"\n')
    folder = f"/var/lib/incus/storage-pools/pool/containers/{stage.project}_llm"
    try:
        stage.run("provision")
        green = certify("limits.disk")["limits.disk"]
        tried = green.evidence[0].partition(";")[0]
        assert green.state == "green"
        assert tried.startswith("refused to write past the limit")
        assert "llm" in tried
        stage.ground.lab_command("btrfs", "qgroup", "limit", "none", folder)
        red = certify("limits.disk")["limits.disk"]
        assert red.state == "red", red
        assert "past its limit of 3GB" in red.evidence[0]
    finally:
        stage.ground.lab_command("btrfs", "qgroup", "limit", "3000000000", folder)
        stage.config.write_text(plain)
        stage.run("provision")


CHANGING = """
import sys
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.progress import Silent
from pytest_stagegbo.incus.connection import Connection

class Progress(Silent):
    def begin(self, key, text):
        if key.startswith("network:"):
            body = {"config": {"user.changed": "during"}}
            other.wait(other.request("PATCH", ("instances", "cache"), params={"project": "default"}, body=body), "", 60)

context = open_context(parse(sys.argv[1:]))
other = Connection(context.loaded.settings.incus)
context.engine(Progress()).provision()
"""
"""`provision`, with somebody who changes production in the middle of it."""


def test_a_change_of_production_is_red_if_it_came_while_the_stage_was_made_and_shown_if_later(
    stage: Stage, certify: Certify
) -> None:
    ground, line = stage.ground, "production.unchanged"
    try:
        ground.incus("network", "unset", "stagebr0", "security.acls")  # something to do
        run([sys.executable, "-c", CHANGING, *stage.argv("provision")[3:]], env=stage.environment())
        during = certify(line)[line]
        assert during.state == "red"
        assert during.evidence[0] == "changed while the stage was provisioned: config cache changed"
    finally:
        ground.incus("config", "unset", "cache", "user.changed")
        ground.incus("network", "unset", "stagebr0", "security.acls")
        stage.run("provision")
    assert certify(line)[line].state == "green"
    ground.incus("config", "set", "cache", "user.changed=later")
    try:
        later = certify(line)[line]
    finally:
        ground.incus("config", "unset", "cache", "user.changed")
    assert later.state == "green"
    assert (
        "production changed since, by others (Incus does not keep by whom): config cache changed" in later.evidence[0]
    )


def events(certify: Certify, meanwhile: Callable[[VerifyContext], object]) -> Finding:
    """What the certificate says of production's events, when something happens while it is made."""

    def look(context: VerifyContext) -> Result:
        meanwhile(context)
        return Result((), "done", {"meanwhile": Sight(1, 1)})

    return certify("production.events", before=[Check("meanwhile", "", "", "", look)])["production.events"]


@pytest.mark.both_lts
def test_what_this_process_does_to_production_is_red_and_what_others_do_is_shown(
    stage: Stage, certify: Certify
) -> None:
    """To the daemon both are root; the other one acts while this process does nothing."""
    ground = stage.ground

    def by_this_process(context: VerifyContext) -> None:
        path, query = ("instances", "cache"), {"project": "default"}
        connection: Connection = context.writer._connection
        for value in ("by this process", ""):
            body = {"config": {"user.changed": value}}
            connection.wait(connection.request("PATCH", path, params=query, body=body), "changing cache", 60)

    red = events(certify, by_this_process)
    assert red.state == "red", red
    assert red.evidence[0].startswith("instance-updated /1.0/instances/cache of project default at 2")

    def by_another(context: VerifyContext) -> None:
        until(lambda: not context.writer._connection.writing(), "this process does nothing")
        ground.incus("config", "set", "cache", "user.changed=by another")
        ground.incus("config", "unset", "cache", "user.changed")
        monitor = context.monitor
        assert monitor is not None
        until(lambda: monitor.production == 2, "news of both have come before this process writes again")

    shown = events(certify, by_another)
    assert shown.state == "green", shown
    assert "2 of them of production; 2 by others: instance-updated /1.0/instances/cache" in shown.evidence[0]


def test_news_that_were_lost_are_red(certify: Certify) -> None:
    def lose(context: VerifyContext) -> None:
        assert context.monitor is not None
        context.monitor._source._stream._client.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined] # of a real one

    red = events(certify, lose)
    assert red.state == "red", red
    assert "events of the daemon were lost" in red.evidence[0]


def test_all_breaches_are_mended(certify: Certify) -> None:
    assert {name: found for name, found in certify().items() if found.state != "green"} == {}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            ("config", "device", "add", "guest", "web", "proxy", "listen=tcp::9", "connect=tcp::9"), id="proxy"
        ),
        pytest.param(("config", "device", "add", "guest", "host", "disk", "source=/root", "path=/mnt"), id="folder"),
        pytest.param(("config", "set", "guest", "security.privileged=true"), id="privileges"),
        pytest.param(("config", "set", "guest", "security.nesting=true"), id="nesting"),
        pytest.param(
            ("config", "device", "add", "guest", "eth1", "nic", "nictype=bridged", "parent=prodbr0"), id="production"
        ),
    ],
)
def test_the_server_refuses_what_reaches_out_of_a_locked_project(stage: Stage, arguments: tuple[str, ...]) -> None:
    ground = stage.ground
    ground.incus("init", "--empty", "guest", "-d", "root,size=50MiB", project=stage.project)
    try:
        ground.incus(*arguments, project=stage.project, check=False)
        guest = stage.clone("guest")
        assert set(guest["devices"]) == {"root"}
        assert not {"security.privileged", "security.nesting"} & set(guest["config"])
    finally:
        ground.incus("delete", "--force", "guest", project=stage.project)


@pytest.mark.both_lts
def test_a_device_that_the_server_lets_in_is_found(stage: Stage, certify: Certify) -> None:
    """Where the project has networks of its own, Incus takes a NIC of another kind: a cable to the host."""
    ground = stage.ground
    own = ground.get(f"projects/{stage.project}")["config"]["features.networks"] == "true"
    ground.incus("init", "--empty", "guest", "-d", "root,size=50MiB", project=stage.project)
    try:
        cable = ("config", "device", "add", "guest", "eth1", "nic", "nictype=p2p")
        ground.incus(*cable, project=stage.project, check=own)
        found = certify("locked.instances")["locked.instances"]
    finally:
        ground.incus("delete", "--force", "guest", project=stage.project)
    assert found.state == ("red" if own else "green")
    assert ("guest: " in found.evidence[0]) == own


def test_broadcasts_of_the_stage_do_not_reach_the_host(stage: Stage) -> None:
    """The host listens to its subnet's broadcast address as to its own."""
    hear = (
        "import socket, subprocess, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 9907)); s.settimeout(1)\n"
        "print('listening', flush=True)\n"
        "try:\n    print(s.recvfrom(100)[1][0])\nexcept TimeoutError:\n    print('nothing')\n"
    )
    say = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); "
        "[s.sendto(b'x', ('10.0.3.255', 9907)) for _ in range(3)]"
    )
    heard = _heard(stage, hear, lambda: stage.exec("llm", "python3", "-c", say, check=False))
    assert heard == "nothing"
    with own_list_is_empty(stage):  # the listener would have heard it
        stage.ground.incus("network", "set", "stagebr0", "security.acls.default.egress.action=allow")
        assert _heard(stage, hear, lambda: stage.exec("llm", "python3", "-c", say)) == f"10.0.3.{10 + SIX.index('llm')}"


def _heard(stage: Stage, hear: str, say: Callable[[], object]) -> str:
    argv = stage.ground.lab.exec_argv(["python3", "-c", hear])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        say()
        return process.stdout.readline().strip()
