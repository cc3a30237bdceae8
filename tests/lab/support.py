"""A lab whose production tests may change, and stages in it.

Tests of provisioning fill pools, break services and kill daemons, so they have a lab of their own beside the one that
everybody shares. Its six containers in project `default` stay as they were made; sources with traps are copies of
them in project `PROD-GBO1`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from filelock import FileLock
from tests.lab import forkserver

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.guest import PLACE
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.lab import Lab, api
from pytest_stagegbo.progress import Silent
from pytest_stagegbo.settings import IncusSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

NAME = "provisioning"
SIX = ("system", "tables", "vault", "cache", "drive", "llm")
TRAPS = "PROD-GBO1"
OWNER = "user.stagegbo.owner"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
"""Of what `--json` prints."""
VOLATILE = ("volatile.", "user.stagegbo.made", "user.stagegbo.production")


def held(text: str) -> dict[str, Any]:
    """A command's output, which holds the schema that it names."""
    found: dict[str, Any] = json.loads(text)
    name = found["schema"].removeprefix("stagegbo.").partition("/")[0]
    jsonschema.validate(found, json.loads((SCHEMAS / f"{name}.json").read_text()))
    return found


class Ground:
    """The lab that provisioning is tested in."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        """For settings files."""
        self.connection = Connection(IncusSettings(endpoint=str(lab.socket)))

    # -- the daemon

    def get(self, path: str, **query: str) -> Any:
        """`get("instances/cache", project="default", recursion="1")`: the API's own document."""
        words = "&".join(f"{name}={value}" for name, value in query.items())
        return api.get(self.lab.socket, f"/1.0/{path}?{words}")

    def incus(self, *args: str, project: str = "default", check: bool = True, stdin: str | None = None) -> str:
        """Run the `incus` client; what it printed."""
        done = run([*self.lab.exec_argv(["incus"]), "--project", project, *args], check=check, stdin=stdin)
        return done.stdout

    def put(self, path: str, document: Mapping[str, Any], *, method: str = "PATCH", project: str = "default") -> None:
        url = f"/1.0/{path}?project={project}"
        run(self.lab.exec_argv(["incus", "query", "--wait", "-X", method, "-d", json.dumps(document), url]))

    def exec(self, container: str, *argv: str, project: str = "default", check: bool = True) -> str:
        """Run a command in a container; what it printed on standard output.

        Recorded by the daemon: about one in thirty times the client misses what a short command printed.
        """
        path = ("instances", container)
        query = {"project": project}
        body = {"command": argv, "record-output": True, "interactive": False, "cwd": "/", "environment": {"PATH": PATH}}
        reply = self.connection.request("POST", (*path, "exec"), params=query, body=body)
        result = self.connection.wait(reply, shlex.join(argv), 60)
        texts = []
        for stream in ("1", "2"):
            recorded = (*path, "logs", "exec-output", Path(result["output"][stream]).name)
            texts.append(self.connection.read_bytes(*recorded, **query).decode())
            self.connection.request("DELETE", recorded, params=query)
        if check and result["return"]:
            status = f"{shlex.join(argv)} in {project}/{container} exited with {result['return']}"
            pytest.fail(f"{status}\n{texts[0]}{texts[1]}", pytrace=False)
        return texts[0]

    def lab_command(self, *argv: str) -> str:
        """Run a command of the lab's Debian on the lab's files; what it printed."""
        init = self.lab.status().pid
        namespaces = ["nsenter", f"--target={init}", "--net", "--mount", "--pid", "--"]
        return run([*namespaces, "env", f"PATH={PATH}", *argv]).stdout

    def inside(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the lab's network, or, if only the lab's Debian has it, in the lab."""
        return run(self.lab.exec_argv(list(argv)), check=check)

    def instances(self, project: str) -> dict[str, Any]:
        return {each["name"]: each for each in self.get("instances", project=project, recursion="1")}

    def names(self, what: str, project: str = "default") -> set[str]:
        """Names of all `projects`, `networks`, `network-acls`, `profiles` or `storage-pools`."""
        return {str(each["name"]) for each in self.get(what, project=project, recursion="1")}

    def volumes(self, pool: str = "pool") -> set[str]:
        """Every volume of production's pool, or of another one, as `project/type/name`."""
        found = self.get(f"storage-pools/{pool}/volumes", **{"all-projects": "true", "recursion": "1"})
        return {f"{each['project']}/{each['type']}/{each['name']}" for each in found}

    def subvolumes(self) -> set[str]:
        """What the pool's file system really holds, whether the daemon knows it or not."""
        folders = ("containers", "containers-snapshots", "custom")
        return {f"{folder}/{each.name}" for folder in folders for each in (self.pool / folder).iterdir()}

    # -- files

    @property
    def host(self) -> Path:
        """The lab's files, from this machine."""
        return Path(f"/proc/{self.lab.status().pid}/root")

    @property
    def pool(self) -> Path:
        return self.host / "var/lib/incus/storage-pools/pool"

    def rootfs(self, container: str, project: str = "default") -> Path:
        """A container's files, running or not, with owners as the container sees them."""
        name = container if project == "default" else f"{project}_{container}"
        return self.pool / "containers" / name / "rootfs"

    def own_bytes(self, container: str, project: str = "default") -> int:
        """What btrfs counts as a container's alone."""
        folder = f"/var/lib/incus/storage-pools/pool/containers/{project}_{container}"
        self.lab_command("btrfs", "filesystem", "sync", folder)
        return int(self.lab_command("btrfs", "qgroup", "show", "-f", "--raw", folder).splitlines()[-1].split()[2])

    # -- stages

    def stage(self, project: str, network: str = "stagebr0", subnet: int = 3, settings: str = "") -> Stage:
        """A stage with settings of its own; `settings` are further lines of TOML, top-level keys first."""
        text = (
            f'project = "{project}"\n{settings}\n[network]\nname = "{network}"\naddress = "10.0.{subnet}.1/24"\n'
            if project != "STAGE-GBO"
            else settings
        )
        file = self.folder / f"{project}.toml"
        file.write_text(text)
        return Stage(self, project, file)

    def reset(self) -> None:
        """Delete everything that tests make: what is left is production as the lab makes it."""
        for project in sorted(self.names("projects") - {"default"}):
            self.delete_project(project)
        for name in set(self.instances("default")) - set(SIX):
            self.incus("delete", "--force", name)
        for network in self.get("networks", recursion="1"):
            if network["managed"] and network["name"] != "prodbr0":
                self.incus("network", "delete", network["name"])
        for acl in self.names("network-acls"):
            self.incus("network", "acl", "delete", acl)
        for pool in self.names("storage-pools") - {"pool"}:
            self.incus("storage", "delete", pool)

    def delete_project(self, project: str) -> None:
        """With all that is in it."""
        names = sorted(self.instances(project))
        if names:
            for name in names:
                self.allow_deletion(self.rootfs(name, project))
            self.incus("delete", "--force", *names, project=project)
        for volume in self.get("storage-pools/pool/volumes/custom", project=project, recursion="1"):
            self.incus("storage", "volume", "delete", "pool", volume["name"], project=project)
        for profile in sorted(self.names("profiles", project) - {"default"}):
            self.incus("profile", "delete", profile, project=project)
        self.incus("project", "delete", project)

    def allow_deletion(self, rootfs: Path) -> None:
        for file in rootfs.glob("opt/gbo/data/valkey/immutable*"):
            immutable(file, False)

    @contextlib.contextmanager
    def events(self) -> Iterator[list[dict[str, Any]]]:
        """Lifecycle events of all projects while the block runs; complete once it has ended.

        Without those of leases, which say which host uses a stage: a command has one before it looks at anything.

        A project that is made and deleted at both ends proves that nothing was lost in between.
        """
        argv = ["incus", "monitor", "--all-projects", "--type", "lifecycle", "--format", "json"]
        found: list[dict[str, Any]] = []
        seen = threading.Condition()
        with subprocess.Popen(self.lab.exec_argv(argv), stdout=subprocess.PIPE, text=True) as process:

            def read() -> None:
                assert process.stdout is not None
                for line in process.stdout:
                    if not line.strip():
                        continue
                    with seen:
                        found.append(json.loads(line))
                        seen.notify()

            def mark(name: str, tries: int) -> None:
                """The monitor may not listen yet when the first marks are made."""
                for _ in range(tries):
                    self.incus("project", "create", name)
                    self.incus("project", "delete", name)
                    with seen:
                        if seen.wait_for(lambda: any(_named(event, name) for event in found), timeout=5 / tries):
                            return
                raise AssertionError(f"no event about {name}")

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            try:
                mark("sentinel-begin", 50)
                with seen:
                    found.clear()
                yield found
                mark("sentinel-end", 1)
            finally:
                process.terminate()
                reader.join(5)
        found[:] = [event for event in found if "sentinel" not in event["metadata"]["source"] and not _of_lease(event)]


def _of_lease(event: dict[str, Any]) -> bool:
    return "-LEASES" in event["metadata"]["source"] or str(event.get("project", "")).endswith("-LEASES")


def _named(event: dict[str, Any], name: str) -> bool:
    return bool(event["metadata"]["source"].split("?")[0].endswith(f"/{name}"))


@dataclass(frozen=True)
class Stage:
    """One stage of the ground, with a settings file of its own."""

    ground: Ground
    project: str
    config: Path

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "pytest_stagegbo", "--lab", "--config", str(self.config), *args]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        lab = self.ground.lab.environment()
        return {**os.environ, **{name: lab[name] for name in lab if name.startswith("STAGEGBO_LAB")}, **(extra or {})}

    def run(
        self, *args: str, check: bool = True, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """`run("provision", "--json")`; any end but status 0 fails the test unless `check=False`."""
        done = forkserver.run(self.argv(*args), env=self.environment(env), timeout=timeout)
        return checked(done) if check else done

    def json(self, *args: str, env: Mapping[str, str] | None = None) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*args, "--json", env=env).stdout)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a command and don't wait for it."""
        return subprocess.Popen(
            self.argv(*args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )

    def exec(self, name: str, *argv: str, check: bool = True) -> str:
        return self.ground.exec(name, *argv, project=self.project, check=check)

    def rootfs(self, name: str) -> Path:
        return self.ground.rootfs(name, self.project)

    def clone(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ground.get(f"instances/{name}", project=self.project)
        return found

    def sql(self, query: str) -> str:
        return sql(self.ground, query, self.project)

    def valkey_keys(self, name: str = "cache", pattern: str = "*") -> list[str]:
        """Valkey's keys."""
        words = ["valkey-cli", "--raw", "KEYS", pattern]
        return self.exec(name, "env", f"REDISCLI_AUTH={self.password}", *words).split()

    @property
    def password(self) -> str:
        return str(self.ground.lab.credentials()["cache"]["password"])

    def properties(self, name: str, unit: str) -> dict[str, str]:
        """What systemd in a clone says of a unit."""
        lines = self.exec(name, "systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def documents(self) -> dict[str, Any]:
        """Everything of the stage that the daemon knows, without what differs from one copy to the next.

        Flat, so that a comparison that fails shows what differs.
        """
        ground = self.ground
        network = tomlname(self.config)
        found: dict[str, Any] = {"project": ground.get(f"projects/{self.project}")}
        found["profile"] = ground.get("profiles/default", project=self.project)
        found["network"] = ground.get(f"networks/{network}")
        found["acl"] = ground.get(f"network-acls/{network}-isolation")
        found["instances"] = ground.instances(self.project)
        return flat(steady(found))

    def destroy(self) -> None:
        self.run("destroy", "--yes")


@dataclass(frozen=True)
class FirstRun:
    """How production was before STAGE-GBO was provisioned, what happened meanwhile, and how it was after that."""

    stage: Stage
    result: dict[str, Any]
    """What `provision --json` printed."""
    output: str
    """What it printed on standard error."""
    before: dict[str, Any]
    after: dict[str, Any]
    beats: tuple[int, int]
    """Rows that production's BotServer had written to production's database before and after."""
    events: list[dict[str, Any]]
    client: tuple[str, str]
    """What the `incus` client has set, before and after."""
    own: dict[str, int]
    """Bytes that each clone has for itself, as btrfs counts them, once it answered."""
    packets: int
    """From the stage to production, meanwhile."""


def first_run(ground: Ground) -> FirstRun:
    stage = ground.stage("STAGE-GBO")
    before, beats, client = production(ground), heartbeats(ground), client_settings(ground)
    with ground.events() as events, counted(ground) as packets:
        done = stage.run("provision", "--json")
        seen = packets()
    own = {name: ground.own_bytes(name, stage.project) for name in SIX}
    return FirstRun(
        stage=stage,
        result=json.loads(done.stdout),
        output=done.stderr,
        before=before,
        after=production(ground),
        beats=(beats, heartbeats(ground)),
        events=events,
        client=(client, client_settings(ground)),
        own=own,
        packets=seen,
    )


@contextlib.contextmanager
def counted(ground: Ground) -> Iterator[Callable[[], int]]:
    """Counts packets from the stage's bridge to production's, and to the host at production's addresses, before any
    other filter sees them."""
    ways = {
        "forward": 'iifname "stagebr0" oifname "prodbr0" counter',
        "input": 'iifname "stagebr0" ip daddr 10.0.2.0/24 counter',
    }
    chains = " ".join(f"chain {way} {{ type filter hook {way} priority -400; {rule}; }};" for way, rule in ways.items())
    ground.lab_command("nft", f"table inet counted {{ {chains} }}")

    def packets() -> int:
        listed = json.loads(ground.lab_command("nft", "-j", "list", "table", "inet", "counted"))["nftables"]
        rules = [each["rule"]["expr"] for each in listed if "rule" in each]
        return sum(each["counter"]["packets"] for rule in rules for each in rule if "counter" in each)

    try:
        yield packets
    finally:
        ground.lab_command("nft", "delete", "table", "inet", "counted")


def production(ground: Ground) -> dict[str, Any]:
    """Everything that the daemon knows about production, its files' checksums included; see also `heartbeats`."""
    project = {"project": "default"}
    documents: dict[str, Any] = {
        "instances": ground.get("instances", recursion="1", **project),
        "states": {name: ground.get(f"instances/{name}/state", **project) for name in SIX},
        "snapshots": {name: ground.get(f"instances/{name}/snapshots", **project) for name in SIX},
        "profiles": ground.get("profiles", recursion="1", **project),
        "network": ground.get("networks/prodbr0"),
        "volumes": sorted(name for name in ground.volumes() if name.startswith("default/")),
    }
    for state in documents["states"].values():  # running on is what production is for
        for key in ("cpu", "memory", "disk", "network", "processes"):
            state.pop(key)
    documents["network"].pop("used_by")  # Incus 6.0.4 lists other instances each time it is asked
    documents["files"] = {name: checksums(ground.rootfs(name)) for name in SIX}
    return documents


QUIET = ("etc", "opt/gbo/conf", "opt/gbo/bin", "opt/gbo/models", "opt/gbo/work/retired.gbai", "opt/gbo/logs/archive")
"""Folders that nothing in a running container of production writes to."""
LARGE = 1 << 20


def checksums(rootfs: Path, folders: Sequence[str] = QUIET, *, large: int = LARGE) -> dict[str, str]:
    """SHA-256 of each file below some folders; of those with more bytes than `large`, size and time of change."""
    found = {}
    for folder in folders:
        for path in sorted((rootfs / folder).rglob("*")):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                small = status.st_size <= large
                seen = (
                    hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{status.st_size} {status.st_mtime_ns}"
                )
                found[str(path.relative_to(rootfs))] = seen
    return found


def heartbeats(ground: Ground) -> int:
    return int(sql(ground, "SELECT count(*) FROM heartbeat"))


def client_settings(ground: Ground) -> str:
    """Its remotes, and the project that it has chosen."""
    projects = ground.incus("project", "list", "--format=csv", "--columns=n").splitlines()
    (chosen,) = (each for each in projects if each.endswith(" (current)"))
    return ground.incus("remote", "list", "--format=json") + chosen


def own_lab() -> Lab:
    """The lab that tests may change, of the version that the environment means."""
    version = Lab.find().paths.version
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGEGBO_LAB_NAME", f"{NAME}-{version}")
        return Lab.find(version)


@contextlib.contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    """The lab, one test run at a time."""
    lab = own_lab()
    (lab.paths.state / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(lab.paths.lock(f"tests-{lab.paths.name}")):
        found_up = lab.status().ready
        try:
            if found_up:  # a run that was killed may have left interfaces and routes in its network
                lab.down()
            lab.up(Silent())
        except StageGboError as error:
            pytest.fail(str(error), pytrace=False)
        made = Ground(lab, folder)
        made.reset()
        yield made
        if not found_up:
            lab.down(purge=True)


def tomlname(config: Path) -> str:
    lines = config.read_text().partition("[network]")[2].splitlines()
    return next((line.split('"')[1] for line in lines if line.startswith("name")), "stagebr0")


def flat(document: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"/a/b": 1}`."""
    if not isinstance(document, dict):
        return {path: document}
    found: dict[str, Any] = {}
    for key, value in document.items():
        found.update(flat(value, f"{path}/{key}"))
    return found


def steady(document: Any) -> Any:
    """A document of the API without identities and times."""
    if isinstance(document, dict):
        unsteady = {
            "created_at",
            "last_used_at",
            "etag",
            "used_by",
            marks.ORIGIN,
            marks.INSTANCE,
            marks.BOOTED,
            "environment.SYSTEMD_GENERATOR_PATH",
            "environment.SYSTEMD_ENVIRONMENT_GENERATOR_PATH",
            f"environment.{PLACE}",
        }
        return {
            key: steady(value)
            for key, value in document.items()
            if key not in unsteady and not key.startswith(VOLATILE)
        }
    if isinstance(document, list):
        return [steady(each) for each in document]
    return document


def sql(ground: Ground, query: str, project: str = "default") -> str:
    """Ask a database `botserver`; rows of columns with `|` in between."""
    words = ["runuser", "-u", "postgres", "--", "psql", "-XqAt", "botserver", "-c", query]
    return ground.exec("tables", *words, project=project).strip()


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv, input=stdin or "", capture_output=True, text=True, env=env, timeout=timeout, check=False
    )
    return checked(done) if check else done


def checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Fail the test unless the status is 0."""
    if done.returncode:
        printed = f"{done.stdout}{done.stderr}".strip()
        pytest.fail(f"{shlex.join(done.args)} exited with {done.returncode}\n{printed}", pytrace=False)
    return done


def until(question: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Ask until the answer is true; the answer."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s still waiting until {what}")
        time.sleep(0.02)
    return answer


def immutable(file: Path, value: bool) -> None:
    """Whether nobody may delete or change a file, not even root (chattr +i)."""
    get_flags, set_flags, flag = 0x80086601, 0x40086602, 0x10
    descriptor = os.open(file, os.O_RDONLY)
    try:
        flags = struct.unpack("i", fcntl.ioctl(descriptor, get_flags, bytes(8))[:4])[0]
        flags = flags | flag if value else flags & ~flag
        fcntl.ioctl(descriptor, set_flags, struct.pack("i4x", flags))
    finally:
        os.close(descriptor)


def tree(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Type and mode, owner and group of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid)
    return found
