"""The certificate: green on a stage that nobody touched, and each line turned red by a deliberate breach."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.support import SIX

from pytest_stagegbo.verify.table import CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.lab.support import Stage

pytestmark = pytest.mark.lab

STAMP = "/var/lib/stagegbo/prepared"


def certificate(stage: Stage, *checks: str) -> dict[str, Any]:
    """What `verify --json` printed; its exit status goes with it."""
    options = [word for check in checks for word in ("--check", check)]
    done = stage.run("verify", "--json", *options, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["holds"] else 9), done.stderr
    return found


def states(stage: Stage) -> dict[str, str]:
    return {each["id"]: each["state"] for each in certificate(stage)["findings"]}


@contextlib.contextmanager
def lifted(stage: Stage) -> Iterator[None]:
    """The project's restrictions are gone, as somebody would do by hand."""
    stage.ground.incus("project", "set", stage.project, "restricted=false")
    try:
        yield
    finally:
        stage.ground.incus("project", "set", stage.project, "restricted=true")


@contextlib.contextmanager
def own_list_is_empty(stage: Stage) -> Iterator[None]:
    """The bridge's access list is not used any more."""
    incus = stage.ground.incus
    incus("network", "unset", "stagebr0", "security.acls")
    try:
        yield
    finally:
        stage.run("provision")


@contextlib.contextmanager
def no_twins(stage: Stage) -> Iterator[None]:
    """A clone's routes are gone and its bridge lets it out: it asks the host to forward to production."""
    with own_list_is_empty(stage):
        stage.exec("llm", "sh", "-c", "ip route del unreachable 10.0.2.0/24; ip link del twin0")
        try:
            yield
        finally:
            stage.exec("llm", "/var/lib/stagegbo/twins")


@contextlib.contextmanager
def a_way_out(stage: Stage) -> Iterator[None]:
    """The host has a way to the internet, which in the lab swallows what it is sent, and the list is not used."""
    ground = stage.ground
    ground.inside("ip", "link", "add", "outside0", "type", "veth", "peer", "name", "outside1")
    try:
        ground.inside("ip", "link", "set", "outside1", "up")
        ground.inside("ip", "link", "set", "outside0", "up", "arp", "off")
        ground.inside("ip", "route", "add", "default", "dev", "outside0")
        with own_list_is_empty(stage):
            yield
    finally:
        ground.inside("ip", "link", "del", "outside0")


@contextlib.contextmanager
def wrong_twin(stage: Stage) -> Iterator[None]:
    """For one clone, cache's address leads to drive."""
    mac = json.loads(stage.exec("drive", "ip", "-j", "link", "show", "twin0"))[0]["address"]
    stage.exec("drive", "ip", "address", "add", "10.0.2.13/32", "dev", "twin0")
    stage.exec("llm", "ip", "neighbour", "replace", "10.0.2.13", "lladdr", mac, "dev", "twin0", "nud", "permanent")
    try:
        yield
    finally:
        stage.exec("drive", "ip", "address", "del", "10.0.2.13/32", "dev", "twin0")
        stage.exec("llm", "/var/lib/stagegbo/twins")


@contextlib.contextmanager
def blackhole(stage: Stage) -> Iterator[None]:
    """The host's way to one clone is gone."""
    stage.ground.inside("ip", "route", "add", "blackhole", "10.0.3.15/32")
    try:
        yield
    finally:
        stage.ground.inside("ip", "route", "del", "blackhole", "10.0.3.15/32")


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
    with lifted(stage):
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


@contextlib.contextmanager
def no_limit(stage: Stage) -> Iterator[None]:
    """The storage driver's own limit is taken away behind Incus's back. A small one, for which the pool has room."""
    plain = stage.config.read_text()
    stage.config.write_text(f'disk_floor = "1GB"\n{plain}\n[containers.llm]\ndisk_limit = "3GB"\n')
    folder = f"/var/lib/incus/storage-pools/pool/containers/{stage.project}_llm"
    try:
        stage.run("provision")
        (finding,) = certificate(stage, "limits.disk")["findings"]
        assert finding["state"] == "green"
        tried = finding["evidence"][0].partition(";")[0]
        assert tried.startswith("refused to write past the limit")
        assert "llm" in tried
        stage.ground.lab_command("btrfs", "qgroup", "limit", "none", folder)
        yield
    finally:
        stage.ground.lab_command("btrfs", "qgroup", "limit", "3000000000", folder)
        stage.config.write_text(plain)
        stage.run("provision")


@contextlib.contextmanager
def touched(stage: Stage) -> Iterator[None]:
    """The note of the last provisioning says that a device of production was changed in the course of it."""
    key = "user.stagegbo.production"
    note = stage.ground.get(f"projects/{stage.project}")["config"][key]
    changed = json.dumps({**json.loads(note), "changed": ["devices cache changed"]})
    stage.ground.incus("project", "set", stage.project, f"{key}={changed}")
    try:
        yield
    finally:
        stage.ground.incus("project", "set", stage.project, f"{key}={note}")


BREACHES: dict[str, Callable[[Stage], AbstractContextManager[None]]] = {
    "reach.production": no_twins,
    "reach.twins": wrong_twin,
    "reach.host": own_list_is_empty,
    "reach.internet": a_way_out,
    "reach.stage": blackhole,
    "exposure.devices": proxy,
    "exposure.networks": forward,
    "exposure.bridge": peer,
    "exposure.host-rules": host_rule,
    "locked.project": lifted,
    "locked.instances": privileged,
    "locked.filters": unfiltered,
    "locked.addresses": address,
    "data.wiped": old_file("/opt/gbo/data/valkey", "cache"),
    "data.logs": old_file("/opt/gbo/logs", "llm"),
    "data.kept": lost,
    "data.identity": twin_identity,
    "limits.disk": no_limit,
    "production.unchanged": touched,
    "production.events": touched,
}


def test_every_line_has_a_breach() -> None:
    assert list(BREACHES) == [check.id for check in CHECKS]


def test_a_stage_that_nobody_touched_is_green(stage: Stage) -> None:
    found = certificate(stage)
    assert {each["id"]: each["evidence"] for each in found["findings"] if each["state"] != "green"} == {}
    assert found["holds"] is True


@pytest.mark.parametrize("line", list(BREACHES))
def test_a_breach_turns_its_line_red(stage: Stage, line: str) -> None:
    """And says what it means and what to do."""
    with BREACHES[line](stage):
        (finding,) = certificate(stage, line)["findings"]
    assert finding["state"] == "red", finding
    assert finding["means"]
    assert finding["remedy"]


def test_all_breaches_are_mended(stage: Stage) -> None:
    assert {name: state for name, state in states(stage).items() if state != "green"} == {}


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


class Watch:
    """Counts packets on their way from the stage's bridge to production's, before any other filter sees them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def seen(self) -> int:
        listed = json.loads(self._stage.ground.lab_command("nft", "-j", "list", "table", "inet", "watch"))["nftables"]
        rules = [each["rule"]["expr"] for each in listed if "rule" in each]
        return sum(each["counter"]["packets"] for rule in rules for each in rule if "counter" in each)


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    rule = 'iifname "stagebr0" oifname "prodbr0" counter'
    rules = f"table inet watch {{ chain way {{ type filter hook forward priority -400; {rule}; }}; }}"
    stage.ground.lab_command("nft", rules)
    yield Watch(stage)
    stage.ground.lab_command("nft", "delete", "table", "inet", "watch")


def session(stage: Stage, folder: Path, test: str, *options: str) -> tuple[int, str]:
    """Run pytest with one test on the stage; its exit status and what it printed."""
    (folder / "test_it.py").write_text(f"def test_it(stage_gbo, stage_llm):\n    {test}\n")
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--stage-lab", "--stage-verify"]
    done = subprocess.run(
        [*argv, f"--stage-config={stage.config}", *options, str(folder)],
        cwd=folder,
        env=stage.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_no_packet_goes_to_production_from_the_first_boot_to_the_end_of_a_session(
    stage: Stage, watch: Watch, tmp_path: Path
) -> None:
    """While the stage is made anew, its services work, a test runs and isolation is proven at both ends."""
    test = "stage_llm.exec('bash', '-c', 'true </dev/tcp/10.0.2.11/5432')"
    status, printed = session(stage, tmp_path, test, "--stage-provision=recreate")
    assert status == 0, printed
    assert watch.seen() == 0
    stage.exec("llm", "ip", "route", "replace", "10.0.2.11/32", "via", "10.0.3.1", "dev", "eth0", "src", "10.0.3.15")
    try:  # the watcher would have seen one, which the access list then rejects
        stage.exec("llm", "timeout", "1", "bash", "-c", "true </dev/tcp/10.0.2.11/5432", check=False)
        assert watch.seen() > 0
    finally:
        stage.exec("llm", "ip", "route", "del", "10.0.2.11/32", "via", "10.0.3.1", "dev", "eth0")
        stage.exec("llm", "/var/lib/stagegbo/twins")


def test_a_session_that_breaks_the_isolation_fails_and_so_do_the_tests_of_the_next(
    stage: Stage, tmp_path: Path
) -> None:
    test = "stage_llm.exec('ip', 'address', 'add', '10.0.2.15/24', 'dev', 'eth0')"
    try:
        status, printed = session(stage, tmp_path, test)
        assert status == 1, printed
        assert "1 passed" in printed
        assert "stage-gbo: isolation" in printed
        assert "locked.addresses: llm: eth0 has 10.0.2.15" in printed
        status, printed = session(stage, tmp_path, "pass")
        assert status == 1, printed
        assert "IsolationBroken" in printed
        assert "1 passed" not in printed
    finally:
        stage.exec("llm", "ip", "address", "del", "10.0.2.15/24", "dev", "eth0")
