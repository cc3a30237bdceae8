"""What failed tests left: kept at one moment, opened later as a stage of its own, whatever has become of the stage."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from tests.lab import forkserver
from tests.lab.small_stage import PROJECT, THREE, CleanStage
from tests.lab.support import held, until

from pytest_stagegbo.engine.capsule_diff import diff
from pytest_stagegbo.engine.capsules import Capsules, Occasion
from pytest_stagegbo.engine.opening import Opening
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import MissingRequirement
from pytest_stagegbo.guest.capsules import folders_of, text_path
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.progress import Silent
from pytest_stagegbo.settings.opened import opened_number

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
def empty(plug: Plug) -> Iterator[Plug]:
    """Sessions with a stage that has no capsule before and afterwards."""
    drop_all(plug)
    yield plug
    drop_all(plug)


def listed(plug: Plug) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = held(plug.stagegbo("capsule", "list", "--json").stdout)["capsules"]
    return found


def drop_all(plug: Plug) -> None:
    for each in listed(plug):
        plug.stagegbo("capsule", "drop", each["id"])


def keep(capsules: Capsules, *names: str) -> str:
    with capsules.keeping(names, OCCASION) as draft:
        draft.texts["report"] = "it failed"
    return draft.key


@contextlib.contextmanager
def limited(clean: CleanStage, size: int) -> Iterator[Capsules]:
    """The capsules of the small stage, of which all together may have so many bytes."""
    settings = replace(clean.settings, capsules=replace(clean.settings.capsules, size=str(size)))
    with contextlib.closing(StageEngine(settings, Connection(settings.incus))) as engine:
        yield Capsules(engine)


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
    opened = held(plug.stagegbo("capsule", "open", key, "--json").stdout)
    project = opened["project"]
    units = "systemctl is-active valkey.service"
    assert plug.stagegbo("--project", project, "exec", "cache", "--", "sh", "-c", units).stdout == "inactive\n"
    plug.run("test_look.py", f"--stage-project={project}", "--stage-verify", "-pno:xdist").assert_outcomes(passed=1)
    again = held(plug.stagegbo("capsule", "open", key, "--start", "--json").stdout)
    assert again["project"] == project
    compared = held(plug.stagegbo("capsule", "diff", key, "--json").stdout)
    assert ("key", "balance") in {(each["kind"], each["what"]) for each in compared["differences"]}
    assert held(plug.stagegbo("capsule", "drop", key, "--json").stdout)["dropped"] == [key]
    assert project not in plug.engine.reader.projects()
    assert listed(plug) == []


def test_tests_that_fail_in_setup_or_teardown_are_kept_and_one_that_passes_is_not(empty: Plug) -> None:
    plug = empty
    plug.write(
        test_one="""
            @pytest.fixture
            def early(keys):
                keys("SET", "balance", "early")
                raise KeyError
            @pytest.fixture
            def late(keys):
                yield keys
                keys("SET", "balance", "late")
                raise ValueError
            def test_passes(keys): pass
            def test_begins_badly(early): pass
            def test_ends_badly(late): pass
        """
    )
    result = plug.run("test_one.py", "--stage-capsule=failed", "-pno:xdist")
    result.assert_outcomes(passed=2, errors=2)
    begun, found = listed(plug)
    assert (begun["test"], begun["phase"]) == ("test_one.py::test_begins_badly", "setup")
    assert (found["test"], found["phase"]) == ("test_one.py::test_ends_badly", "teardown")
    told = held(plug.stagegbo("capsule", "show", found["id"], "--json").stdout)
    assert "ValueError" in told["report"]


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
        assert capsules.prune() == ()
        with limited(clean, capsule.about.size) as fewer:
            assert fewer.prune() == (key,), "the copies have something, too"
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


@pytest.mark.parametrize(
    ("word", "pruned"), [("mkdir -m 700", False), ("kill -STOP", True), ("cp -a", False), ("du -s", True)]
)
def test_a_run_that_is_killed_leaves_no_part_of_a_capsule(
    clean: CleanStage, capsules: Capsules, in_network: InNetwork, word: str, pruned: bool
) -> None:
    """Once the next capsule is kept, or capsules are pruned."""

    def check() -> None:
        argv = [sys.executable, "-c", KILLED, str(clean.file), word]
        done = subprocess.run(argv, capture_output=True, text=True, env=dict(os.environ), timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        clean.wait("cache", "drive")
        assert capsules.found() == []
        if pruned:
            assert capsules.prune() == ()
            assert [parts(clean, name) for name in ("cache", "drive")] == [set()] * 2
        key = keep(capsules, "cache", "drive")
        assert [each.key for each in capsules.found()] == [key]
        assert [parts(clean, name) for name in ("cache", "drive")] == [{key}] * 2

    in_network(check, timeout=120)


def test_leases_of_an_opened_capsule_that_is_gone_are_removed(clean: CleanStage, in_network: InNetwork) -> None:
    """By `drop`, `prune` and `destroy`. A run that is killed as it closes one leaves them."""

    def check() -> None:
        opening = Opening(clean.settings, Connection(clean.settings.incus), Silent())
        engine = opening.engine(2)
        with engine.lock().hold("a test", engine.waiting):
            pass
        name = f"{engine.settings.project}-LEASES"
        assert name in clean.engine.reader.projects()
        opening.close_left(clean.engine.reader, [])
        assert name not in clean.engine.reader.projects()

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


BEHIND = """
exec 9>/run/stagegbo-reset
flock 9
cat >/run/behind <<'END'
cd /opt/gbo/data/pgdata/base
read -r pid rest </proc/self/stat
set -- $rest
shift 20
echo "$pid $1" >/run/stagegbo/tables.server.behind
while :; do
    mkdir 99
    for each in 1 2 3 4 5 6 7 8 9; do : >99/$each; done
    rm -rf 99
done
END
setsid env STAGEGBO_OWN=1 timeout 60 sh /run/behind >/dev/null 2>&1 &
until [ "$(cat /proc/$(cut -d ' ' -f 1 /run/stagegbo/tables.server.behind)/comm)" = sh ]; do sleep 0.01; done
"""
"""What removes folders of databases behind a reset, again and again."""


def test_what_works_behind_a_reset_is_held_too(clean: CleanStage, capsules: Capsules, in_network: InNetwork) -> None:
    """A test may fail as soon as it has begun. A folder that vanishes while it is copied would leave no capsule."""

    def check() -> None:
        clean.reset("tables")
        clean.shell("tables", BEHIND)
        try:
            for _ in range(3):
                keep(capsules, "tables")
        finally:
            clean.shell("tables", "read -r pid rest </run/stagegbo/tables.server.behind; kill -9 $pid || true")
            clean.shell("tables", "rm -rf /opt/gbo/data/pgdata/base/99 /run/stagegbo/tables.server.behind /run/behind")

    in_network(check, timeout=120)


def test_what_is_too_much_for_all_capsules_is_none(
    clean: CleanStage, capsules: Capsules, in_network: InNetwork
) -> None:
    """It takes no other one's room."""

    def check() -> None:
        key = keep(capsules, "cache")
        (least,) = (each.about.size for each in capsules.found())
        left = "what the test left is .* all capsules of a stage may have"
        with limited(clean, least - 1) as fewer, pytest.raises(MissingRequirement, match=left):
            keep(fewer, "cache")
        assert [each.key for each in capsules.found()] == [key]
        assert parts(clean, "cache") == {key}

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
    exported = plug.stagegbo("capsule", "export", found["id"], "out", "--data", "--json")
    assert exported.returncode == 0, exported.stderr
    assert held(exported.stdout)["folder"] == "out"
    files = {each.name: each.stat().st_mode & 0o777 for each in (plug.folder / "out").iterdir()}
    wanted = {"capsule.json", "report.txt", "logs.txt", "cache.tar", "drive.tar"}
    assert files == dict.fromkeys(wanted, 0o600)
    plug.stagegbo("provision", "--recreate")
    done = plug.stagegbo("destroy", "--yes")
    assert done.returncode == 0, done.stderr
    assert [name for name in plug.engine.reader.projects() if name.startswith("STAGE-PLUG")] == []


def test_a_session_that_ends_at_its_first_failure_keeps_the_stage_and_a_capsule(empty: Plug) -> None:
    plug = empty
    plug.write(test_one=FAILING)
    result = plug.run("test_one.py", "--stage-capsule=failed", "--stage-keep", "-x", "-pno:xdist")
    result.assert_outcomes(failed=1)
    (found,) = listed(plug)
    result.stdout.fnmatch_lines_random([f"*stage capsule {found['id']} has*", "*stage kept as the test left it*"])
    assert plug.stagegbo("exec", "drive", "--", "cat", "/opt/gbo/data/minio/plug").stdout == "wrong, too"


MANY = """
    @pytest.mark.parametrize("number", range(100))
    def test_fails(stage_cache, number):
        there = stage_cache.exec("sh", "-c", "ls /opt/gbo/data/valkey.stagegbo-capsules 2>/dev/null | wc -l")
        note(there.stdout.strip())
        size = "6M" if number >= 50 else "0"
        stage_cache.exec("sh", "-c", f"head -c {size} /dev/urandom >/opt/gbo/data/valkey/left")
        assert number < 0
"""
"""The first fifty leave next to nothing, the others some megabytes each, which are others each time."""


def test_a_hundred_failures_in_a_row_stay_within_the_limits(empty: Plug) -> None:
    """The count of capsules is the limit first, then their size; and what is deleted is free again."""
    plug = empty
    plug.settings('[capsules]\ncount = 6\nsize = "30MB"')
    plug.stagegbo("provision")
    clone = plug.engine.reader.instances(plug.engine.settings.project)["cache"]

    def used() -> int:
        return plug.engine.reader.volume_usage(clone.pool, clone.project, clone.name) or 0

    before = used()
    plug.write(test_one=MANY)
    plug.run("test_one.py", "--stage-capsule=failed", "-pno:xdist", patience=900).assert_outcomes(failed=100)
    found = listed(plug)
    assert [each["test"] for each in found] == [f"test_one.py::test_fails[{number}]" for number in range(96, 100)]
    assert sum(each["bytes"] for each in found) <= 30_000_000
    there = [int(each) for each in plug.notes]
    assert there[:50] == [*range(6), *[6] * 44]
    assert max(there[50:]) == 6
    assert there[-40:] == [4] * 40
    until(lambda: used() - before < 100_000_000, "blocks of deleted capsules are free", seconds=120)


ON_ITS_OWN = """
    import time
    from pathlib import Path
    @pytest.mark.parametrize("own", ["one", "two"])
    def test_side_by_side(own, keys, files, stage_gbo):
        files.put(f"of {stage_gbo.project}")
        Path(f"met-{own}").touch()
        deadline = time.monotonic() + 60
        while len(list(Path().glob("met-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not stage_gbo.project.endswith("-1")
"""
FRESH = """
    from conftest import Files
    def test_fresh(stage_fresh):
        Files(stage_fresh.drive).put(f"fresh {stage_fresh.project}")
        note(stage_fresh.project)
        raise AssertionError
"""


def test_slots_and_fresh_stages_have_their_own(empty: Plug) -> None:
    """What a test has left in slot 1 is opened as slot 1 had it, whatever the stage and the fresh one had."""
    plug = empty
    plug.write(test_slots=ON_ITS_OWN, test_fresh=FRESH)
    result = plug.run("-n", "2", "--stage-slots=2", "--stage-capsule=failed", "test_slots.py")
    result.assert_outcomes(passed=1, failed=1)
    (found,) = listed(plug)
    assert (found["slot"], found["containers"]) == (1, ["cache", "drive"])
    result.stdout.fnmatch_lines(f"*stagegbo*--slot 1*capsule open {found['id']}*")
    plug.run("--stage-slots=2", "--stage-capsule=failed", "-pno:xdist", "test_fresh.py").assert_outcomes(failed=1)
    (fresh,) = (each for each in listed(plug) if each["id"] != found["id"])
    assert plug.notes == [f"STAGE-PLUG-{fresh['slot']}".removesuffix("-0")]
    for each, left in ((found, "of STAGE-PLUG-1"), (fresh, f"fresh {plug.notes[0]}")):
        opened = held(plug.stagegbo("capsule", "open", each["id"], "--json").stdout)
        look = ("exec", "drive", "--", "cat", "/opt/gbo/data/minio/plug")
        assert plug.stagegbo("--project", opened["project"], *look).stdout == left


KILLED_AFTER = """
import os, signal, sys
from pytest_stagegbo.cli import main
from pytest_stagegbo.incus.connection import Connection

left, words = int(sys.argv[1]), sys.argv[2:]
original = Connection.request

def request(self, method, path, **options):
    global left
    reply = original(self, method, path, **options)
    if method != "GET" and options.get("counted", True):  # others are of the lease
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return reply

Connection.request = request
sys.exit(main(words))
"""
"""A command that is killed once the daemon has answered so many requests that write."""


def kill_again_and_again(plug: Plug, after: range, *words: str) -> Iterator[None]:
    """Run a command that is killed after a few more requests each time, since it does again what is half done, until it
    comes to its end. Yields after each kill."""
    for number in after:
        argv = [sys.executable, "-c", KILLED_AFTER, str(number), "--lab", *words]
        done = forkserver.run(argv, cwd=plug.folder, timeout=120)
        if done.returncode == 0:
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        yield
    pytest.fail("it never came to its end")


def test_commands_that_are_killed_at_each_step_are_finished_by_the_next(empty: Plug) -> None:
    """Of an opening, of a deletion, and of a comparison, which nobody finishes: `drop` takes what it has left."""
    plug = empty
    plug.write(test_one=FAILING)
    plug.run("test_one.py", "--stage-capsule=failed", "-pno:xdist")
    (found,) = listed(plug)
    key = found["id"]

    def opened() -> set[str]:
        return {name for name in plug.engine.reader.projects() if opened_number("STAGE-PLUG", name)}

    seen = [listed(plug) for _ in kill_again_and_again(plug, range(3, 100, 6), "capsule", "open", key)]
    assert len(seen) > 2
    assert all(each == [found] for each in seen), "it is whole, whatever becomes of its opening"
    assert opened() == {"STAGE-PLUG-CAPSULE-1"}
    project = ("--project", "STAGE-PLUG-CAPSULE-1")
    assert plug.stagegbo(*project, "exec", "drive", "--", "cat", "/opt/gbo/data/minio/plug").stdout == "wrong, too"
    next(kill_again_and_again(plug, range(12, 13), "capsule", "diff", key))
    assert opened() == {"STAGE-PLUG-CAPSULE-1", "STAGE-PLUG-CAPSULE-2"}
    seen = []
    for _ in kill_again_and_again(plug, range(1, 50, 2), "capsule", "drop", key):
        seen.append(listed(plug))
        if not seen[-1]:
            break
    assert len(seen) > 2
    assert all(each == [found] for each in seen[:-1])
    assert plug.stagegbo("capsule", "prune").returncode == 0
    assert listed(plug) == []
    assert opened() == set()
    assert not [name for name in (*plug.engine.reader.networks(), *plug.engine.reader.acls()) if "plugbrc" in name]
    for name, place in (("cache", "valkey"), ("drive", "minio")):
        wait = "while ls -d .gone-* >/dev/null 2>&1; do sleep 0.01; done"
        look = ["sh", "-c", f"cd /opt/gbo/data/{place}.stagegbo-capsules && {wait}; ls"]
        assert plug.engine.execute(name, look).stdout == ""
