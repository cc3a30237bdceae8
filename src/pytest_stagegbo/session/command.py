"""Runs a command that uses the stage as a test does: containers are reset for it, and nobody else uses these
meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shlex
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.engine.reset import chosen
from pytest_stagegbo.plan import baselines
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.session.guard import DiskGuard
from pytest_stagegbo.session.requirements import Requirements
from pytest_stagegbo.session.session import StageSession
from pytest_stagegbo.session.summary import Summary
from pytest_stagegbo.stage import Stage
from pytest_stagegbo.stage.environment import child_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.errors import NoRoom

__all__ = ["Child", "run_command"]

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
END_SECONDS = 10.0
"""For a command to end after it was asked to, before it is killed."""
SLICE = 0.2
"""Seconds until a signal is noticed that interrupted nothing."""
LONGEST_NAME = 80
"""Characters of the command that others read who wait for the stage."""
_PR_SET_PDEATHSIG = 1


def run_command(
    engine: StageEngine,
    argv: Sequence[str],
    *,
    resets: Sequence[str] = (),
    baseline: str = "",
    showing: AbstractContextManager[object],
    prepare: Sequence[Callable[[StageSession], None]] = (),
) -> int:
    """Run a command with the stage's environment, and return its exit status as shells do.

    The command has the stage as one test of a session of pytest has it: provisioned if something is missing, its
    containers shared, those that are reset its own until it ends, its disk watched. All of it ends with this process.

    Args:
        resets: Containers that are reset before; see `StageEngine.reset`.
        baseline: The baseline that they, and all others that it may have, are brought to.
        showing: Entered for as long as the stage is made ready: shows progress.
        prepare: What else is done before the command starts, in order, with the locks held.

    Raises:
        NoRoom: the stage's disk filled up, so the command was ended.
        StageGboError: the stage can't be had.
    """
    names = [each.name for each in chosen(engine.settings, resets)]
    if baseline:
        names += [each.name for each in baselines.chosen(engine.settings, ()) if each.name not in names]
    wanted = Requirements(frozenset(engine.settings.containers), tuple(names), baseline=baseline)
    run, child = uuid.uuid4().hex, Child(argv)
    session = StageSession(engine, run, Summary(), kind="command")
    guard = DiskGuard(engine, child.end)
    with contextlib.ExitStack() as ends:
        ends.callback(session.close)
        ends.callback(session.stop_listening)
        ends.callback(session.forget, run)
        ends.callback(guard.close)
        with showing:
            session.ensure()
            session.check()
            guard.check()
            ends.callback(session.end)
            session.begin(_name(argv), wanted)
            session.baselines.check()
            session.check_deployed()
            for step in prepare:
                step(session)
            environment = child_environment(Stage(engine, reset=session.reset), os.environ)
        guard.start()
        status = child.run(environment)
        if engine.settings.pytest.verify:
            session.end()  # verifying waits for quiet tests, and they may be waiting for this command
            session.verify()
        return status


class Child:
    """A command that runs as a child: it gets the signals that this process gets, and ends when this process ends."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._ended_for: NoRoom | None = None

    def run(self, environment: Mapping[str, str]) -> int:
        """Its exit status; 128 and the number of the signal that ended it.

        Raises:
            NoRoom: what `end` was called with.
        """
        ignored = [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in PASSED_ON if number not in ignored}
        try:
            status = self._run(environment)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._ended_for is not None:
            raise self._ended_for
        return status if status >= 0 else 128 - status

    def _run(self, environment: Mapping[str, str]) -> int:
        if self._ended_for is not None:
            raise self._ended_for
        libc, parent = ctypes.CDLL(None), os.getpid()
        on_linux = sys.platform == "linux"  # elsewhere the command outlives a process that is killed

        def end_with_parent() -> None:
            """The locks go with this process, so nothing that it started may go on using the stage."""
            if on_linux:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        process = subprocess.Popen(self._argv, env=dict(environment), preexec_fn=end_with_parent)
        self._process = process
        for number in self._early:
            process.send_signal(number)
        if self._ended_for is not None:  # between the look above and the start
            process.terminate()
        return _wait(process)

    def end(self, error: NoRoom) -> None:
        """Have the command end; `run` raises the error. For another thread."""
        self._ended_for = error
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def _pass_on(self, number: int, _: object) -> None:
        if self._process is None:
            self._early.append(number)
        elif not (number in {signal.SIGINT, signal.SIGQUIT} and _in_foreground()):
            self._process.send_signal(number)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait in slices. A signal that comes just before a blocking call, or to another thread, does not interrupt it, and
    its handler runs when the call returns."""
    while sys.platform != "linux":  # no file descriptor stands for a process there
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(SLICE)
    with contextlib.suppress(ProcessLookupError):  # `end` has seen its end
        ended = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            while not poll.poll(SLICE * 1000):
                pass
        finally:
            os.close(ended)
    return process.wait()


def _in_foreground() -> bool:
    """Whether keys of a terminal send their signals to this process's group, in which the command is as well."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _name(argv: Sequence[str]) -> str:
    """For people who wait for the stage."""
    text = mask(shlex.join([Path(argv[0]).name, *argv[1:]]))
    return text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "..."
