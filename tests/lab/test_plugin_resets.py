"""What is clean when a test begins, and what is kept: with real data, over every way to ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.lab.inner_pytest import PROJECT

from pytest_stagegbo.incus.connection import Connection

if TYPE_CHECKING:
    from tests.lab.inner_pytest import Plug

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]

TWO = """
    def test_first(keys, files):
        keys("FLUSHALL")
        keys("SET", "mine", "1")
        files.put("mine")

    def test_second(keys, files):
        note(f"{keys('DBSIZE')} {files.get()}")
"""
"""What the first one leaves, the second one notes."""
KEPT, NO_KEY, NO_FILE, CLEAN = "1 mine", "0 mine", "1 ", "0 "


@pytest.mark.parametrize(
    ("arguments", "ini", "expected"),
    [
        pytest.param([], "", KEPT, id="nothing asked"),
        pytest.param(["--stage-reset=cache"], "", NO_KEY, id="cache"),
        pytest.param(["--stage-reset=drive"], "", NO_FILE, id="drive"),
        pytest.param(["--stage-reset=all"], "stage_reset = none", CLEAN, id="all, over ini"),
        pytest.param(["--stage-reset=none"], "stage_reset = cache,drive", KEPT, id="none, over ini"),
        pytest.param([], "stage_reset = cache,drive", CLEAN, id="ini"),
    ],
)
def test_option_and_ini(plug: Plug, arguments: list[str], ini: str, expected: str) -> None:
    plug.write(test_two=TWO)
    plug.pytester.makeini(f"[pytest]\n{ini}\n")
    plug.run(*arguments).assert_outcomes(passed=2)
    assert plug.notes == [expected]


def test_marker_on_test_class_and_module(plug: Plug) -> None:
    """The closest one counts, over `--stage-reset`."""
    plug.write(
        test_a_module="""
            pytestmark = pytest.mark.stage_reset("cache")

            def test_first(keys, files):
                keys("SET", "mine", "1")
                files.put("mine")

            def test_module(keys, files):
                note(f"module {keys('DBSIZE')} {files.get()}")
                keys("SET", "mine", "1")

            @pytest.mark.stage_reset("none")
            def test_none(keys, files):
                note(f"none {keys('DBSIZE')} {files.get()}")

            @pytest.mark.stage_reset("drive")
            class TestClass:
                def test_class(self, keys, files):
                    note(f"class {keys('DBSIZE')} {files.get()}")
                    files.put("mine")

                @pytest.mark.stage_reset("all")
                def test_own(self, keys, files):
                    note(f"own {keys('DBSIZE')} {files.get()}")
        """
    )
    plug.run("--stage-reset=all").assert_outcomes(passed=5)
    assert plug.notes == [f"module {NO_KEY}", f"none {KEPT}", f"class {NO_FILE}", f"own {CLEAN}"]


def test_what_is_not_used_is_not_reset(plug: Plug) -> None:
    """`--stage-reset` is about the containers that a test uses."""
    plug.write(
        test_it="""
            def test_put(files):
                files.put("mine")
            def test_other(keys):
                assert keys("DBSIZE") == 0
                keys("SET", "mine", "1")
            def test_none(): pass
            @pytest.mark.stage_reset("none")
            def test_look(keys, files):
                note(f"{keys('DBSIZE')} {files.get()}")
        """
    )
    result = plug.run("--stage-reset=all")
    result.assert_outcomes(passed=4)
    assert plug.notes == [KEPT]
    result.stdout.fnmatch_lines_random(["reset cache: once, *s", "reset drive: once, *s"])


def test_a_marker_is_enough(plug: Plug) -> None:
    """Without any fixture of the stage: what the code under test finds by itself is clean."""
    plug.write(
        test_it="""
            def test_put(keys): keys("SET", "mine", "1")
            @pytest.mark.stage_reset("cache")
            def test_marked(): pass
            def test_look(keys): assert keys("DBSIZE") == 0
        """
    )
    plug.run().assert_outcomes(passed=3)


def test_a_reset_in_the_middle_of_a_test(plug: Plug) -> None:
    """Of what the test keeps to itself; anything else may be somebody else's at this moment."""
    plug.write(
        test_it="""
            from conftest import Keys
            from pytest_stagegbo.errors import NotHeld

            @pytest.mark.stage_reset("cache")
            def test_held(stage_gbo, keys, files):
                keys("SET", "mine", "1")
                files.put("mine")
                stage_gbo.reset("cache")
                again = Keys(stage_gbo.cache)
                assert again("DBSIZE") == 0
                again.close()
                with pytest.raises(NotHeld, match='stage_reset'):
                    stage_gbo.reset("drive")
                assert files.get() == "mine"

            def test_shared(stage_gbo):
                with pytest.raises(NotHeld):
                    stage_gbo.reset("cache")
        """
    )
    plug.run().assert_outcomes(passed=2)


def test_skipped_tests_reset_nothing(plug: Plug) -> None:
    plug.write(
        test_it="""
            def test_put(keys):
                keys("FLUSHALL")
                keys("SET", "mine", "1")
            @pytest.mark.skip
            @pytest.mark.stage_reset("cache")
            def test_skipped(keys): pass
            @pytest.mark.skipif("True", reason="so")
            @pytest.mark.stage_reset("all")
            def test_skipped_too(keys): pass
            def test_look(keys): assert keys("DBSIZE") == 1
        """
    )
    plug.run().assert_outcomes(passed=2, skipped=2)


def test_a_failed_reset_fails_the_test_and_is_tried_again_by_the_next(plug: Plug) -> None:
    """Whoever uses the container finds it clean and answering, or learns why it is not."""
    trap = "/opt/gbo/data/valkey/trap"
    plug.write(
        test_it=f"""
            @pytest.fixture(scope="module")
            def trap(stage_cache):
                stage_cache.exec("mkdir", "-p", "{trap}")
                stage_cache.exec("mount", "-t", "tmpfs", "none", "{trap}")
            def test_before(trap): pass
            @pytest.mark.stage_reset("cache")
            def test_trapped(keys): note("ran")
            def test_used(keys): note("ran")
            def test_freed(stage_drive, pytestconfig):
                from pytest_stagegbo.plugin.stash import PROCESS
                pytestconfig.stash[PROCESS].engine().execute("cache", ["umount", "{trap}"])
            def test_after(keys):
                assert keys("DBSIZE") == 0
        """
    )
    result = plug.run("-ra")
    result.assert_outcomes(passed=3, errors=2)
    assert plug.notes == []
    assert result.stdout.str().count(f"cache is not clean: {trap} can't be removed, left by ") >= 2
    result.stdout.fnmatch_lines(["*ERROR at setup of test_trapped*", "Residue: *", "*ERROR at setup of test_used*"])
    plug.is_whole()


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only", "--collect-only"])
def test_a_run_without_a_test_resets_nothing(plug: Plug, option: str) -> None:
    plug.write(
        test_put='def test_put(keys): keys("SET", "mine", "1")',
        test_two='@pytest.mark.stage_reset("cache")\ndef test_reset(keys): pass',
        test_look='def test_look(keys): assert keys("GET", "mine") == "1"',
    )
    plug.run("test_put.py").assert_outcomes(passed=1)
    before = plug.created()
    result = plug.run(option, "test_two.py", "--stage-provision=recreate", "--stage-reset=all")
    assert result.ret == 0
    assert "= stage-gbo =" not in result.stdout.str()
    assert plug.created() == before
    plug.run("test_look.py").assert_outcomes(passed=1)


ASKING = """
    import unittest
    TWICE = pytest.mark.parametrize("number", range(2))

    def use(service):
        from conftest import Keys
        client = Keys(service)
        note(f"{client('DBSIZE')}")
        client("SET", "mine", "1")
        client.close()

    @TWICE
    def test_body(request, number):
        use(request.getfixturevalue("stage_cache"))

    @pytest.fixture
    def asks(request): return request.getfixturevalue("stage_gbo").cache
    @TWICE
    def test_fixture(asks, number): use(asks)

    @pytest.fixture(scope="module")
    def wide(request): return request.getfixturevalue("stage_cache")
    @TWICE
    def test_wide(wide, number): use(wide)
    @TWICE
    def test_asks_wide(request, number): use(request.getfixturevalue("wide"))

    @pytest.fixture(scope="module")
    def late(request): return request.getfixturevalue("stage_cache")
    def test_has_it_already(stage_cache, late): use(late)
    def test_late(late): use(late)

    @pytest.fixture
    def indirect(request): return request.getfixturevalue(request.param)
    @TWICE
    @pytest.mark.parametrize("indirect", ["stage_cache"], indirect=True)
    def test_indirect(indirect, number): use(indirect)

    class TestOld(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def _ask(self, request): self.request = request
        def test_one(self): use(self.request.getfixturevalue("stage_cache"))
        def test_two(self): use(self.request.getfixturevalue("stage_cache"))

    @TWICE
    def test_beside_another(stage_drive, request, number):
        use(request.getfixturevalue("stage_cache"))

    def test_twice_in_a_test(request):
        use(request.getfixturevalue("stage_cache"))
        assert request.getfixturevalue("stage_gbo").cache is request.getfixturevalue("stage_cache")
        from conftest import Keys
        assert Keys(request.getfixturevalue("stage_cache"))("DBSIZE") == 1

    def first():
        '''
        >>> use(getfixture("stage_cache"))
        '''
    def second():
        '''
        >>> use(getfixture("stage_cache"))
        '''
"""


def test_whoever_asks_for_a_fixture_gets_what_it_needs(plug: Plug) -> None:
    """In the test's body, in a fixture of any scope, a doctest, a class of unittest: each finds it clean."""
    plug.write(test_asking=ASKING)
    plug.run("--stage-reset=cache", "--doctest-modules", "test_asking.py").assert_outcomes(passed=19)
    assert plug.notes == ["0"] * 19


def test_whoever_asks_while_a_test_runs_waits_for_who_has_it(plug: Plug) -> None:
    """In another process, whose clean test stays clean."""
    pytest.importorskip("xdist")
    plug.write(
        test_one="""
            import time
            from pathlib import Path
            @pytest.mark.stage_reset("cache")
            def test_clean(keys):
                Path("has").touch()
                deadline = time.monotonic() + 2
                while time.monotonic() < deadline:
                    assert keys("KEYS", "*") == []
        """,
        test_two="""
            import time
            from pathlib import Path
            from conftest import Keys
            def test_asks(request):
                deadline = time.monotonic() + 60
                while not Path("has").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                Keys(request.getfixturevalue("stage_cache"))("SET", "dirt", "1")
                note("asked")
        """,
    )
    plug.run("-n2", "--dist=loadfile", "test_one.py", "test_two.py").assert_outcomes(passed=2)
    assert plug.notes == ["asked"]


def test_a_fresh_stage_is_not_shared_with_its_own_test(plug: Plug) -> None:
    """There is one; waiting for it would never end."""
    plug.write(test_it='def test_it(stage_fresh, request): request.getfixturevalue("stage_cache")')
    result = plug.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["NotHeld: the fresh stage of this test is the one that stage_cache would share*"])


def test_a_wide_fixture_is_torn_down_when_nobody_else_has_its_container_to_himself(plug: Plug) -> None:
    """It ends with a test that does not use it, while another process has a clean container."""
    pytest.importorskip("xdist")
    plug.write(
        waiting=WAITING,
        test_one="""
            import time
            from pathlib import Path
            from waiting import until
            def test_until_it_is_used(): until("used")
            @pytest.mark.stage_reset("cache")
            def test_clean(keys):
                Path("has").touch()
                deadline = time.monotonic() + 1
                while time.monotonic() < deadline:
                    assert keys("KEYS", "*") == []
        """,
        test_two="""
            from pathlib import Path
            from conftest import Keys
            from waiting import until
            @pytest.fixture(scope="module")
            def named(stage_cache):
                yield
                Keys(stage_cache)("SET", "dirt", "1")
                note("torn down")
            @pytest.fixture(scope="module")
            def asking(request):
                cache = request.getfixturevalue("stage_cache")
                yield
                Keys(cache)("SET", "dirt", "2")
                note("torn down")
            def test_uses(named, asking): Path("used").touch()
            def test_plain(): until("has")
        """,
    )
    plug.run("-n2", "--dist=loadfile", "test_one.py", "test_two.py").assert_outcomes(passed=4)
    assert plug.notes == ["torn down"] * 2


WAITING = """
    import time
    from pathlib import Path
    def until(name):
        deadline = time.monotonic() + 60
        while not Path(name).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
"""


AWAY = """
    def incus(stage, method, *path, body):
        connection = stage._engine._connection
        reply = connection.request(method, ("instances", *path), params={"project": stage.project}, body=body)
        connection.wait(reply, "test", 60)

    def state(stage, action):
        incus(stage, "PUT", "cache", "state", body={"action": action, "timeout": -1, "force": action == "stop"})
"""


def test_a_paused_clone_goes_on_at_the_next_reset_and_one_that_is_gone_is_named(plug: Plug) -> None:
    """At once: its kept shell, and its port, would be waited for as long as an operation may take."""
    plug.write(
        test_it=AWAY
        + """
    @pytest.mark.stage_reset("cache")
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_it(stage_gbo, keys, number):
        assert keys("DBSIZE") == 0
        keys("SET", "mine", number)
        if number == 1:
            state(stage_gbo, "freeze")
        if number == 2:
            state(stage_gbo, "stop")
            incus(stage_gbo, "POST", "cache", body={"name": "away"})
        """
    )
    try:
        result = plug.run("--durations=0", "--durations-min=30")
        result.assert_outcomes(passed=2, errors=1)
        assert "StageMissing: STAGE-PLUG has no container cache any more" in result.stdout.str()
        assert "s setup" not in result.stdout.str()
    finally:
        connection, query = Connection(plug.engine.settings.incus), {"project": PROJECT}
        reply = connection.request("POST", ("instances", "away"), params=query, body={"name": "cache"})
        connection.wait(reply, "renaming it back", 60)


@pytest.mark.parametrize("cut", ["link delete plugbr0", "link set plugbr0 down"])
def test_a_bridge_that_goes_within_a_session_is_said_by_the_next_reset(plug: Plug, cut: str) -> None:
    """Kept shells need no bridge, and what nobody touched is seen without a connection. `provision` mends it."""
    plug.write(
        test_it=f"""
        import subprocess

        @pytest.mark.stage_reset("cache", "drive")
        @pytest.mark.parametrize("n", range(3))
        def test_before(stage_cache, stage_drive, n): pass

        def test_cut(stage_drive):
            subprocess.run("ip {cut}".split(), check=True)
            assert stage_drive.exec("hostname").stdout == "drive\\n"

        @pytest.mark.stage_reset("drive")
        def test_drive(stage_drive): pass

        @pytest.mark.stage_reset("cache")
        def test_cache(stage_cache): pass
        """
    )
    result = plug.run()
    result.assert_outcomes(passed=4, errors=2)
    for name in ("drive", "cache"):
        result.stdout.fnmatch_lines([f"StageMissing: {name} can't be reached: the stage's bridge plugbr0 *"])
    assert plug.stagegbo("provision").returncode == 0
    plug.is_whole()


def test_a_baseline_that_a_fixture_saves(plug: Plug) -> None:
    """For the tests of this run that are marked with it, in any order with others; another run saves its own."""
    plug.write(
        test_it="""
            import os
            from conftest import Keys

            @pytest.fixture(scope="session")
            def demo(stage_gbo):
                if stage_gbo.needs_baseline("demo"):
                    note("saved")
                    client = Keys(stage_gbo.cache)
                    client("SET", "demo", "1")
                    client.close()
                    stage_gbo.save_baseline("demo")

            @pytest.mark.parametrize("number", range(2))
            @pytest.mark.stage_baseline("demo")
            def test_demo(demo, keys, files, number):
                note(f"demo {keys('DBSIZE')} {files.get()}")
                keys("SET", "mine", "1")
                files.put("mine")

            @pytest.mark.stage_reset("all")
            def test_plain(keys, files):
                note(f"plain {keys('DBSIZE')} {files.get()}")
                keys("SET", "mine", "1")

            @pytest.mark.stage_baseline("demo")
            def test_again(stage_gbo, keys, files):
                note(f"again {keys('DBSIZE')} {files.get()}")
                keys("FLUSHALL")
                stage_gbo.reset("cache")
                client = Keys(stage_gbo.cache)
                assert client("GET", "demo") == "1"
                client.close()
        """
    )
    expected = ["saved", "demo 1 ", "demo 1 ", f"plain {CLEAN}", "again 1 "]
    plug.run().assert_outcomes(passed=4)
    assert plug.notes == expected
    plug.run("-n2").assert_outcomes(passed=4)  # workers share the stage, and what one of them has saved
    assert sorted(plug.notes) == sorted(expected * 2)


def test_a_baseline_that_is_not_there(plug: Plug) -> None:
    """The test does not run on another state, and nobody saves one that others may be changing."""
    plug.write(
        test_it="""
            import pytest
            from pytest_stagegbo.errors import NotHeld

            @pytest.mark.stage_baseline("nowhere")
            def test_missing(keys): note("ran")

            @pytest.mark.stage_reset("cache")
            def test_not_held(stage_gbo):
                with pytest.raises(NotHeld, match='stage_baseline."demo"'):
                    stage_gbo.save_baseline("demo")

            @pytest.mark.stage_baseline("one", "two")
            def test_wrong(): pass
        """
    )
    result = plug.run("--continue-on-collection-errors")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*stage_baseline takes one name, and got 'one', 'two'*"])
    result.stdout.fnmatch_lines(["*BaselineMissing: the stage has no baseline nowhere*"])
    assert plug.notes == []
