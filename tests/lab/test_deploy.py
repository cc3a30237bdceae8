"""A build in place of production's: what it gets, what is clean with it, and that none is ever left half done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from tests.lab import forkserver
from tests.lab.support import until

from pytest_stagegbo.lab import api
from pytest_stagegbo.lab.builds import MIGRATION, build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.conftest import Incus, InNetwork, StageGbo

    from pytest_stagegbo.lab import Lab

pytestmark = pytest.mark.lab
ON_THE_LABS_STAGE = True
"""All of it shares STAGE-GBO with the tests that have `provisioned`, so no two of them run at once."""

BUILDS = {
    "second": build("2", MIGRATION),
    "third": build("3", {**MIGRATION, "3-tags": "CREATE TABLE tags (name text)"}),
    "crashes": build("4", end="crash"),
    "hangs": build("5", end="hang"),
    "migrates and crashes": build("6", MIGRATION, end="crash"),
    "large": build("7", size=150 << 20),
}
KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.parser import parse

point, arguments = sys.argv[1], parse(sys.argv[2:])

def reached(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

class Progress:
    def begin(self, key, text): reached(f"begin {key}")
    def end(self, key, error=None): reached(f"end {key}")
    def note(self, text): pass

deployments = open_context(arguments).engine(Progress()).deployments
if arguments.undo:
    deployments.undo(arguments.name)
else:
    files = dict(word.split("=", 1) for word in arguments.files)
    deployments.deploy(arguments.name, {name: Path(file) for name, file in files.items()})
"""


class Deployed:
    """STAGE-GBO, into which builds are deployed."""

    def __init__(self, stagegbo: StageGbo, incus: Incus, in_network: InNetwork, folder: Path) -> None:
        self.run = stagegbo
        self._incus = incus
        self._in_network = in_network
        self.files = {name: folder / name.replace(" ", "-") for name in BUILDS}
        for name, file in self.files.items():
            file.write_bytes(BUILDS[name])

    def deploy(
        self, name: str, check: bool = True, path: str = "botserver", **env: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run("deploy", "system", f"{path}={self.files[name]}", check=check, env=env)

    def shell(self, container: str, script: str) -> str:
        """What a script printed; again where the client missed it, which it sometimes does of short commands."""
        argv = ("exec", container, "--", "sh", "-c", f"{{ {script}; }} && echo END")

        def ask() -> str:
            said = self._incus(*argv, project="STAGE-GBO").stdout.rstrip()
            return said if said.endswith("END") else ""

        return str(until(ask, f"all is heard of {script}")).removesuffix("END").strip()

    def sql(self, query: str) -> str:
        return self.shell("tables", f'cd / && runuser -u postgres -- psql -XqAt botserver -c "{query}"')

    def version(self) -> str:
        def ask() -> str:
            try:
                answer = urllib.request.urlopen("http://10.0.3.10:5858/health", timeout=10)
            except urllib.error.HTTPError as error:  # its database was reset just now
                answer = error
            with answer:
                return str(json.load(answer)["version"])

        return self._in_network(ask)

    def seen(self) -> dict[str, Any]:
        """All that a deployment changes, but for what differs from one start to the next."""
        return {
            "files": self.shell("system", r"cd /opt/gbo/bin && find . -printf '%p %m %u %g %s\n' | sort"),
            "copies": self.shell(
                "tables", "cd /opt/gbo/data && ls -d pgdata pgdata.stagegbo-golden pgdata.stagegbo-build*/; true"
            ),
            "columns": self.sql("SELECT count(*) FROM pg_attribute WHERE attname = 'mood'"),
            "tables": self.sql(
                "SELECT relname FROM pg_class WHERE relname IN ('migrations', 'tags', 'junk') ORDER BY 1"
            ),
            "version": self.version(),
            "builds": [
                (each["sha256"], each["state"])
                for each in json.loads(self.run("deploy", "--list", "--json").stdout)["builds"]
            ],
        }


@pytest.fixture(scope="module")
def stage(
    lab: Lab, stagegbo: StageGbo, incus: Incus, in_network: InNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    with FileLock(lab.paths.lock(f"tests-deploy-{lab.paths.name}")):
        stagegbo("provision")
        stagegbo("deploy", "system", "--undo")
        yield Deployed(stagegbo, incus, in_network, tmp_path_factory.mktemp("builds"))
        stagegbo("provision")
        stagegbo("deploy", "system", "--undo")


@pytest.fixture(scope="module")
def production(stage: Deployed) -> dict[str, Any]:
    """What the stage is like without a build."""
    stage.run("deploy", "system", "--undo")
    return stage.seen()


@pytest.fixture(scope="module")
def second(stage: Deployed, production: dict[str, Any]) -> dict[str, Any]:
    """What it is like with the second build, which is deployed."""
    assert production["version"] == "1"
    stage.deploy("second")
    return stage.seen()


@pytest.mark.both_lts
def test_a_build_runs_and_what_it_has_migrated_is_clean(
    stage: Deployed, production: dict[str, Any], second: dict[str, Any]
) -> None:
    assert second["version"] == "2"
    assert (production["columns"], second["columns"]) == ("0", "1")
    # Owner and mode are the old file's, and production's own is kept.
    found = dict(line.split(" ", 1) for line in second["files"].splitlines())
    before = dict(line.split(" ", 1) for line in production["files"].splitlines())
    assert found["./botserver"].split()[:3] == before["./botserver"].split()[:3] == ["755", "gbo", "gbo"]
    assert found["./.stagegbo-botserver.production"] == before["./botserver"]
    stage.sql("CREATE TABLE junk (); DELETE FROM bots")
    done = json.loads(stage.run("reset", "tables", "--json").stdout)
    assert done["methods"] == {"tables": {"method": "spare"}}, "it was prepared behind the deployment"
    assert stage.sql("SELECT mood FROM bots") == "calm\ncalm"
    assert stage.seen() == second


def test_the_same_build_again_restarts_nothing(stage: Deployed, second: dict[str, Any]) -> None:
    process = stage.shell("system", "systemctl show -p MainPID botserver")
    assert "nothing to change" in stage.deploy("second").stdout
    assert (
        stage.run("deploy", "system", f"botserver={stage.files['second']}", "--dry-run").stdout == "nothing to change\n"
    )
    assert stage.shell("system", "systemctl show -p MainPID botserver") == process
    assert stage.seen() == second


def test_a_file_that_somebody_changed_is_not_the_same_build(stage: Deployed, second: dict[str, Any]) -> None:
    stage.shell("system", "touch -d 2001-01-01 /opt/gbo/bin/botserver")
    assert "nothing to change" not in stage.deploy("second").stdout
    assert stage.seen() == second


def test_what_runs_is_said(stage: Deployed, second: dict[str, Any]) -> None:
    ((digest, _),) = second["builds"]
    assert f"system runs botserver {digest[:12]}, deployed" in stage.run("status").stdout
    status = json.loads(stage.run("status", "--json").stdout)
    (system,) = [each for each in status["containers"] if each["name"] == "system"]
    (file,) = system["deployed"]
    assert (file["name"], file["sha256"], file["size"]) == ("botserver", digest, len(BUILDS["second"]))
    assert file["by"].count("@") == 1


def test_the_next_build_starts_on_productions_data(stage: Deployed, second: dict[str, Any]) -> None:
    """Its migration can't be done twice: it would fail on what the second has made. A baseline is of one build."""
    stage.run("baseline", "save", "of-second", "--containers", "tables")
    stage.deploy("third")
    refused = stage.run("baseline", "use", "of-second", check=False)
    assert refused.returncode == 1
    assert "it is of the build system botserver" in refused.stderr
    third = stage.seen()
    assert (third["version"], third["tables"], third["columns"]) == ("3", "migrations\ntags", "1")
    stage.deploy("second")
    stage.run("baseline", "use", "of-second")
    assert stage.seen() == second
    stage.run("baseline", "delete", "of-second")


@pytest.mark.both_lts
@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("crashes", "build 4 panicked: there is no setting GBO_MODE", id="at its start"),
        pytest.param("hangs", "build 5 waits for what never comes", id="hangs"),
        pytest.param(
            "migrates and crashes", "build 6 panicked: there is no setting GBO_MODE", id="once it has migrated"
        ),
    ],
)
def test_a_build_that_does_not_come_up_is_rolled_back(
    stage: Deployed, second: dict[str, Any], name: str, said: str
) -> None:
    done = stage.deploy(name, check=False, STAGEGBO_TIMEOUTS__READY="15")
    assert done.returncode == 11
    assert "what ran before runs again" in done.stderr
    assert said in done.stderr
    assert stage.seen() == second


def test_the_first_build_that_fails_leaves_production(
    stage: Deployed, production: dict[str, Any], second: dict[str, Any]
) -> None:
    stage.run("deploy", "system", "--undo")
    assert stage.seen() == production
    done = stage.deploy("migrates and crashes", check=False)
    assert done.returncode == 11
    assert stage.seen() == production
    assert "runs production's files" in stage.run("deploy", "system", "--undo").stdout
    stage.deploy("second")
    assert stage.seen() == second


@pytest.mark.both_lts
@pytest.mark.parametrize(
    ("point", "names", "mending"),
    [
        pytest.param("end receive:/opt/gbo/bin/botserver", "system", ("reset", "system"), id="received"),
        pytest.param("end rewind:tables", "system", ("provision",), id="on production's data"),
        pytest.param("end first-start:system", "system", ("reset", "tables"), id="migrated"),
        pytest.param("end keep:tables", "system", ("provision",), id="clean state moved"),
        pytest.param("end start:system", "system", ("reset", "system", "tables"), id="not marked as done"),
    ],
)
def test_a_deployment_that_is_killed_is_rolled_back_by_the_next_run(
    stage: Deployed, second: dict[str, Any], point: str, names: str, mending: tuple[str, ...]
) -> None:
    kill_at(point, "deploy", names, f"botserver={stage.files['third']}")
    status = json.loads(stage.run("status", "--json", check=False).stdout)
    assert {each["state"] for each in status["containers"] if each["name"] == "system"} == {"deploying"}
    stage.run(*mending)
    assert stage.seen() == second


@pytest.mark.both_lts
@pytest.mark.parametrize("point", ["end production:system", "end start:system"])
def test_an_undo_that_is_killed_is_finished_by_the_next_run(
    stage: Deployed, production: dict[str, Any], second: dict[str, Any], point: str
) -> None:
    stage.deploy("second")
    assert stage.seen() == second
    kill_at(point, "deploy", "system", "--undo")
    stage.run("reset", "system")
    assert stage.seen() == production


def test_of_two_deployments_at_once_the_second_waits(stage: Deployed, lab: Lab) -> None:
    assert lab.paths.name
    started = [
        subprocess.Popen(argv("deploy", "system", f"botserver={stage.files[name]}")) for name in ("second", "third")
    ]
    for process in started:
        assert process.wait(120) == 0
    (build,) = json.loads(stage.run("deploy", "--list", "--json").stdout)["builds"]
    expected = {"second": "2", "third": "3"}
    (name,) = [name for name in expected if build["source"].endswith(name)]
    assert (stage.version(), build["state"]) == (expected[name], "done")


SESSION = """
import json
import urllib.request


def test_the_build_answers(stage_system, record_property):
    with urllib.request.urlopen(f"{stage_system.endpoints[0].url}/health", timeout=10) as answer:
        assert json.load(answer)["version"] == "2"


def test_another_worker_has_it_too(stage_system):
    test_the_build_answers(stage_system, None)
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_session_deploys_before_its_first_test(stage: Deployed, lab: Lab, tmp_path: Path, workers: str) -> None:
    stage.run("deploy", "system", "--undo")
    (tmp_path / "test_build.py").write_text(SESSION)
    shutil.copy(stage.files["second"], tmp_path / "built")
    words = ["-p", "no:cacheprovider", "--stage-lab", "--stage-deploy=botserver=built", f"-n{workers}", "-v"]
    words.append("--junitxml=report.xml")
    done = forkserver.run(
        [sys.executable, "-m", "pytest", *words], env={**os.environ, **lab.environment()}, cwd=tmp_path, timeout=200
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    (build,) = json.loads(stage.run("deploy", "--list", "--json").stdout)["builds"]
    assert f"system runs botserver {build['sha256'][:12]}, deployed {build['since']}" in done.stdout
    assert f'name="stage.build" value="system:botserver {build["sha256"]}"' in (tmp_path / "report.xml").read_text()


def test_a_command_finds_its_build(stage: Deployed) -> None:
    stage.run("deploy", "system", "--undo")
    asks = ("--", "sh", "-c", 'curl -s "$BOTSERVER_URL/health"')
    done = stage.run("run", "--deploy", f"botserver={os.path.relpath(stage.files['second'])}", *asks)
    assert json.loads(done.stdout)["version"] == "2"
    wrong = stage.run("run", "--deploy", "botservr=x", *asks, check=False)
    assert (wrong.returncode, "does not say which file goes where" in wrong.stderr) == (2, True), wrong.stderr


def test_a_clone_that_is_replaced_gets_its_build_again(stage: Deployed, second: dict[str, Any]) -> None:
    """Both it and the database, or one of them; also if the run is killed before the new clone has it."""
    stage.deploy("second")
    since = deployed_since(stage)
    stage.run("provision", "--refresh", "system", "tables")
    assert stage.seen() == second
    assert deployed_since(stage) == since
    for name in ("system", "tables"):
        stage.run("provision", "--refresh", name)
        assert stage.seen() == second
    stage.run("reset", "tables")
    assert stage.seen() == second


def test_a_clone_that_a_reset_restores_gets_its_build_again(stage: Deployed, second: dict[str, Any]) -> None:
    stage.deploy("second")
    since = deployed_since(stage)
    restore = {"STAGEGBO_CONTAINERS__SYSTEM__RESET": "restore"}
    stage.run("provision", env=restore)
    done = json.loads(stage.run("reset", "system", "--json", env=restore).stdout)
    assert done["methods"]["system"]["method"] == "restore"
    assert stage.seen() == second
    stage.run("provision")
    assert (stage.seen(), deployed_since(stage)) == (second, since)


def test_a_database_that_is_restored_is_migrated_again(stage: Deployed, second: dict[str, Any]) -> None:
    stage.deploy("second")
    stage.shell("tables", "rm -rf /opt/gbo/data/pgdata.stagegbo-*")
    assert json.loads(stage.run("reset", "tables", "--json").stdout)["methods"]["tables"]["method"] == "restore"
    assert stage.seen() == second


def deployed_since(stage: Deployed) -> str:
    (build,) = json.loads(stage.run("deploy", "--list", "--json").stdout)["builds"]
    return str(build["since"])


def test_a_large_build_is_refused_when_the_disk_is_nearly_full(stage: Deployed, lab: Lab) -> None:
    before = stage.seen()
    space = api.get(lab.socket, "/1.0/storage-pools/pool/resources")["space"]
    floor = space["total"] - space["used"] - (100 << 20)
    done = stage.deploy("large", check=False, STAGEGBO_DISK_FLOOR=str(floor), STAGEGBO_DISK_FLOOR_SHARE="0")
    assert (done.returncode, "no room for 150 MiB" in done.stderr) == (5, True), done.stderr
    # Room that nobody could foresee is missing, in the middle of the copy.
    stage.shell("system", "mkdir -p /mnt/small && mount -t tmpfs -o size=1m tmpfs /mnt/small")
    done = stage.deploy("large", check=False, path="/mnt/small/botserver")
    assert (done.returncode, "could not be written" in done.stderr) == (5, True), done.stderr
    assert stage.shell("system", "ls -a /mnt/small; umount /mnt/small") == ".\n.."
    assert stage.seen() == before


def test_any_file_of_any_container_can_be_replaced(stage: Deployed) -> None:
    """One that is not there in production, and that no unit runs: whoever may read it is started again."""
    plan = stage.run("deploy", "drive", f"/opt/gbo/conf/notes={stage.files['second']}", "--dry-run").stdout
    assert "stop minio.service, which may read it" in plan
    stage.run("deploy", "drive", f"/opt/gbo/conf/notes={stage.files['second']}")
    assert stage.shell("drive", "stat -c '%a %s' /opt/gbo/conf/notes") == f"755 {len(BUILDS['second'])}"
    stage.run("deploy", "drive", "--undo")
    assert stage.shell("drive", "ls -a /opt/gbo/conf") == ".\n..\nminio.env"


def argv(*words: str) -> list[str]:
    return [sys.executable, "-m", "pytest_stagegbo", "--lab", *words]


def kill_at(point: str, *words: str) -> None:
    """Run a command until it is killed at a point."""
    done = forkserver.run([sys.executable, "-c", KILLED, point, "--lab", *words], env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, f"never came to {point!r}:\n{done.stdout}{done.stderr}"
