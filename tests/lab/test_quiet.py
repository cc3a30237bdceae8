"""Tests that nobody else's writes reach: what BotServer's clone does to a cache that is tested alone."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.lab.inner_pytest import wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.lab.conftest import Incus, StageGbo
    from tests.lab.inner_pytest import Plug

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]

COUNT = int(os.environ.get("STAGEGBO_QUIET_TESTS", "40"))
"""Tests that find the cache empty after its reset, in each way to run them. The issue asks for 2,000."""

CHANGES = """
    from pytest_stagegbo.incus.writer import Writer
    original = Writer.set_state

    def set_state(self, name, action, **more):
        note(f"{action} {name}")
        original(self, name, action, **more)

    Writer.set_state = set_state
"""

TESTS = """
    from pytest_stagegbo.errors import NotHeld
    quiet = pytest.mark.stage_quiet

    @pytest.mark.stage_reset("cache")
    def test_others_write(keys):
        assert keys("BLPOP", "botserver:recent", 10)

    @quiet
    @pytest.mark.stage_reset("cache")
    def test_nobody_writes(keys):
        note("first")
        assert not keys("BLPOP", "botserver:recent", 2)
        assert keys("DBSIZE") == 0

    @quiet
    def test_nor_to_what_is_not_reset(keys):
        keys("DEL", "botserver:recent")
        assert not keys("BLPOP", "botserver:recent", 2)

    @quiet
    def test_what_is_frozen_says_so(keys, pytestconfig):
        from pytest_stagegbo.plugin.stash import PROCESS
        with pytest.raises(NotHeld, match="is quiet and does not ask for it"):
            pytestconfig.stash[PROCESS].session().engine.execute("system", ["true"])
        note("last")

    @quiet
    def test_what_is_named_runs(stage_system, keys):
        stage_system.exec("true")

    @quiet
    def test_what_is_asked_for_while_the_test_runs_goes_on(keys, request):
        keys("DEL", "botserver:recent")
        assert not keys("BLPOP", "botserver:recent", 2)
        request.getfixturevalue("stage_system").exec("true")
        assert keys("BLPOP", "botserver:recent", 10)

    @quiet
    def test_what_nobody_writes_to_needs_no_quiet(stage_llm):
        note("llm")
"""

MANY = f"""
    @pytest.mark.stage_quiet
    @pytest.mark.stage_reset("cache")
    @pytest.mark.parametrize("number", range({COUNT}))
    def test_empty(keys, number):
        assert keys("DBSIZE") == 0
"""

BESIDE = """
    @pytest.mark.parametrize("number", range(5))
    def test_beside(stage_system, number):
        assert stage_system.exec("echo", "runs").stdout == "runs\\n"
"""

BLOCKS = """
    @pytest.mark.stage_quiet
    def test_blocks(keys):
        block("blocking")
"""


@pytest.fixture
def six(provisioned: subprocess.CompletedProcess[str], plug: Plug) -> Plug:
    """The shared stage instead of the small one."""
    assert provisioned.returncode == 0
    (plug.folder / "stagegbo.toml").unlink()
    return plug


def state(incus: Incus) -> str:
    (system,) = json.loads(incus("list", "system", "--format=json", project="STAGE-GBO").stdout)
    return str(system["status"])


def test_nobody_writes_to_what_a_quiet_test_uses(six: Plug, incus: Incus) -> None:
    """One after the other they freeze it once; it runs for whoever names it, and after the session."""
    six.write(test_it=CHANGES + TESTS)
    six.run("-p", "no:xdist").assert_outcomes(passed=7)
    assert six.notes == [
        *("freeze system", "first", "last", "unfreeze system"),
        *("freeze system", "unfreeze system", "llm"),
    ]
    assert state(incus) == "Running"


def test_the_setting_is_about_every_test(six: Plug) -> None:
    six.write(
        test_it="""
        def test_it(keys):
            keys("DEL", "botserver:recent")
            assert not keys("BLPOP", "botserver:recent", 2)
    """
    )
    six.run("--stage-quiet").assert_outcomes(passed=1)
    six.pytester.makeini("[pytest]\nstage_quiet = true\n")
    six.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("workers", ["-pno:xdist", "-n4"])
def test_a_cache_is_empty_after_each_reset(six: Plug, incus: Incus, workers: str) -> None:
    """With tests beside them that want BotServer to run."""
    if workers == "-n4":
        pytest.importorskip("xdist")
    six.write(test_many=MANY, test_beside=BESIDE)
    six.run(workers, "-q").assert_outcomes(passed=COUNT + 5)
    assert state(incus) == "Running"


def test_what_a_killed_process_left_frozen_goes_on_for_the_next_user(
    six: Plug, stagegbo: StageGbo, incus: Incus
) -> None:
    """While the test runs and after its process was killed, nothing takes it for dead."""
    six.write(test_blocks=BLOCKS, test_beside=BESIDE)
    for next_user in ("provision", "pytest"):
        with six.start("-p", "no:xdist", "test_blocks.py") as session:
            session.until((six.folder / "blocking").exists)
            assert state(incus) == "Frozen"
            found = json.loads(stagegbo("status", "--json").stdout)
            assert found["ready"]
            system = next(each for each in found["containers"] if each["name"] == "system")
            assert system["state"] == "frozen"
            assert f"process {session.process.pid} (test test_blocks.py::test_blocks)" in system["frozen_by"]
            waits = stagegbo("provision", check=False, env={"STAGEGBO_TIMEOUTS__LOCK": "1"})
            assert f"held by process {session.process.pid} (test test_blocks.py::test_blocks)" in waits.stderr
            assert stagegbo("provision", "--dry-run").stdout == "nothing to change\n"
            (line,) = [each for each in stagegbo("doctor").stdout.splitlines() if "clone system" in each]
            assert line.startswith("ok")
            session.signal_all(signal.SIGKILL)
            session.end()
        (six.folder / "blocking").unlink()
        assert "which has ended" in stagegbo("status").stdout
        if next_user == "pytest":
            six.run("test_beside.py").assert_outcomes(passed=5)
        else:
            assert "nothing to change" in stagegbo("provision").stdout
        wait_until(lambda: state(incus) == "Running")
        assert stagegbo("status").returncode == 0
