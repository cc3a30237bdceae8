"""What earlier versions have made on a daemon, under the hands of this one, and the other way round.

The earlier versions are built from this repository's history, and installed into environments of their own.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from tests.lab.support import run
from tools.environments import Environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.conftest import Incus

    from pytest_stagegbo.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.upgrade]

ROOT = Path(__file__).parents[2]
PROJECT, NETWORK = "STAGE-UP", "upbr0"
BEFORE = "30fbc1e21dce6aa98af6c1829a47b641f89d2caf"
"""The last commit before 0.2.0: it has baselines and leases."""
FIRST = "eb6298719bd9dec92f54fc0913d2addf675eff0d"
"""0.1.0: it marked less, and prepared clones differently."""
SETTINGS = """
project = "STAGE-UP"
incus.endpoint = "{socket}"
network = {{ name = "upbr0", address = "10.0.60.1/24" }}
timeouts.lock = 60
[containers]
system = false
vault = false
drive = false
llm = false
"""
BOTH = {"cache", "tables"}


@dataclass(frozen=True)
class Version:
    """The command of one version, in the lab's network."""

    lab: Lab
    python: str
    config: Path

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        alone = [] if self.python == sys.executable else ["-I"]  # nothing of this tree
        argv = [self.python, *alone, "-m", "pytest_stagegbo", "--config", str(self.config), *arguments]
        return run(self.lab.exec_argv(argv), check=check, timeout=300)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


def source_of(commit: str, folder: Path) -> Path:
    """The tree as it was at a commit."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False)
    if found.returncode:
        pytest.fail(
            f"commit {commit}, which made stages that people still have, is not in this clone of the repository: it "
            "is shallow, or no clone. Get its history (`git fetch --unshallow`); nothing else can make what an earlier "
            "version left",
            pytrace=False,
        )
    archive = subprocess.run([*git, "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module", params=[BEFORE, FIRST])
def commit(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def config(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "stagegbo.toml"
    file.write_text(SETTINGS.format(socket=lab.socket))
    return file


@pytest.fixture(scope="module")
def old(commit: str, lab: Lab, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """The earlier version."""
    folder = tmp_path_factory.mktemp("earlier")
    tree = source_of(commit, folder / "tree")
    environment = Environment(folder / "environment", sys.executable)
    environment.install(str(tree))
    return Version(lab, environment.python, config)


@pytest.fixture(scope="module")
def new(lab: Lab, config: Path) -> Version:
    """The version of this tree."""
    return Version(lab, sys.executable, config)


@pytest.fixture(scope="module")
def stage(lab: Lab, incus: Incus, old: Version, new: Version) -> Iterator[None]:
    """What the earlier version makes: a stage, a slot, their golden copy."""
    with FileLock(lab.paths.lock(f"tests-upgrade-{lab.paths.name}")):
        new.run("destroy", "--yes")
        old.run("provision", "--slots", "2")
        yield
        new.run("destroy", "--yes")
        left = incus("project", "list", "--format=csv", "--columns=n").stdout.split()
        assert not [name for name in left if name.startswith(PROJECT)]
        assert NETWORK not in incus("network", "list", "--format=csv").stdout


def put(version: Version, word: str) -> None:
    sql = f"DROP TABLE IF EXISTS words; CREATE TABLE words AS SELECT '{word}' AS word"
    version.run("exec", "tables", "--", "runuser", "-u", "postgres", "--", "psql", "-XqAt", "botserver", "-c", sql)


def get(version: Version) -> str:
    psql = ["runuser", "-u", "postgres", "--", "psql", "-XqAt", "botserver", "-c", "SELECT word FROM words"]
    return version.run("exec", "tables", "--", *psql).stdout.strip()


def replaced(printed: str) -> set[str]:
    """The containers that a plan replaces since another version made them."""
    lines = [line for line in printed.splitlines() if "0.1.0 made it" in line]
    return {name for name in BOTH if any(name in line for line in lines)}


@pytest.mark.usefixtures("stage")
def test_a_stage_is_used_or_made_again_with_a_sentence(commit: str, old: Version, new: Version) -> None:
    assert json.loads(new.run("status", "--json", check=False).stdout)
    planned = new.run("provision", "--slots", "2", "--dry-run").stdout
    if commit == BEFORE:
        put(old, "saved")
        old.run("baseline", "save", "kept")
        put(old, "changed")
        assert replaced(planned) == set()
    else:
        assert replaced(planned) == BOTH
    new.run("provision", "--slots", "2")
    if commit == BEFORE:  # nobody has reset anything
        assert get(new) == "changed"
        new.run("baseline", "use", "kept")
        assert get(new) == "saved"
    again = new.json("provision", "--slots", "2")
    assert [each["changed"] for each in again["slots"].values()] == [False, False]
    new.run("reset", "all")
    new.run("verify", "--check", "locked.project")


@pytest.mark.usefixtures("stage")
def test_an_earlier_version_does_not_break_what_this_one_made(old: Version, new: Version) -> None:
    new.run("provision", "--slots", "2")
    old.run("status", check=False)
    old.run("provision", "--slots", "2")
    old.run("reset", "cache", "tables")
    new.run("provision", "--slots", "2")
    new.run("reset", "all")
    assert new.run("status").returncode == 0
    old.run("destroy", "--yes")
