"""Clean stages in stock: each test gets one that is proven clean, and what it leaves is reset behind it."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest
from tests.lab.plug import PROJECT

from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.slots.fleet import Fleet

if TYPE_CHECKING:
    from tests.lab.plug import Plug

pytestmark = pytest.mark.lab

FRESH = """
    from conftest import Files, Keys
    @pytest.mark.parametrize("number", range({count}))
    def test_fresh(number, stage_fresh):
        keys, files = Keys(stage_fresh.cache), Files(stage_fresh.drive)
        assert keys("DBSIZE") == 0
        assert files.get() == ""
        keys("SET", f"key-{{number}}", "x")
        files.put(f"file {{number}}")
        for _ in range(20):  # whoever else had this stage would show
            assert keys("KEYS", "*") == [f"key-{{number}}"]
        assert files.get() == f"file {{number}}"
        keys.close()
        note(stage_fresh.project)
"""


MEET = """
    import time
    from pathlib import Path
    def test_meet_{worker}(stage_fresh):
        Path("met-{worker}").touch()
        deadline = time.monotonic() + 60
        while len(list(Path().glob("met-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        note(stage_fresh.project)
"""


def clean_notes(plug: Plug) -> list[str]:
    """The slots that are noted as clean."""
    fleet = Fleet(plug.engine.settings, Connection(plug.engine.settings.incus))
    engines = [fleet.engine(number) for number in range(2)]
    return [engine.settings.project for engine in engines if engine.lock().clean_note()]


def test_each_test_gets_a_clean_stage_of_its_own(plug: Plug) -> None:
    plug.write(test_fresh=FRESH.format(count=8))
    result = plug.run("-n", "2", "--stage-slots=2", "test_fresh.py")
    result.assert_outcomes(passed=8)
    assert len(plug.notes) == 8
    result.stdout.fnmatch_lines("fresh stages: 8 times, *")
    assert clean_notes(plug) == [PROJECT, f"{PROJECT}-1"]  # the end waited for the resets


def test_two_at_once_have_different_ones(plug: Plug) -> None:
    plug.write(test_one=MEET.format(worker="one"), test_other=MEET.format(worker="other"))
    plug.run("-n", "2", "--dist=loadfile", "--stage-slots=2", "test_one.py", "test_other.py").assert_outcomes(passed=2)
    assert sorted(plug.notes) == [PROJECT, f"{PROJECT}-1"]


def test_a_fresh_stage_is_another_than_the_one_that_a_process_shares(plug: Plug) -> None:
    plug.write(
        test_fresh=FRESH.format(count=2),
        test_beside="""
        from conftest import Keys
        def test_beside(keys, stage_fresh, stage_gbo):
            assert stage_fresh.project != stage_gbo.project
            keys("SET", "shared", "x")
            fresh = Keys(stage_fresh.cache)
            assert fresh("DBSIZE") == 0
            fresh.close()
        """,
    )
    plug.run("--stage-slots=2", "test_fresh.py", "test_beside.py").assert_outcomes(passed=3)


def test_the_only_stage_is_reset_between_tests_and_cannot_be_had_twice(plug: Plug) -> None:
    plug.write(
        test_fresh=FRESH.format(count=2),
        test_beside="def test_beside(stage_cache, stage_fresh):\n    pass",
    )
    result = plug.run("test_fresh.py", "test_beside.py")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*NotHeld: the stage that this test uses is the only one*", "*--stage-slots=2*"])


def test_whoever_is_killed_leaves_a_stage_that_is_not_clean(plug: Plug) -> None:
    plug.write(
        test_block="""
        from conftest import Keys
        def test_block(stage_fresh):
            Keys(stage_fresh.cache)("SET", "left", "behind")
            note(stage_fresh.project)
            block("reached")
        """
    )
    with plug.start("--stage-slots=2", "test_block.py") as session:
        session.until(lambda: plug.notes)
        session.signal_all(signal.SIGKILL)
        session.process.wait(60)
    (used,) = plug.notes
    assert used not in clean_notes(plug)
    plug.write(test_fresh=FRESH.format(count=3))
    plug.run("--stage-slots=2", "test_fresh.py").assert_outcomes(passed=3)
    assert used in clean_notes(plug)


def test_a_look_inside_ends_what_was_known_of_a_stage(plug: Plug) -> None:
    plug.write(test_fresh=FRESH.format(count=1))
    plug.run("--stage-slots=2", "test_fresh.py").assert_outcomes(passed=1)
    assert PROJECT in clean_notes(plug)
    assert plug.stagegbo("exec", "cache", "--", "true").returncode == 0
    assert PROJECT not in clean_notes(plug)


def test_what_cannot_be_removed_fails_the_next_test_that_wants_it_and_names_who_left_it(plug: Plug) -> None:
    trap = "/opt/gbo/data/valkey/trap"
    plug.write(
        test_residue=f"""
        def test_leaves(stage_fresh):
            stage_fresh.cache.exec("mkdir", "-p", "{trap}")
            stage_fresh.cache.exec("mount", "-t", "tmpfs", "none", "{trap}")
        def test_next(stage_fresh):
            pass
        """
    )
    result = plug.run("test_residue.py")
    plug.engine.execute("cache", ["umount", trap])
    result.assert_outcomes(passed=1, errors=1)
    assert re.search(rf"Residue: cache is not clean: {trap} .*left by .*test_leaves", result.stdout.str())
    plug.is_whole()
