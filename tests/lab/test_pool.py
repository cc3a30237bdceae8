"""Clean stages in stock: each test gets one that is proven clean, and what it leaves is reset behind it."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest
from tests.lab.inner_pytest import PROJECT

from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.slots.fleet import Fleet

if TYPE_CHECKING:
    from tests.lab.inner_pytest import Plug

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


def test_ctrl_c_does_not_wait_for_a_reset_that_never_ends(plug: Plug) -> None:
    slow = "/run/systemd/system/valkey.service.d/slow.conf"
    unit = "[Service]\\nTimeoutStartSec=infinity\\nExecStartPre=sleep infinity\\n"
    plug.write(
        test_slow=f"""
        def test_leaves_a_service_that_never_comes_up(stage_fresh):
            stage_fresh.cache.exec("sh", "-c", "mkdir -p $(dirname {slow}); printf '{unit}' >{slow}")
            stage_fresh.cache.exec("sh", "-c", "systemctl daemon-reload && systemctl kill -s KILL valkey")
        def test_next():
            block("reached")
        """
    )
    with (plug.folder / "conftest.py").open("a") as conftest:
        conftest.write("\nfrom pytest_stagegbo.slots import pool\npool.END_SECONDS = 0.5\n")
    plug.stagegbo("provision")
    note = plug.locks / "cache.unfinished"
    try:
        with plug.start("-p", "no:xdist", "test_slow.py") as session:
            session.until(lambda: (plug.folder / "reached").exists() and note.exists())
            session.signal_all(signal.SIGINT)
            assert session.end() == pytest.ExitCode.INTERRUPTED
        assert note.exists()
        assert PROJECT not in clean_notes(plug)
    finally:
        plug.engine.execute("cache", ["sh", "-c", f"rm {slow}; systemctl daemon-reload; systemctl restart valkey"])
    plug.is_whole()


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


BROKEN = """
    from conftest import Files
    @pytest.fixture
    def broken(stage_fresh):
        yield
        assert "{when}" == "call"
    def test_fails(stage_fresh, broken):
        Files(stage_fresh.drive).put("evidence")
        line = '"$(date "+%F %T.%3N") line-of-fails"'
        stage_fresh.cache.exec("sh", "-c", f"mkdir -p {folder}; echo {{line}} >>{folder}/a.log")
        note(stage_fresh.project)
        assert "{when}" == "teardown"
    def test_next(stage_fresh): note("next ran")
"""


@pytest.mark.parametrize("when", ["call", "teardown"])
def test_the_report_of_a_failed_test_has_what_its_fresh_stage_logged(plug: Plug, when: str) -> None:
    """Also when its teardown fails: until that is reported, nobody resets the stage."""
    plug.write(test_it=BROKEN.format(when=when, folder="/opt/gbo/logs/plug"))
    result = plug.run()
    assert plug.notes == [PROJECT, "next ran"]
    assert result.stdout.str().count("line-of-fails") >= 1
    result.stdout.fnmatch_lines(
        [
            f"*fresh stage {PROJECT}: container cache: logged since the test began*",
            "*line-of-fails*",
            f"*fresh stage {PROJECT}: container drive: logged since the test began*",
        ]
    )


@pytest.mark.parametrize(("when", "slots"), [("call", 1), ("teardown", 1), ("call", 2)])
def test_keep_leaves_a_fresh_stage_as_the_failed_test_left_it(plug: Plug, when: str, slots: int) -> None:
    plug.write(test_it=BROKEN.format(when=when, folder="/opt/gbo/logs/plug"))
    result = plug.run("--stage-keep", f"--stage-slots={slots}")
    (project,) = plug.notes
    fleet = Fleet(plug.engine.settings, Connection(plug.engine.settings.incus))
    engine = next(each for each in map(fleet.engine, range(2)) if each.settings.project == project)
    assert engine.execute("drive", ["cat", "/opt/gbo/data/minio/plug"]).stdout == "evidence"
    number = f" --slot {project[-1]}" if project != PROJECT else ""
    result.stdout.fnmatch_lines(
        [
            "*stage kept as the test left it; to look inside*",
            f"stagegbo --lab --project {PROJECT}{number} shell cache",
            "*Interrupted: --stage-keep: test_it.py::test_fails failed and the stage is left as it was*",
        ]
    )
    plug.write(test_fresh=FRESH.format(count=slots))
    plug.run(f"--stage-slots={slots}", "test_fresh.py").assert_outcomes(passed=slots)


def test_keep_keeps_a_fresh_stage_from_all_workers(plug: Plug) -> None:
    """There is one for both: the other one waits for it when the test fails, and would have it next."""
    plug.write(
        test_one="""
            from conftest import HERE
            import time
            def test_fails(stage_fresh):
                note("held")
                deadline = time.monotonic() + 60
                while not (HERE / "waits").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert False
        """,
        test_two="""
            from conftest import HERE
            import time
            def test_until_held():
                deadline = time.monotonic() + 60
                while not (HERE / "notes").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                (HERE / "waits").touch()
            def test_next(stage_fresh): note("next ran")
        """,
    )
    result = plug.run("-n2", "--dist=loadfile", "--stage-keep", "test_one.py", "test_two.py")
    assert plug.notes == ["held"]
    result.stdout.fnmatch_lines(["NotHeld: the stage is kept as test_one.py::test_fails left it"])


def test_sessions_of_fresh_stages_listen_no_longer_than_the_run(plug: Plug) -> None:
    plug.write(test_fresh=FRESH.format(count=2))
    with (plug.folder / "conftest.py").open("a") as conftest:
        conftest.write(
            "\ndef pytest_unconfigure():\n    import threading\n"
            "    note('left: ' + ' '.join(sorted(t.name for t in threading.enumerate() if 'events' in t.name)))\n"
        )
    plug.run("--stage-slots=2", "--stage-verify", "test_fresh.py").assert_outcomes(passed=2)
    assert plug.notes[-1] == "left: "
