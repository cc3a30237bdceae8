"""What a session says: at its head and its end, and of a test that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.lab.inner_pytest import Plug

pytestmark = pytest.mark.lab

FOLDER = "/opt/gbo/logs/plug"
LOGGING = f"""
    def log(service, text):
        service.exec("sh", "-c", f'mkdir -p {FOLDER}; echo "$(date "+%F %T.%3N") {{text}}" >>{FOLDER}/test.log')
"""


def test_the_report_of_a_failed_test_has_what_was_logged_since_it_began(plug: Plug) -> None:
    """Of the containers that it used, in each way to fail, secrets masked; other tests' reports have nothing."""
    plug.write(
        test_it=LOGGING
        + """
    def test_before(stage_cache):
        log(stage_cache, "line-of-before")

    def test_fails(stage_cache):
        log(stage_cache, "line-of-fails " + os.environ["PLUG_CACHE"])
        assert False

    @pytest.fixture
    def broken(stage_drive):
        log(stage_drive, "line-of-setup")
        raise RuntimeError

    def test_setup(broken): pass

    def test_plain():
        assert False
        """
    )
    result = plug.run()
    result.assert_outcomes(passed=1, failed=2, errors=1)
    text = result.stdout.str()
    failed, plain = (part for part in text.partition("= FAILURES =")[2].split("_ test_")[1:3])
    error = text.partition("= ERRORS =")[2].partition("= FAILURES =")[0]
    assert "stage container cache: logged since the test began" in failed
    assert "line-of-fails ***" in failed
    assert "line-of-before" not in text
    assert "stage container drive" not in failed
    assert "stage container drive: logged since the test began" in error
    assert "line-of-setup" in error
    assert "logged since" not in plain


@pytest.mark.parametrize(
    "freeze",
    ['freezegun.freeze_time("2012-01-14")', "time_machine.travel(0, tick=False)"],
    ids=["freezegun", "machine"],
)
def test_a_session_whose_time_is_frozen(plug: Plug, freeze: str) -> None:
    """Its report has the lines of its own test, its resets are signed with the time of now, its waits end."""
    plug.write(test_holder="@pytest.mark.stage_reset('cache')\ndef test_holder(keys):\n    block('blocked')")
    plug.write(
        test_it=f"""
    import freezegun, time, time_machine
    @pytest.fixture(autouse=True, scope="session")
    def frozen():
        with {freeze}:
            yield
    """
        + LOGGING
        + """
    def test_before(stage_drive):
        log(stage_drive, "line-of-before")
    @pytest.mark.stage_reset("drive")
    def test_fails(files):
        assert time.time() < 1_400_000_000
        assert files.get() == ""
        log(files, "line-of-fails")
        assert False
    def test_waits(stage_cache): pass
        """
    )
    conftest = plug.folder / "conftest.py"
    conftest.write_text(
        conftest.read_text().replace("self._exec = service.exec", "self._exec = self.exec = service.exec")
    )
    with plug.start("test_holder.py") as holder:
        holder.until((plug.folder / "blocked").exists)
        result = plug.run("test_it.py", "--stage-lock-timeout=1")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    text = result.stdout.str()
    assert "line-of-fails" in text
    assert "line-of-before" not in text
    assert "LockTimeout: stage STAGE-PLUG, container cache, was not free within 1 s" in text


def test_no_report_has_a_secret(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that nobody asked the stage for, and one with another shape than most."""
    monkeypatch.setenv("PLUG_SECRET", "Zq7-odd_Secret.of-nobody")
    plug.write(
        test_it=LOGGING
        + """
    def test_fails(stage_cache, stage_drive):
        log(stage_cache, os.environ["PLUG_CACHE"])
        log(stage_drive, "<" + os.environ["PLUG_SECRET"] + ">")
        raise RuntimeError("with purpose")
        """
    )
    result = plug.run("-l", "-vv")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "<***>" in text
    assert "Zq7-odd" not in text


PATCHED = """
    import builtins, io, json, socket, subprocess, sys, threading, time

    def boom(*args, **options):
        raise RuntimeError("patched by a test")

    def failing(*args, **options):
        pytest.fail("patched to fail")

    def leaving(*args, **options):
        sys.exit("patched to leave")

    class Guarded(socket.socket):
        def __new__(cls, *args, **options):
            raise RuntimeError("patched by a test")

    @pytest.mark.parametrize(("where", "name", "value"), [
        (socket.socket, "connect", boom),
        (socket.socket, "connect", failing),
        (socket.socket, "connect", leaving),
        (socket, "socket", Guarded),
        (builtins, "open", boom),
        (io, "open", boom),
        (json, "dumps", boom),
        (json, "loads", boom),
        (subprocess, "Popen", boom),
        (time, "time", lambda: None),
        (time, "monotonic", lambda: None),
        (time, "sleep", boom),
        (os, "open", boom),
        (threading.Thread, "start", boom),
        (threading, "Thread", boom),
    ])
    def test_patches(stage_cache, monkeypatch, where, name, value):
        monkeypatch.setattr(where, name, value)
        assert name == "its own failure"

    def test_after(keys):
        assert keys("PING") == "PONG"
"""


def test_a_test_that_patched_what_reports_need_fails_by_itself(plug: Plug) -> None:
    """Sockets, files, clocks, threads: its own failure is reported, and the tests after it run."""
    plug.write(test_it=PATCHED)
    result = plug.run("--tb=short")
    result.assert_outcomes(failed=15, passed=1)
    assert result.stdout.str().count("E   AssertionError: assert ") == 15
    result.stdout.fnmatch_lines(["*the logs could not be fetched: *patched *"])


def test_what_a_test_leaves_patched_ends_no_session(plug: Plug) -> None:
    """And what can't be proven any more is red."""
    plug.write(
        test_it=PATCHED.partition("    @pytest")[0]
        + """
    def test_patches(stage_cache):
        socket.socket.connect = boom
        raise AssertionError("its own failure")

    def test_plain(): pass
        """
    )
    result = plug.run(
        "--stage-verify", "-p", "no:pytest_socket", "-p", "no:socket"
    )  # which puts sockets back after each test
    result.assert_outcomes(failed=1, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*AssertionError: its own failure", "*stage-gbo: isolation*", "*patched by a test*"])


@pytest.mark.parametrize("form", ["--stage-keep", "-o stage_keep=true"])
def test_keep_stops_and_says_how_to_look_inside(plug: Plug, form: str) -> None:
    plug.write(
        test_it="""
            @pytest.mark.stage_reset("cache")
            def test_fails(keys, stage_drive):
                keys("SET", "evidence", "1")
                assert False
            @pytest.mark.stage_reset("cache")
            def test_never(keys): pass
        """,
        test_look='def test_look(keys): assert keys("GET", "evidence") == "1"',
    )
    result = plug.run("test_it.py", *form.split())
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*stage kept as the test left it; to look inside*",
            "stagegbo --lab --project STAGE-PLUG shell cache",
            "stagegbo --lab --project STAGE-PLUG shell drive",
            "*Interrupted: --stage-keep: test_it.py::test_fails failed and the stage is left as it was*",
        ]
    )
    plug.run("test_look.py").assert_outcomes(passed=1)


def test_keep_shows_the_failure_of_a_test_that_is_run_again(plug: Plug) -> None:
    """Plugins that run a failed test again do not show the report of its first attempt."""
    plug.write(
        again="""
            import pytest
            from _pytest.runner import runtestprotocol

            @pytest.hookimpl(tryfirst=True)
            def pytest_runtest_protocol(item, nextitem):
                for attempt in range(2):
                    reports = runtestprotocol(item, nextitem=nextitem, log=False)
                for report in reports:
                    item.ihook.pytest_runtest_logreport(report=report)
                return True
        """,
        test_it="""
            @pytest.mark.stage_reset("cache")
            def test_fails(keys):
                assert keys("INCR", "attempts") > 1, "its own failure"
        """,
    )
    result = plug.run("test_it.py", "-p", "again", "--stage-keep")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the stage is kept as this test left it when it failed:", "*its own failure*"])


def test_keep_keeps_from_all_workers(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one waits for the container when the test fails, and has it next."""
    pytest.importorskip("xdist")
    monkeypatch.setenv("PLUG_GATE", str(plug.locks / "cache.gate"))
    plug.write(
        waiting="""
            import time

            def until(condition):
                while not condition():
                    time.sleep(0.01)
        """,
        test_one="""
            import fcntl
            from pathlib import Path
            from waiting import until

            def is_waited_for():
                with Path(os.environ["PLUG_GATE"]).open() as gate:
                    try:
                        fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return True

            @pytest.mark.stage_reset("cache")
            def test_fails(keys):
                keys("SET", "evidence", "1")
                note("held")
                until(is_waited_for)
                assert False

        """,
        test_two="""
            from conftest import HERE
            from waiting import until

            def test_until_held():
                until((HERE / "notes").exists)

            @pytest.mark.stage_reset("cache")
            def test_next(keys): note("next ran")
        """,
        test_look='def test_look(keys): assert keys("GET", "evidence") == "1"',
    )
    result = plug.run("-n2", "--dist=loadfile", "--stage-keep", "test_one.py", "test_two.py")
    assert plug.notes == ["held"]
    result.stdout.fnmatch_lines(["NotHeld: the stage is kept as test_one.py::test_fails left it"])
    plug.run("test_look.py").assert_outcomes(passed=1)


def test_without_keep_the_session_goes_on(plug: Plug) -> None:
    plug.write(
        test_it="""
            def test_fails(keys): assert False
            def test_next(keys): pass
        """
    )
    result = plug.run("-o", "stage_keep=false")
    result.assert_outcomes(failed=1, passed=1)
    assert "to look inside" not in result.stdout.str()


def test_head_and_end(plug: Plug) -> None:
    plug.stagegbo("provision")
    plug.engine.execute("drive", ["sh", "-c", "rm -f /opt/gbo/data/minio/large; sync"])
    plug.write(
        test_it="""
            @pytest.mark.stage_reset("cache")
            def test_one(keys): pass
            @pytest.mark.stage_reset("cache", "drive")
            def test_two(keys): pass
            def test_three(files):
                files._exec("sh", "-c", "head -c 8M /dev/urandom >/opt/gbo/data/minio/large; sync")
        """
    )
    result = plug.run()
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "stage-gbo: project STAGE-PLUG on Incus * at */unix.socket; pool pool (*): * free, * below it on the host",
            "*= stage-gbo =*",
            "reset cache: once, *s",
            "reset cache, drive: once, *s",
            "resets in all: 2 times, median *s, longest *s",
            "grew: *drive [78]* MiB*",
        ]
    )


def test_nothing_is_said_where_no_test_used_it(plug: Plug) -> None:
    plug.write(test_it="def test_plain(): pass")
    result = plug.run()
    result.assert_outcomes(passed=1)
    assert "= stage-gbo =" not in result.stdout.str()


UNUSUAL = "test_\udcff.py"
"""As Python has the name of a file with the byte 0xff in it."""


@pytest.mark.parametrize("options", [(), ("--stage-keep",)], ids=["plain", "keep"])
def test_names_that_are_not_utf8(plug: Plug, options: tuple[str, ...]) -> None:
    """Of test files and of tests: these use, reset and leave the stage as any others do, and reports name them."""
    (plug.folder / UNUSUAL).write_text(
        "import pytest\n"
        "@pytest.mark.stage_reset('cache', 'drive')\n"
        "def test_one(keys, files): files.put('left')\n"
        "@pytest.mark.stage_reset('drive')\n"
        "@pytest.mark.parametrize('value', [1], ids=['\\udcff'])\n"
        "def test_two(files, value, stage_cache):\n"
        "    assert files.get() == ''\n"
        "    stage_cache.exec('false')\n"
    )
    unescaped = "disable_test_id_escaping_and_forfeit_all_rights_to_community_support=true"
    before = set(plug.locks.glob("*.holder"))
    result = plug.run("-p", "no:xdist", "-o", unescaped, *options)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*CommandFailed: false in cache ended with status 1", "*stage containers cache, drive: logged*"]
    )
    assert set(plug.locks.glob("*.holder")) <= before  # those of sessions that other tests have killed
    if not options:
        assert (plug.locks / "drive.user").read_text() == "test_\\udcff.py::test_two[\\udcff]"


@pytest.mark.parametrize("options", [("--disable-socket", "-p", "no:xdist"), ("--disable-socket", "-n2")], ids=" ".join)
def test_sockets_that_pytest_socket_disables(plug: Plug, options: tuple[str, ...]) -> None:
    """Each failing test keeps its own failure, and those after it are run, reset as ever."""
    plug.write(
        test_it="""
    import socket

    @pytest.mark.stage_reset("cache", "drive")
    def test_own(stage_cache, stage_drive): assert stage_cache.host == "its own"

    @pytest.mark.stage_reset("cache")
    def test_blocked(stage_cache): socket.create_connection((stage_cache.host, stage_cache.port), 5)

    @pytest.mark.stage_reset("cache", "drive")
    @pytest.mark.enable_socket
    def test_after(keys, files):
        assert (keys("DBSIZE"), files.get()) == (0, "")
        """
    )
    result = plug.run(*options)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "E*AssertionError: assert '10.0.5.13' == 'its own'",
            "E*SocketBlockedError: *",
            "(what changed can't be told: Socket*",
        ]
    )


def test_files_that_are_faked(plug: Plug) -> None:
    """pyfakefs has files of its own for tests; what is done to the stage sees the host's, on all threads."""
    plug.write(
        test_it="""
    import gc, os, threading
    from pathlib import Path

    @pytest.fixture
    def early(fs):
        fs.create_file("/made/up")

    @pytest.mark.stage_reset("cache")
    def test_before(keys): keys("SET", "left", 1)

    @pytest.mark.stage_reset("cache", "drive")
    def test_faked(early, keys, stage_gbo, request):
        keys("SET", "key", 1)
        stage_gbo.reset("cache")
        assert stage_gbo.drive.exec("echo", "here").stdout == "here\\n"
        assert stage_gbo.cache.logs(lines=1)
        (guard,) = (each for each in gc.get_objects() if type(each).__name__ == "DiskGuard")
        guard.check()
        seen = []
        thread = threading.Thread(target=lambda: seen.append((guard._look(), guard.trouble())))
        thread.start()
        thread.join()
        assert seen[0][1] == "" and guard.doubt() == ""
        assert Path("/made/up").exists()
        assert not os.path.exists("/proc")

    def test_fails(early, stage_cache):
        assert not os.path.exists("/made/up")

    def test_asks_late(early, request):
        request.getfixturevalue("stage_cache")
        assert os.path.exists("/made/up")

    def test_client(early, stage_valkey):
        assert stage_valkey.ping()
        assert os.path.exists("/made/up")
        """
    )
    before = set(plug.locks.glob("*.holder"))
    result = plug.run("-p", "no:xdist", "--stage-verify")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*stage container cache: logged since the test began*"])
    result.stdout.no_fnmatch_line("*could not be fetched*")
    assert set(plug.locks.glob("*.holder")) <= before  # those of sessions that other tests have killed
