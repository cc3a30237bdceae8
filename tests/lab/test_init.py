"""`stagegbo init` on productions that are laid out in five ways: what it writes is right, and nobody noticed it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from tests.certificates import make_pair
from tests.lab.support import Ground, run, until
from tests.lab.unprivileged import Unprivileged

from pytest_stagegbo.services import ask
from pytest_stagegbo.settings import ProbeSettings, load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.lab.conftest import InNetwork, StageGbo

    from pytest_stagegbo.lab import Lab

pytestmark = pytest.mark.lab
BESIDE = "test_own_pool"
"""These tests copy the lab's production, and those change it for a while: they run in one process."""

OTHER, STOPPED, SPREAD, ALIKE = "PROD-OTHER", "PROD-STOPPED", "PROD-SPREAD", "PROD-ALIKE"
STAGE = "STAGE-INIT"
NETWORKS = {"initprod0": "10.44.0.1/24", "initprod1": "10.45.0.1/24", "initprod2": "10.45.8.1/24"}
POOL = "initpool"
HTTP = "http.client.HTTPConnection(self.host, self.port"
HTTPS = "http.client.HTTPSConnection(self.host, self.port, context=__import__('ssl')._create_unverified_context()"
OLD = (10**9, 2 * 10**9)
"""Times of access and change after which any reading sets the time of access (mount(8), relatime)."""


@pytest.fixture(scope="module")
def ground(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The lab that everybody shares, with more productions in it."""
    with FileLock(lab.paths.lock(f"tests-init-{lab.paths.name}")):
        made = Ground(lab, tmp_path_factory.mktemp("init"))
        clear(made)
        for name, address in NETWORKS.items():
            made.incus("network", "create", name, f"ipv4.address={address}", "ipv4.nat=false", "ipv6.address=none")
        yield made
        clear(made)


def clear(ground: Ground) -> None:
    projects = sorted({OTHER, STOPPED, SPREAD, ALIKE} & ground.names("projects"))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ground.delete_project, projects))
    for network in sorted(NETWORKS.keys() & ground.names("networks")):
        ground.incus("network", "delete", network)
    if POOL in ground.names("storage-pools"):
        ground.incus("storage", "delete", POOL)


class Production:
    """A production of copies of the lab's containers, which do not run yet."""

    def __init__(self, ground: Ground, project: str, network: str, sources: Mapping[str, tuple[str, int]]) -> None:
        self.ground, self.project = ground, project
        ground.incus("project", "create", project, "-c", "features.images=false")
        devices = {
            "root": {"type": "disk", "path": "/", "pool": "pool"},
            "eth0": {"type": "nic", "name": "eth0", "network": network},
        }
        ground.put("profiles/default", {"config": {}, "devices": devices}, method="PUT", project=project)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda each: self._copy(each[0], each[1][0]), sources.items()))
        for name, (original, last) in sources.items():
            old, new = f"10.0.2.{10 + ORDER.index(original)}", f"{NETWORKS[network].rpartition('.')[0]}.{last}"
            self.edit(name, "etc/network/interfaces", {old: new, "10.0.2.1\n": f"{new.rpartition('.')[0]}.1\n"})

    def _copy(self, name: str, original: str) -> None:
        self.ground.incus("copy", original, name, "--instance-only", "--target-project", self.project)

    def rootfs(self, name: str) -> Path:
        return self.ground.rootfs(name, self.project)

    def edit(self, name: str, path: str, words: Mapping[str, str]) -> None:
        """Replace words in a file, which has each of them and keeps its owner."""
        file = self.rootfs(name) / path
        text = file.read_text()
        for old, new in words.items():
            assert old in text, (path, old)
            text = text.replace(old, new, 1)
        file.write_text(text)

    def move(self, name: str, unit: str, old: str, new: str) -> None:
        """Keep the data of a service in another folder."""
        (self.rootfs(name) / old.lstrip("/")).rename(self.rootfs(name) / new.lstrip("/"))
        self.edit(name, unit, {old: new})

    def old_files(self) -> dict[Path, int]:
        """Files, folders and links that init may read, all with an old time of access."""
        found = []
        for rootfs in map(self.rootfs, self.ground.instances(self.project)):
            for place in ("etc/systemd/system", "etc/network", "opt/gbo", "usr/lib/systemd/system"):
                found += [rootfs / place, *(rootfs / place).rglob("*")]
            found += [rootfs, rootfs / "etc", rootfs / "opt", rootfs / "etc/passwd"]
        for path in found:
            os.utime(path, OLD, follow_symlinks=False)
        return {path: path.lstat().st_atime_ns for path in found}


ORDER = ("system", "tables", "vault", "cache", "drive", "llm")


@pytest.fixture(scope="module")
def other(ground: Ground, in_network: InNetwork) -> Production:
    """One that runs, with other names and addresses, MinIO on 9000 and its data elsewhere, Vault with TLS, a second
    database, and no model server."""
    sources = {
        "bot": ("system", 50),
        "pg-main": ("tables", 11),
        "crm-db": ("tables", 20),
        "safe": ("vault", 12),
        "redis-1": ("cache", 13),
        "files": ("drive", 14),
    }
    made = Production(ground, OTHER, "initprod0", sources)
    made.edit("files", "etc/systemd/system/minio.service", {":9100": ":9000"})
    made.move("files", "etc/systemd/system/minio.service", "/opt/gbo/data/minio", "/srv/buckets")
    conf = made.rootfs("safe") / "opt/gbo/conf"
    owner = (conf / "vault.hcl").stat()
    for file in vars(make_pair(conf, "vault")).values():
        os.chown(file, owner.st_uid, owner.st_gid)
    tls = 'tls_cert_file = "/opt/gbo/conf/vault.crt"\n  tls_key_file = "/opt/gbo/conf/vault.key"'
    made.edit("safe", "opt/gbo/conf/vault.hcl", {"tls_disable = true": tls, "http://10.0.2.12": "https://10.44.0.12"})
    made.edit("bot", "opt/gbo/bin/.env", {"http://10.0.2.12": "https://10.44.0.12"})
    made.edit("bot", "opt/gbo/bin/botserver", {HTTP: HTTPS, ', "llm")': ")"})
    ground.incus("start", *sources, project=OTHER)
    open_vault(made)
    health = ProbeSettings("http", 5858, "/health")
    until(lambda: in_network(ask, health, "10.44.0.50").ready, "BotServer has reached the others", 60)
    return made


def open_vault(made: Production) -> None:
    """Unseal it, and have its secrets name the others' addresses."""
    init = json.loads(made.ground.lab.vault_init.read_text())
    flags = "-address=https://127.0.0.1:8200 -tls-skip-verify"
    vault = f"VAULT_TOKEN={init['root_token']} BAO_TOKEN={init['root_token']} /opt/gbo/bin/vault"
    keys = " ".join(init["unseal_keys_b64"][:3])
    places = {"tables": (11, 5432), "cache": (13, 6379), "drive": (14, 9000)}
    lines = [f"for key in {keys}; do {vault} operator unseal {flags} $key; done >/dev/null"]
    lines += [
        f"until {vault} kv patch {flags} -mount=secret gbo/{name} host=10.44.0.{last} port={port}; do sleep 0.1; done"
        for name, (last, port) in places.items()
    ]
    script = "\n".join(["exec 2>&1", f"until {vault} status {flags}; [ $? = 2 ]; do sleep 0.1; done", *lines])
    made.ground.exec("safe", "timeout", "60", "sh", "-c", script, project=OTHER)


@pytest.fixture(scope="module")
def stopped(ground: Ground) -> Production:
    """One that does not run, with other ports and folders: what it is like is in its files alone."""
    made = Production(
        ground, STOPPED, "initprod0", {"db": ("tables", 21), "cache": ("cache", 23), "drive": ("drive", 24)}
    )
    made.edit("cache", "opt/gbo/conf/valkey.conf", {"port 6379": "port 6380"})
    made.move("cache", "opt/gbo/conf/valkey.conf", "/opt/gbo/data/valkey", "/srv/valkey")
    made.edit("drive", "etc/systemd/system/minio.service", {":9100": ":9000"})
    made.edit("db", "opt/gbo/data/pgdata/postgresql.auto.conf", {"port = 5432": "port = 5433"})
    return made


@pytest.fixture(scope="module")
def spread(ground: Ground) -> Production:
    """One on two networks and two pools, one of which has no copy-on-write."""
    made = Production(ground, SPREAD, "initprod1", {"tables": ("tables", 11)})
    ground.incus("storage", "create", POOL, "dir")
    words = ("copy", "cache", "cache", "--instance-only", "--target-project", SPREAD, "--storage", POOL)
    ground.incus(*words)
    ground.incus("config", "device", "override", "cache", "eth0", "network=initprod2", project=SPREAD)
    file = ground.host / f"var/lib/incus/storage-pools/{POOL}/containers/{SPREAD}_cache/rootfs/etc/network/interfaces"
    file.write_text(file.read_text().replace("10.0.2.", "10.45.8."))
    return made


@pytest.fixture(scope="module")
def alike(ground: Ground) -> Production:
    """One with two databases that nothing tells apart, and with a container that is none of General Bots'."""
    made = Production(
        ground, ALIKE, "initprod0", {"first": ("tables", 31), "second": ("tables", 32), "web": ("llm", 33)}
    )
    units = made.rootfs("web") / "etc/systemd/system"
    (units / "llm.service").rename(units / "nginx.service")
    (units / "multi-user.target.wants/llm.service").unlink()
    return made


class Written:
    """What a run of init has written and said."""

    def __init__(self, stagegbo: StageGbo, file: Path, project: str = "") -> None:
        words = ["--source-project", project] if project else []
        done = stagegbo("--project", STAGE, *words, "init", "--yes", "--json", "-o", str(file), check=False)
        self.said: dict[str, Any] = json.loads(done.stdout or "{}")
        assert self.said.get("doctor"), done.stderr
        assert [each for each in self.said["doctor"] if each["state"] == "failed"] == []
        assert done.returncode == 0
        self.file = file
        self.values = tomllib.loads(file.read_text())
        self.settings = load(file, file.parent, {}).settings
        assert self.values.pop("project") == STAGE
        assert self.values.pop("source_project", "default") == (project or "default")
        # Whether somebody has the default ones depends on what else is in the lab.
        network = self.values.get("network", {})
        for name in ("name", "address"):
            network.pop(name, None)
        if not network:
            self.values.pop("network", None)


def of_instances(events: list[dict[str, Any]], project: str) -> list[dict[str, Any]]:
    """What happened to a production's instances. Other tests make and remove stages in this daemon meanwhile."""
    return [
        each for each in events if each.get("project") == project and each["metadata"]["action"].startswith("instance")
    ]


def test_a_production_as_the_defaults_are_needs_nothing(ground: Ground, stagegbo: StageGbo) -> None:
    found = Written(stagegbo, ground.folder / "default.toml")
    assert found.values == {}
    assert {each["name"]: each["source"] for each in found.said["containers"]} == {name: name for name in ORDER}
    assert {each["looked_at"] for each in found.said["containers"]} == {"running"}
    assert found.said["own_pool"].startswith("incus storage create ")


def test_what_runs_under_other_names_and_ports_is_found_and_can_be_cloned(
    other: Production, ground: Ground, stagegbo: StageGbo
) -> None:
    with ground.events() as events:
        found = Written(stagegbo, ground.folder / "other.toml", OTHER)
    assert of_instances(events, OTHER) == []
    assert set(other.ground.instances(OTHER)) == {each["source"] for each in found.said["containers"]}
    assert found.values == {
        "network": {"production": "10.44.0.0/24"},
        "containers": {
            "llm": False,
            "system": {
                "source": "bot",
                "production_address": "10.44.0.50",
                "needs": ["tables", "vault", "cache", "drive", "crm-db"],
            },
            "tables": {"source": "pg-main"},
            "vault": {"source": "safe", "probes": [{"protocol": "vault", "port": 8200, "tls": True}]},
            "cache": {"source": "redis-1"},
            "drive": {"source": "files", "wipe": ["/srv/buckets"], "probes": [{"protocol": "s3", "port": 9000}]},
            "crm-db": {
                "address": found.values["containers"]["crm-db"]["address"],
                "production_address": "10.44.0.20",
                "units": ["postgresql.service"],
                "probes": [{"protocol": "postgresql", "port": 5432}],
                "data": "/opt/gbo/data/pgdata",
                "reset": "hot",
            },
        },
    }
    (database,) = (each for each in found.said["containers"] if each["name"] == "tables")
    assert "bot is connected to it" in database["why"]
    secrets = [str(each) for each in ground.lab.credentials()["cache"].values() if len(str(each)) > 8]
    assert not [secret for secret in secrets if secret in json.dumps(found.said)]
    try:
        result = json.loads(stagegbo("--config", str(found.file), "provision", "--json").stdout)
        assert {name: each["state"] for name, each in result["containers"].items()} == dict.fromkeys(
            (*ORDER[:-1], "crm-db"), "ready"
        )
    finally:
        stagegbo("--config", str(found.file), "destroy", "--yes")


@pytest.mark.both_lts
def test_what_does_not_run_is_read_from_its_files_without_a_trace(
    stopped: Production, ground: Ground, stagegbo: StageGbo
) -> None:
    before = stopped.old_files()
    with ground.events() as events:
        found = Written(stagegbo, ground.folder / "stopped.toml", STOPPED)
    assert of_instances(events, STOPPED) == []
    assert [path for path, accessed in before.items() if path.lstat().st_atime_ns != accessed] == []
    conf = stopped.rootfs("cache") / "opt/gbo/conf/valkey.conf"
    conf.read_text()
    assert conf.stat().st_atime_ns != before[conf], "this file system keeps no times of access, so nothing was proven"
    assert found.values == {
        "network": {"production": "10.44.0.0/24"},
        "containers": {
            "system": False,
            "vault": False,
            "llm": False,
            "tables": {
                "source": "db",
                "production_address": "10.44.0.21",
                "probes": [{"protocol": "postgresql", "port": 5433}],
            },
            "cache": {
                "production_address": "10.44.0.23",
                "wipe": ["/srv/valkey"],
                "probes": [{"protocol": "valkey", "port": 6380}],
            },
            "drive": {"production_address": "10.44.0.24", "probes": [{"protocol": "s3", "port": 9000}]},
        },
    }


def test_two_networks_and_two_pools(spread: Production, ground: Ground, stagegbo: StageGbo) -> None:
    found = Written(stagegbo, ground.folder / "spread.toml", SPREAD)
    assert found.values == {
        "network": {"production": "10.45.0.0/20"},
        "containers": {
            **dict.fromkeys(("system", "vault", "drive", "llm"), False),
            "cache": {"production_address": "10.45.8.13"},  # that of tables is where the default is
        },
    }
    assert not found.settings.network.subnet.overlaps(found.settings.network.production)
    assert f"{POOL} has no copy-on-write" in found.said["text"].replace("\n#", "")
    assert spread.project == SPREAD


def test_what_nothing_tells_apart_is_asked_on_a_terminal(alike: Production, ground: Ground, lab: Lab) -> None:
    file = ground.folder / "alike.toml"
    words = ["--source-project", alike.project, "--project", STAGE, "init", "-o", str(file)]
    argv = [sys.executable, "-m", "pytest_stagegbo", "--lab", *words]
    mine, its = pty.openpty()
    try:
        done = subprocess.Popen(argv, stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        os.close(its)
        os.write(mine, b"third\nsecond\ny\n")
        out, err = done.communicate(timeout=120)
    finally:
        os.close(mine)
    assert done.returncode == 0, f"{out}{err}"
    assert err.count("which one is tables") == 2  # there is no third
    values = tomllib.loads(file.read_text())
    assert values["containers"]["tables"]["source"] == "second"
    assert values["containers"]["first"]["production_address"] == "10.44.0.31"
    assert "# Not cloned: web; " in file.read_text()
    assert lab.status().ready


def test_who_may_not_look_into_production_is_told_what_is_not_known(ground: Ground, lab: Lab) -> None:
    with tempfile.TemporaryDirectory() as folder, ground.events() as events:
        done = Unprivileged(lab, Path(folder)).run("--project", STAGE, "init", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert of_instances(events, "default") == []
    assert "containers" not in tomllib.loads(done.stdout)
    said = done.stdout.replace("\n#  ", "")
    assert "drive: what drive runs, and on which ports, can't be seen from here (only root" in said


def test_a_file_that_exists_is_replaced_only_if_that_is_said(ground: Ground, stagegbo: StageGbo) -> None:
    file = ground.folder / "mine.toml"
    file.write_text("# mine\n")
    words = ("--project", STAGE, "init", "--yes", "-o", str(file))
    assert stagegbo(*words, check=False).returncode == 2
    assert file.read_text() == "# mine\n"
    done = stagegbo(*words, "--force")
    assert f"wrote {file}" in done.stdout
    assert tomllib.loads(file.read_text())["project"] == STAGE
    assert run(["ls", "-A", str(file.parent)]).stdout.count("mine.toml") == 1  # and nothing is left beside it
