"""What failed tests left: kept at one moment, opened later as a stage of its own, whatever has become of the stage."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.small_stage import PROJECT, THREE, CleanStage

from pytest_stagegbo.engine.capsule_diff import diff
from pytest_stagegbo.engine.capsules import Capsules, Occasion
from pytest_stagegbo.engine.opening import Opening
from pytest_stagegbo.guest.capsules import folders_of, text_path
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.conftest import InNetwork
    from tests.lab.inner_pytest import Plug

pytestmark = pytest.mark.lab

FOUR = (*THREE, "tables")
OCCASION = Occasion("test_x.py::test_it", "call", marks=("slow",), seed="7")
FAILING = """
    @pytest.mark.stage_reset("cache", "drive")
    def test_corrupts(keys, files):
        keys("SET", "balance", "wrong")
        files.put("wrong, too")
        raise AssertionError("password=hush-hush")
    @pytest.mark.stage_reset("cache", "drive")
    def test_next(keys, files):
        assert keys("DBSIZE") == 0
        assert files.get() == ""
"""
LOOKING = """
    def test_what_it_left(keys, files):
        assert keys("GET", "balance") == "wrong"
        assert files.get() == "wrong, too"
"""


@pytest.fixture
def capsules(clean: CleanStage, in_network: InNetwork) -> Iterator[Capsules]:
    """Those of the small stage, which has none before and afterwards."""
    found = Capsules(clean.engine)
    opening = Opening(clean.settings, Connection(clean.settings.incus), Silent())

    def tidy() -> None:
        for each in found.found():
            opening.close(clean.engine.reader, each.key)
        found.drop([each.key for each in found.found()])
        clean.reset(*FOUR)

    in_network(tidy, timeout=120)
    yield found
    in_network(tidy, timeout=120)


@pytest.fixture
def empty(plug: Plug) -> Plug:
    """Sessions with a stage that has no capsule yet."""
    for each in listed(plug):
        plug.stagegbo("capsule", "drop", each["id"])
    return plug


def listed(plug: Plug) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(plug.stagegbo("capsule", "list", "--json").stdout)
    return found


def keep(capsules: Capsules, *names: str) -> str:
    with capsules.keeping(names, OCCASION) as draft:
        draft.texts["report"] = "it failed"
    return draft.key


def parts(clean: CleanStage, name: str) -> set[str]:
    """The parts that a clone has of capsules, once what is deleted is gone."""
    place = text_path(clean.settings.containers[name], "", "").rstrip("/")
    waiting = f"[ -d {place} ] || exit 0; cd {place}; while ls -d .gone-* >/dev/null 2>&1; do sleep 0.01; done; ls"
    return set(clean.shell(name, waiting).split())


@pytest.mark.both_lts
def test_a_failed_test_can_be_looked_into_later(empty: Plug) -> None:
    """The session goes on, the next test is clean; the capsule has exactly what the failed one left."""
    plug = empty
    plug.write(test_one=FAILING, test_look=LOOKING)
    result = plug.run("test_one.py", "--stage-capsule=failed", "-pno:xdist")
    result.assert_outcomes(failed=1, passed=1)
    shown = re.search(r"capsule open ([0-9a-f]{8})", result.stdout.str())
    assert shown is not None
    key = shown[1]
    assert f"capsule {key} has what the test left" in result.stdout.str()
    (found,) = listed(plug)
    assert (found["id"], found["test"]) == (key, "test_one.py::test_corrupts")
    assert (found["containers"], found["lost"]) == (["cache", "drive"], [])
    told = plug.stagegbo("capsule", "show", key[:4]).stdout
    assert "AssertionError" in told
    assert "hush" not in told
    opened = json.loads(plug.stagegbo("capsule", "open", key, "--json").stdout)
    project = opened["project"]
    units = "systemctl is-active valkey.service"
    assert plug.stagegbo("--project", project, "exec", "cache", "--", "sh", "-c", units).stdout == "inactive\n"
    plug.run("test_look.py", f"--stage-project={project}", "--stage-verify", "-pno:xdist").assert_outcomes(passed=1)
    again = json.loads(plug.stagegbo("capsule", "open", key, "--start", "--json").stdout)
    assert again["project"] == project
    dropped = plug.stagegbo("capsule", "drop", key)
    assert dropped.returncode == 0, dropped.stderr
    assert project not in plug.engine.reader.projects()
    assert listed(plug) == []


def test_a_test_that_fails_in_its_teardown_is_kept_and_one_that_passes_is_not(empty: Plug) -> None:
    plug = empty
    plug.write(
        test_one="""
            @pytest.fixture
            def late(keys):
                yield keys
                keys("SET", "balance", "late")
                raise ValueError
            def test_passes(keys): pass
            def test_ends_badly(late): pass
        """
    )
    result = plug.run("test_one.py", "--stage-capsule=failed", "-pno:xdist")
    result.assert_outcomes(passed=2, errors=1)
    (found,) = listed(plug)
    assert (found["test"], found["phase"]) == ("test_one.py::test_ends_badly", "teardown")
    told = json.loads(plug.stagegbo("capsule", "show", found["id"], "--json").stdout)
    assert "ValueError" in told["report"]
    plug.stagegbo("capsule", "drop", found["id"])


@pytest.mark.both_lts
def test_it_outlives_the_clones_that_have_it(clean: CleanStage, capsules: Capsules, in_network: InNetwork) -> None:
    """Clones that are copied again, and one that is restored."""

    def check() -> None:
        cache = clean.place.cache()
        cache.call("SET", "word", "kept")
        cache.close()
        clean.sql("CREATE TABLE words AS SELECT 'kept' AS word")
        key = keep(capsules, *FOUR)
        clean.reset(*FOUR)
        clean.engine.provision(to_replace=["cache"])
        clean.engine.clones.restore(clean.settings.containers["tables"])
        clean.engine.provision()
        (capsule,) = capsules.found()
        assert capsule.lost == ()
        assert {name for name, holder in capsule.holders.items() if holder != name} == {"cache", "tables"}
        assert clean.engine.plan().changes == (), "what is kept is no clone that the stage has too many"
        opening = Opening(clean.settings, Connection(clean.settings.incus), Silent())
        engine = opening.open(clean.engine, capsules.whole(key))
        engine.provision()
        words = ["runuser", "-u", "postgres", "--", "psql", "-XqAt", "botserver", "-c", "SELECT word FROM words"]
        assert engine.execute("tables", words).stdout == "kept\n"
        found = engine.execute("cache", ["sh", "-c", "grep -rl kept /opt/gbo/data/valkey | wc -l"]).stdout
        assert int(found) > 0
        assert clean.sql("SELECT to_regclass('words') IS NULL") == "t", "the stage itself is clean"
        engine.close()
        assert opening.close(clean.engine.reader, key)
        capsules.drop([key])
        assert set(clean.engine.reader.instances(PROJECT)) == set(FOUR)

    in_network(check, timeout=240)


@pytest.mark.both_lts
def test_diff_names_what_the_test_left(clean: CleanStage, capsules: Capsules, in_network: InNetwork) -> None:
    """A row, a key and an object, and nothing else."""

    def check() -> None:
        clean.sql(
            "UPDATE bot_configuration SET config_value = 'corrupt' "
            "WHERE ctid = (SELECT min(ctid) FROM bot_configuration)"
        )
        cache, drive = clean.place.cache(), clean.place.drive()
        cache.call("SET", "balance", "-1")
        cache.close()
        drive.call("PUT", "/invoices")
        drive.call("PUT", "/invoices/july", body=b"nothing")
        key = keep(capsules, *FOUR)
        clean.reset(*FOUR)
        opening = Opening(clean.settings, Connection(clean.settings.incus), Silent())
        found = diff(opening, clean.engine, capsules.whole(key))
        rows = [each for each in found if each.kind == "row"]
        assert [(each.sign, each.where) for each in rows] == [
            (sign, "botserver public.bot_configuration") for sign in "+-"
        ]
        assert "corrupt" in rows[0].what
        assert "corrupt" not in rows[1].what
        others = {(each.kind, each.where, each.what) for each in found if each.container != "tables"}
        assert others == {("key", "db0", "balance"), ("object", "invoices", "july")}
        left = {name for name in clean.engine.reader.projects() if name.startswith(f"{PROJECT}-CAPSULE")}
        assert left == set()

    in_network(check, timeout=240)


KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_stagegbo.engine.capsule_diff import diff
from pytest_stagegbo.engine.capsules import Capsules, Occasion
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.guest import moment
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.resets.target import ResetTarget
from pytest_stagegbo.settings import load

file, word = sys.argv[1:]
original = ResetTarget.run

def run(self, script, *arguments, **options):
    answer = original(self, script, *arguments, **options)
    if word in script:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

ResetTarget.run = run
moment.LONGEST = 1  # so that nobody waits long for what goes on by itself
Lab.find().join_network()
settings = load(Path(file), Path(), {}).settings
capsules = Capsules(StageEngine(settings, Connection(settings.incus)))
with capsules.keeping(["cache", "drive"], Occasion("x")):
    pass
"""


@pytest.mark.parametrize("word", ["mkdir -m 700", "kill -STOP", "cp -a", "du -s"])
def test_a_run_that_is_killed_leaves_no_part_of_a_capsule(
    clean: CleanStage, capsules: Capsules, in_network: InNetwork, word: str
) -> None:
    def check() -> None:
        argv = [sys.executable, "-c", KILLED, str(clean.file), word]
        done = subprocess.run(argv, capture_output=True, text=True, env=dict(os.environ), timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        clean.wait("cache", "drive")
        assert capsules.found() == []
        key = keep(capsules, "cache", "drive")
        assert [each.key for each in capsules.found()] == [key]
        assert [parts(clean, name) for name in ("cache", "drive")] == [{key}] * 2

    in_network(check, timeout=120)


def test_the_oldest_make_room_for_new_ones(clean: CleanStage, capsules: Capsules, in_network: InNetwork) -> None:
    def check() -> None:
        keys = [keep(capsules, "cache") for _ in range(13)]
        assert [each.key for each in capsules.found()] == keys[3:]
        assert parts(clean, "cache") == set(keys[3:])
        assert capsules.drop_oldest()
        assert [each.key for each in capsules.found()] == keys[4:]
        assert set(capsules.prune(age=0.0)) == set(keys[4:])
        assert parts(clean, "cache") == set()
        assert not capsules.drop_oldest()

    in_network(check, timeout=120)


def test_what_does_not_run_is_left_out(clean: CleanStage, capsules: Capsules, in_network: InNetwork) -> None:
    def check() -> None:
        clean.incus("stop", "--force", "drive")
        try:
            key = keep(capsules, "cache", "drive")
        finally:
            clean.engine.provision()
        about = capsules.whole(key).about
        assert (about.containers, about.left_out) == (("cache",), {"drive": "it is stopped"})
        assert capsules.text(capsules.whole(key), "report") == "it failed"

    in_network(check, timeout=120)


def test_a_folder_that_the_test_removed_is_not_there_again(
    clean: CleanStage, capsules: Capsules, in_network: InNetwork
) -> None:
    """What a broken service can't write down does not keep the rest from being kept."""
    (folder,) = folders_of(clean.settings.containers["cache"])

    def check() -> None:
        clean.shell("cache", f"systemctl stop valkey; mv {folder} {folder}.aside")
        try:
            key = keep(capsules, "cache")
        finally:
            clean.shell("cache", f"mv {folder}.aside {folder}; systemctl start valkey")
        clean.wait("cache")
        opening = Opening(clean.settings, Connection(clean.settings.incus), Silent())
        with contextlib.closing(opening.open(clean.engine, capsules.whole(key))) as engine:
            assert engine.execute("cache", ["test", "-e", folder]).status == 1

    in_network(check, timeout=120)


def test_destroy_takes_capsules_and_what_they_are_open_as(empty: Plug) -> None:
    plug = empty
    plug.write(test_one=FAILING)
    plug.run("test_one.py", "--stage-capsule=failed", "-pno:xdist")
    (found,) = listed(plug)
    exported = plug.stagegbo("capsule", "export", found["id"], "out", "--data")
    assert exported.returncode == 0, exported.stderr
    files = {each.name: each.stat().st_mode & 0o777 for each in (plug.folder / "out").iterdir()}
    wanted = {"capsule.json", "report.txt", "logs.txt", "cache.tar", "drive.tar"}
    assert files == dict.fromkeys(wanted, 0o600)
    plug.stagegbo("provision", "--recreate")
    done = plug.stagegbo("destroy", "--yes")
    assert done.returncode == 0, done.stderr
    assert [name for name in plug.engine.reader.projects() if name.startswith("STAGE-PLUG")] == []
