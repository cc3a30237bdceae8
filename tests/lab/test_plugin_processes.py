"""One stage and several processes: workers, sessions, a `stagegbo reset`; and what is left of those that die."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.lab.inner_pytest import PATIENCE, wait_until

if TYPE_CHECKING:
    from tests.lab.inner_pytest import Plug

pytestmark = pytest.mark.lab
needs_xdist = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('xdist')", reason="needs xdist")

MIXED = """
    import time
    pytestmark = pytest.mark.xdist_group("{group}")

    @pytest.mark.stage_reset("cache")
    @pytest.mark.parametrize("n", range(2))
    def test_alone(keys, n):
        assert keys("DBSIZE") == 0
        for number in range(30):
            keys("SET", number, os.getpid())
            assert keys("DBSIZE") == number + 1

    @pytest.mark.parametrize("n", range(4))
    def test_shared(keys, files, n):
        mine = f"shared:{group}:{{n}}"
        keys("SET", mine, os.getpid())
        for _ in range(30):
            assert keys("GET", mine) == str(os.getpid())
        keys("DEL", mine)
"""
"""Those that reset are alone, and nothing vanishes under those that share."""

STREAM = """
import sys
from pathlib import Path
from conftest import note
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.session.requirements import Requirements
from pytest_stagegbo.session.session import StageSession
from pytest_stagegbo.session.summary import Summary
from pytest_stagegbo.settings import load

Lab.find().join_network()
settings = load(None, Path(), {}).settings
session = StageSession(StageEngine(settings, Connection(settings.incus)), "stream", Summary())
note("streaming")
while not Path("done").exists():
    session.begin("test", Requirements(frozenset({"cache"}), ()))
    session.end()
"""

BLOCKING = """
    @pytest.mark.stage_reset("cache")
    def test_blocked(keys):
        keys("SET", "mine", "1")
        block("blocked")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param("-p no:xdist", id="no xdist"),
        *(
            pytest.param(f"-n{workers} --dist={mode}", id=f"{workers} {mode}", marks=needs_xdist)
            for workers, mode in [
                (2, "load"),
                (2, "loadscope"),
                (2, "loadfile"),
                (2, "loadgroup"),
                (4, "worksteal"),
            ]
        ),
    ],
)
def test_every_way_to_distribute_tests(plug: Plug, arguments: str) -> None:
    """Each test has what it asked for; the summary is that of all workers; nothing is left of the run."""
    plug.write(**{f"test_{group}": MIXED.format(group=group) for group in ("a", "b")})
    before = set(plug.locks.glob("run-*"))
    result = plug.run(*arguments.split())
    result.assert_outcomes(passed=12)
    result.stdout.fnmatch_lines(["*= stage-gbo =*", "reset cache: 4 times, median * longest *"])
    assert set(plug.locks.glob("run-*")) == before


def test_two_sessions_and_a_command(plug: Plug) -> None:
    """In three terminals at once."""
    plug.write(test_a=MIXED.format(group="a"), test_b=MIXED.format(group="b"))
    with plug.start("test_a.py") as first:
        with plug.start("test_b.py") as second:
            done = plug.stagegbo("reset", "cache", "drive")
            assert second.end() == 0, second.text()
        assert first.end() == 0, first.text()
    assert done.returncode == 0, done.stderr


def test_a_reset_gets_its_turn_under_a_stream_of_users(plug: Plug) -> None:
    """Two processes that begin and end tests all the time, one of which is always at it."""
    with contextlib.ExitStack() as ends:
        streams = []
        for number in range(2):
            argv = [sys.executable, "-c", STREAM, str(number)]
            process = ends.enter_context(subprocess.Popen(argv, cwd=plug.folder, stderr=subprocess.PIPE, text=True))
            ends.callback(process.kill)
            streams.append(process)
        wait_until(lambda: len(plug.notes) == 2 or any(process.poll() for process in streams))
        done = plug.stagegbo("reset", "cache")
        assert done.returncode == 0, done.stderr
        assert [process.poll() for process in streams] == [None, None]
        (plug.folder / "done").touch()
        for process in streams:
            _, error = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, error


def test_a_time_out_names_the_holder(plug: Plug) -> None:
    """Process, test, since when."""
    plug.write(test_holder=BLOCKING, test_other="def test_other(keys): pass")
    with plug.start("test_holder.py") as holder:
        holder.until((plug.folder / "blocked").exists)
        result = plug.run("test_other.py", "--stage-lock-timeout=0.2")
        result.assert_outcomes(errors=1)
        text = result.stdout.str()
        assert "LockTimeout: stage STAGE-PLUG, container cache, was not free" in text
        found = re.search(r"held by process (\d+) \(test (\S+)\) since \d\d:\d\d:\d\d", text)
        assert found, text
        assert found.groups() == (str(holder.process.pid), "test_holder.py::test_blocked")


def test_a_test_that_waits_for_a_child_which_waits_for_the_test(plug: Plug) -> None:
    """The command and a session of pytest, each of which would wait 60 s (900 s by default), fail at once."""
    plug.write(
        test_inner="@pytest.mark.stage_reset('cache')\ndef test_inner(keys): pass",
        test_outer="""
            import subprocess, sys
            @pytest.mark.stage_reset("cache")
            @pytest.mark.parametrize("what", [["pytest_stagegbo", "--lab", "reset", "cache"],
                                              ["pytest", "--stage-lab", "-p", "no:cacheprovider", "test_inner.py"]])
            def test_outer(keys, what):
                done = subprocess.run([sys.executable, "-m", *what], timeout=45, capture_output=True, text=True)
                said = done.stdout + done.stderr
                assert done.returncode, said
                assert "is held by the process that started this one" in said
                assert f"held by process {os.getpid()} (test test_outer.py::test_outer" in said
                assert "stage.reset(" in said
            def test_looks(keys):
                done = subprocess.run([sys.executable, "-m", "pytest_stagegbo", "--lab", "provision"], timeout=45)
                assert done.returncode == 0
        """,
    )
    plug.run("test_outer.py").assert_outcomes(passed=3)


# What dies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["_exit", "SIGKILL"])
@needs_xdist
def test_a_worker_that_dies_takes_only_its_test_with_it(plug: Plug, end: str) -> None:
    """Under an exclusive lock, which the other tests wait for."""
    plug.write(
        test_it=f"""
            @pytest.mark.stage_reset("cache")
            def test_dies(keys):
                keys("SET", "mine", "1")
                {end}
            @pytest.mark.parametrize("n", range(6))
            def test_other(keys, n): assert keys("PING") == "PONG"
            @pytest.mark.stage_reset("cache")
            def test_last(keys): assert keys("DBSIZE") == 0
        """
    )
    result = plug.run("-n2")
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw?' crashed while running 'test_it.py::test_dies'*"])
    plug.is_whole()


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        pytest.param("-n0", signal.SIGINT, id="SIGINT"),
        pytest.param("-n0", signal.SIGTERM, id="SIGTERM"),
        pytest.param("-n0", signal.SIGKILL, id="SIGKILL"),
        pytest.param("-n2", signal.SIGINT, id="workers SIGINT", marks=needs_xdist),
        pytest.param("-n2", signal.SIGTERM, id="workers SIGTERM", marks=needs_xdist),
    ],
)
def test_a_session_that_is_ended_in_a_test_leaves_the_stage_whole(plug: Plug, workers: str, number: int) -> None:
    plug.write(test_blocked=BLOCKING, test_shared="def test_shared(files):\n    block('shared')")
    arguments = ["-p", "no:xdist"] if workers == "-n0" else [workers]
    with plug.start(*arguments) as started:
        started.until((plug.folder / "blocked").exists)
        if workers == "-n2":
            started.until((plug.folder / "shared").exists)
        started.signal_all(number)
        assert started.end() != 0
    plug.is_whole()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["SIGINT", "SIGTERM", "SIGKILL"]
)
def test_a_session_that_is_ended_in_a_reset_leaves_the_stage_whole(plug: Plug, number: int) -> None:
    """Whoever uses the container next has the reset done first, though it did not ask for one."""
    plug.write(
        test_reset='@pytest.mark.stage_reset("cache")\ndef test_reset(): pass',
        test_used='def test_used(keys): assert keys("DBSIZE") == 0',
    )
    plug.stagegbo("provision")
    put = 'REDISCLI_AUTH="$0" valkey-cli SET mine 1'
    assert plug.engine.execute("cache", ["sh", "-c", put, os.environ["PLUG_CACHE"]]).stdout == "OK\n"
    note = plug.locks / "cache.unfinished"
    with plug.start("test_reset.py") as started:
        started.until(note.exists)
        started.signal_all(number)
        assert started.end() != 0
    assert note.exists()
    plug.is_whole("test_used.py")


def test_ctrl_c_does_not_wait_for_a_service_that_never_answers(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    plug.stagegbo("provision")
    settings = (plug.folder / "stagegbo.toml").read_text()
    plug.settings("[containers.cache]\nprobes = [{ protocol = 'valkey', port = 9 }]")
    plug.write(test_it="def test_it(stage_cache): pass")
    with monkeypatch.context() as patch:
        patch.setenv("STAGEGBO_TIMEOUTS__READY", "900")  # more than this test waits for the session to end
        with plug.start("-p", "no:xdist", "test_it.py") as started:
            started.until(lambda: list(plug.locks.glob(f"{started.process.pid}-*.holder")))
            started.signal_all(signal.SIGINT)
            assert started.end() == pytest.ExitCode.INTERRUPTED
    (plug.folder / "stagegbo.toml").write_text(settings)
    plug.is_whole()


def test_a_forked_child_keeps_nothing_of_a_session_that_is_killed(plug: Plug) -> None:
    plug.write(
        test_forks="""
            import multiprocessing, time
            @pytest.mark.stage_reset("cache")
            def test_forks(keys):
                child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
                child.start()
                note(str(child.pid))
                block("reached")
        """
    )
    with plug.start("test_forks.py") as started:
        started.until((plug.folder / "reached").exists)
        (child,) = map(int, plug.notes)
        started.process.kill()
        started.end()
        os.kill(child, 0)
        plug.is_whole()
        os.kill(child, 0)


def test_a_command_that_is_killed_in_a_reset_leaves_the_stage_whole(plug: Plug) -> None:
    note = plug.locks / "drive.unfinished"
    argv = [sys.executable, "-m", "pytest_stagegbo", "--lab", "reset", "drive"]
    with subprocess.Popen(argv, cwd=plug.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: note.exists() or process.poll() is not None)
        process.kill()
    assert note.exists()
    plug.is_whole()


@pytest.mark.parametrize("arguments", ["-x", "--maxfail=1", "-x -n2"])
def test_a_session_that_stops_at_a_failure_leaves_the_stage_whole(plug: Plug, arguments: str) -> None:
    if "-n" in arguments:
        pytest.importorskip("xdist")
    plug.write(
        test_it="""
            @pytest.mark.stage_reset("cache")
            def test_fails(keys): assert not keys("PING")
            @pytest.mark.parametrize("n", range(20))
            def test_other(keys, n): pass
        """
    )
    result = plug.run(*arguments.split())
    assert result.parseoutcomes()["failed"] == 1
    assert result.parseoutcomes().get("passed", 0) < 20
    plug.is_whole()


def test_a_fixture_that_fails_at_the_end_leaves_the_stage_whole(plug: Plug) -> None:
    plug.write(
        test_it="""
            @pytest.fixture
            def broken(keys):
                yield
                raise RuntimeError("at the end")
            @pytest.mark.stage_reset("cache")
            def test_it(broken): pass
        """
    )
    plug.run().assert_outcomes(passed=1, errors=1)
    plug.is_whole()
