"""Provisioning by a session of pytest: once, before the first test, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.lab.inner_pytest import Plug

pytestmark = pytest.mark.lab

USING = """
    import conftest
    @pytest.mark.parametrize("n", range(8))
    def test_used(keys, n):
        assert keys("PING") == "PONG"
"""
TIMED = '''

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Where a plugin that limits a test's time starts its clock."""
    note("clock starts")
    return (yield)
'''


@pytest.fixture(autouse=True)
def _counted(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plug.notes == []
    monkeypatch.setenv("PLUG_COUNT", "1")


@pytest.fixture
def gone(plug: Plug) -> Plug:
    """There is no stage when the test begins."""
    done = plug.stagegbo("destroy", "--yes")
    assert done.returncode == 0, done.stderr
    return plug


def test_once_over_all_workers(gone: Plug) -> None:
    pytest.importorskip("xdist")
    gone.write(test_it=USING)
    result = gone.run("-n4")
    result.assert_outcomes(passed=8)
    assert gone.notes == ["provision False"]
    assert sorted(gone.created()) == ["cache", "drive"]


def test_before_the_clock_of_the_first_test_starts(gone: Plug) -> None:
    conftest = gone.folder / "conftest.py"
    conftest.write_text(conftest.read_text() + TIMED)
    gone.write(test_it=USING)
    gone.run().assert_outcomes(passed=8)
    assert gone.notes == ["provision False", *["clock starts"] * 8]


def test_not_for_tests_that_do_not_use_it(gone: Plug) -> None:
    gone.write(test_it="def test_plain(): pass")
    gone.run().assert_outcomes(passed=1)
    gone.write(test_it=USING)
    assert gone.run("--collect-only").ret == 0
    assert gone.run("-k", "nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert gone.notes == []
    assert gone.created() == {}


@pytest.mark.parametrize("arguments", ["-p no:xdist", "-n2"])
def test_never_fails_each_test_that_needs_it(gone: Plug, arguments: str) -> None:
    """The first one with everything that is missing, the others with a sentence; none of it is made."""
    if "-n" in arguments:
        pytest.importorskip("xdist")
    gone.write(test_it=USING, test_plain="def test_plain(): pass")
    result = gone.run("--stage-provision=never", *arguments.split())
    result.assert_outcomes(errors=8, passed=1)
    workers = 2 if "-n2" in arguments else 1
    text = result.stdout.str()
    assert "StageMissing: stage STAGE-PLUG is not what the settings say" in text
    assert 1 <= text.count("last seen: left to do: ") <= workers
    assert "see the first test that says so" in text
    assert gone.notes == []
    assert gone.created() == {}


def test_never_is_content_with_a_stage_that_is_there(plug: Plug) -> None:
    plug.write(test_it=USING)
    plug.run().assert_outcomes(passed=8)
    before = plug.created()
    plug.run("--stage-provision=never").assert_outcomes(passed=8)
    assert plug.created() == before


@pytest.mark.parametrize("arguments", ["-p no:xdist", "-n2"])
def test_recreate_copies_production_once_a_run(plug: Plug, arguments: str) -> None:
    if "-n" in arguments:
        pytest.importorskip("xdist")
    plug.write(test_it=USING)
    plug.run().assert_outcomes(passed=8)
    before = plug.created()
    plug.run("--stage-provision=recreate", *arguments.split()).assert_outcomes(passed=8)
    assert plug.notes == ["provision False", "provision True"]
    after = plug.created()
    assert after.keys() == before.keys()
    assert not [name for name in after if after[name] == before[name]]


@pytest.mark.parametrize("arguments", ["-p no:xdist", "-n2"])
def test_a_failure_is_tried_once_and_told_once(plug: Plug, arguments: str) -> None:
    """Once a process, that is; the tests that do not need the stage pass."""
    if "-n" in arguments:
        pytest.importorskip("xdist")
    plug.settings('[containers.cache]\nsource = "no-such-container"')
    plug.write(test_it=USING, test_plain="def test_plain(): pass")
    before = set(plug.locks.glob("run-*"))
    result = plug.run(*arguments.split())
    result.assert_outcomes(errors=8, passed=1)
    assert plug.notes == ["provision False"]
    text = result.stdout.str()
    workers = 2 if "-n2" in arguments else 1
    assert "SourceMissing: " in text
    assert 8 - workers <= text.count("what to do: see the first test that says so") <= 7
    assert set(plug.locks.glob("run-*")) == before


def test_no_room_is_told_before_the_first_test(plug: Plug) -> None:
    plug.write(test_it=USING)
    result = plug.run("--stage-disk-min=1000TB")
    result.assert_outcomes(errors=8)
    result.stdout.fnmatch_lines(["NoRoom: *", "*see the first test that says so"])
