"""Locks and the relatives of their holder: children that outlive it, children that it waits for, clocks that stand."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, cast

import freezegun
import pytest
import time_machine

from pytest_stagegbo import clocks, locks
from pytest_stagegbo.errors import LockTimeout
from pytest_stagegbo.incus.websocket import _WebSocketStream
from pytest_stagegbo.locks import StageLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_stagegbo.incus.websocket import _WebSocket

PATIENCE = 10.0
PROLOGUE = """
import ctypes, os, signal, subprocess, sys, threading
from pathlib import Path
from pytest_stagegbo import locks

locks.PARENTS = (Path(sys.argv[1]),)
def stage(timeout=0):
    return locks.StageLock(sys.argv[2], "server", "STAGE-GBO", timeout)
def say(text):
    os.write(1, f"{text}\\n".encode())
"""
HELD = "lock = stage(); lock.acquire('test test_it.py::test_it', exclusive=['cache'])\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """The folder of locks, and a socket that they belong to."""
    folder = tmp_path / "lock"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(locks, "PARENTS", (folder,))
    with tempfile.TemporaryDirectory() as sockets, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{sockets}/s")
        yield str(folder), f"{sockets}/s"


@pytest.fixture
def run(place: tuple[str, str]) -> Callable[[str], list[str]]:
    """Run a program in a process of its own; the lines that it, and what it leaves behind, said until it ended."""

    def start(program: str) -> list[str]:
        argv = [sys.executable, "-c", PROLOGUE + program, *place]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "end\n")
            return [line.strip() for line in lines if line]

    return start


@pytest.fixture
def lock(place: tuple[str, str]) -> Callable[[float], StageLock]:
    return lambda timeout: StageLock(place[1], "server", "STAGE-GBO", timeout)


LEAVES_A_CHILD = """
{held}
{fork}
if child == 0:
    os.setsid()
    say(os.getpid())
    say("end")
    os.close(1)
    signal.pause()
os._exit(0)
"""


def test_a_forked_child_holds_nothing(run: Callable[[str], list[str]], lock: Callable[[float], StageLock]) -> None:
    (child,) = run(LEAVES_A_CHILD.format(held=HELD, fork="child = os.fork()"))
    try:
        with lock(PATIENCE).hold("reset", exclusive=["cache"]):
            os.kill(int(child), 0)  # it lives
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_nor_does_a_program_that_keeps_all_descriptors(
    run: Callable[[str], list[str]], lock: Callable[[float], StageLock]
) -> None:
    (child,) = run(
        HELD + "child = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL)\n"
        "say(child.pid)\nsay('end')\nos._exit(0)"
    )
    try:
        with lock(PATIENCE).hold("reset", exclusive=["cache"]):
            os.kill(int(child), 0)
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_child_that_c_code_forked_is_named(
    run: Callable[[str], list[str]], lock: Callable[[float], StageLock]
) -> None:
    """It has run no Python that could close anything."""
    (child,) = run(LEAVES_A_CHILD.format(held=HELD, fork="child = ctypes.CDLL(None).fork()"))
    try:
        with pytest.raises(LockTimeout, match="container cache, was not free") as caught:
            lock(0).acquire("reset", exclusive=["cache"])
        assert re.search(
            rf"held by process {child} \(\S*python\S* -c .*\), which began at \d\d:\d\d:\d\d", caught.value.seen
        )
        assert "safe to end" in caught.value.remedy
        told: list[str] = []
        with pytest.raises(LockTimeout):
            lock(0.1).acquire("reset", told.append, exclusive=["cache"])
        assert f"process {child} (" in told[0]
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_child_can_hold_locks_of_its_own(run: Callable[[str], list[str]]) -> None:
    """As the tests of pytest-forked do: the parent, which holds nothing then, takes them for nobody's."""
    said = run(
        "lock = stage()\n"
        "with lock.hold('before', exclusive=['cache']): pass\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    lock.acquire('test in a child', exclusive=['cache'])\n"
        "    say(len(list(lock.folder.glob(f'{os.getpid()}-*.holder'))))\n"
        "    try: stage().acquire('another', exclusive=['cache'])\n"
        "    except Exception as error: say(type(error).__name__)\n"
        "    lock.release()\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "with lock.hold('after', exclusive=['cache']): say('free')\n"
        "say('end')"
    )
    assert said == ["1", "LockTimeout", "free"]


def test_a_forked_child_closes_the_sockets_of_a_kept_shell() -> None:
    ours, daemons = socket.socketpair()
    stream = _WebSocketStream(cast("_WebSocket", type("Client", (), {"sock": ours})()), "/1.0/events")
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.close(daemons.fileno())
        while True:
            signal.pause()
    try:
        stream.close()
        daemons.settimeout(PATIENCE)
        assert daemons.recv(1) == b""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        daemons.close()


class TestItsOwnParent:
    """Waiting for a process that waits for the waiter fails at once, however long the time-out."""

    def wait(self, run: Callable[[str], list[str]], **mine: list[str]) -> str:
        child = f"""
try: stage(600).acquire('reset cache', shared={mine.get("shared", [])}, exclusive={mine.get("exclusive", [])})
except Exception as error: say(f'{{error.message}}|{{error.seen}}|{{error.remedy}}')
else: say('had')
say('end')
"""
        began = time.monotonic()
        (said,) = run(child)
        assert time.monotonic() - began < 60
        return said

    def test_is_named(self, lock: Callable[[float], StageLock], run: Callable[[str], list[str]]) -> None:
        with lock(0).hold("test test_it.py::test_it", shared=[locks.STAGE], exclusive=["cache"]):
            message, seen, remedy = self.wait(run, exclusive=["cache"]).split("|")
        assert "container cache, is held by the process that started this one" in message
        assert seen.startswith(f"held by process {os.getpid()} (test test_it.py::test_it) since ")
        assert "stage.reset(" in remedy

    def test_may_share(self, lock: Callable[[float], StageLock], run: Callable[[str], list[str]]) -> None:
        with lock(0).hold("test", shared=[locks.STAGE, "cache"], exclusive=[]):
            assert self.wait(run, shared=["cache"]) == "had"

    def test_may_share_past_who_waits_for_the_parent(
        self, lock: Callable[[float], StageLock], run: Callable[[str], list[str]]
    ) -> None:
        """A third one keeps the gate shut until the parent leaves, which waits for its child."""
        shutting, done = threading.Event(), threading.Event()

        def third() -> None:
            def waiting(_: str) -> None:
                shutting.set()

            with lock(60).hold("reset", waiting, exclusive=["cache"]):
                done.set()

        with lock(0).hold("test", shared=["cache"], exclusive=[]):
            thread = threading.Thread(target=third)
            thread.start()
            assert shutting.wait(PATIENCE)
            assert self.wait(run, shared=["cache"]) == "had"
            assert not done.is_set()
        thread.join(PATIENCE)
        assert done.is_set()

    def test_may_be_this_very_process(self, lock: Callable[[float], StageLock]) -> None:
        with (
            lock(0).hold("test", exclusive=["cache"]),
            pytest.raises(LockTimeout, match="is held by this process itself"),
        ):
            lock(600).acquire("reset", exclusive=["cache"])

    def test_another_thread_lets_go_by_itself(self, lock: Callable[[float], StageLock]) -> None:
        holding = lock(0)
        holding.acquire("reset behind the tests", exclusive=["cache"])
        holding.for_any_thread()

        def waiting(_: str) -> None:
            threading.Thread(target=holding.release).start()

        lock(PATIENCE).acquire("test", waiting, exclusive=["cache"])


class TestClocksThatStand:
    @pytest.fixture(params=["freezegun", "time-machine", "monkeypatch"])
    def frozen(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        if request.param == "freezegun":
            with freezegun.freeze_time("2012-01-14"):
                yield
        elif request.param == "time-machine":
            with time_machine.travel(0, tick=False):
                yield
        else:
            for name in ("time", "monotonic", "clock_gettime", "perf_counter"):
                monkeypatch.setattr(time, name, lambda *_: 0.0)
            monkeypatch.setattr(time, "sleep", lambda _: None)
            yield
            monkeypatch.undo()

    @pytest.mark.usefixtures("frozen")
    def test_do_not_stop_the_wait_for_a_lock(self, place: tuple[str, str]) -> None:
        argv = [sys.executable, "-c", PROLOGUE + HELD + "say('held'); sys.stdin.read()", *place]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(LockTimeout, match="was not free within 0 s"):
                StageLock(place[1], "server", "STAGE-GBO", 0.2).acquire("test", exclusive=["cache"])

    @pytest.mark.usefixtures("frozen")
    def test_do_not_change_what_time_it_is_for_a_stage(self, tmp_path: Path) -> None:
        """The kernel's own time, that of a file which was just written, is beside it."""
        before = clocks.now()
        (tmp_path / "file").touch()
        after = clocks.now()
        assert before - 0.1 <= (tmp_path / "file").stat().st_mtime <= after + 0.1
        began = clocks.monotonic()
        clocks.sleep(0.01)
        assert clocks.monotonic() - began >= 0.01
        assert clocks.utc_text("%Y") > "2012"
