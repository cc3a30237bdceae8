"""What people see: commands on terminals of two widths and in a pipe, compared with files.

After a change that is meant: `pytest tests/lab/test_screens.py -m lab --snapshot-update`, and read the difference.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from syrupy.assertion import SnapshotAssertion
    from tests.lab.conftest import Incus
    from tests.lab.inner_pytest import Plug

pytestmark = pytest.mark.lab

COMMANDS = {
    "status": ("status",),
    "endpoints": ("endpoints",),
    "env": ("env",),
    "verify": ("verify", "--check", "locked.project", "--check", "locked.instances"),
    "provision": ("provision", "--dry-run"),
    "destroy": ("destroy", "--dry-run"),
    "a stage that is not there": ("--project", "STAGE-NOT-THERE", "status"),
    "an error": ("reset", "nothing"),
    "doctor": ("doctor",),
}
WIDTHS = (80, 160, 0)
"""Columns of a terminal; 0: a pipe."""
CUT_ELSEWHERE = {("doctor", 80), ("doctor", 160)}
"""Lines with folders of this machine, which are as long as they are."""
CHANGING = [
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),  # colours and the cursor
    (re.compile(r"\r"), ""),
    (re.compile(r"/\S+/unix\.socket"), "SOCKET"),
    (re.compile(r"/\S+/stagegbo\.toml"), "SETTINGS"),
    (re.compile(r"/\S+/vault-init\.json"), "KEYS"),
    (re.compile(r"\b\d+(?:\.\d+)? (?:[KMG]iB|GB|MB)\b"), "SIZE"),
    (re.compile(r"(Python|stagegbo|pylxd|Incus|with|on Incus) \d+\.\d+[.\d]*"), r"\1 VERSION"),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|min|h|days?)\b"), "TIME"),
    (re.compile(r"^=+ (\d+ (?:passed|failed|errors?) in TIME) =+$", re.MULTILINE), r"= \1 ="),
    (
        re.compile(
            r"^(?:platform|rootdir|plugins|configfile|grew|waited for locks|Using --randomly).*\n", re.MULTILINE
        ),
        "",
    ),
    (re.compile(r"^stage-gbo: .* \d+ of \d+ steps done.*\n?", re.MULTILINE), ""),
    (re.compile(r" at 0x[0-9a-f]+"), ""),
    (re.compile(r'(?<=network.address = )"10[.0-9]+/24"'), "SUBNET"),
    (re.compile(r"\bnone of \d+ addresses"), "none of N addresses"),
    (re.compile(r"[ ]+$", re.MULTILINE), ""),
]


def screen(folder: Path, arguments: tuple[str, ...], width: int) -> str:
    """What a command prints, standard error included, and its status; without what differs from day to day."""
    argv = [sys.executable, "-m", "pytest_stagegbo", "--lab", *arguments]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": str(width or 80)}
    if width == 0:
        done = subprocess.run(
            argv, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return plain(done.stdout, done.returncode)
    mine, its = pty.openpty()
    try:
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        with subprocess.Popen(argv, cwd=folder, env=environ, stdin=its, stdout=its, stderr=its) as process:
            os.close(its)
            data = b""
            while True:
                try:
                    data += (more := os.read(mine, 4096))
                except OSError:  # the command has closed the terminal
                    break
                if not more:
                    break
        return plain(data.decode(), process.returncode)
    finally:
        os.close(mine)


def plain(text: str, status: int) -> str:
    for pattern, replacement in CHANGING:
        text = pattern.sub(replacement, text)
    return f"{text.rstrip()}\nstatus {status}"


def test_commands_print_what_they_did(plug: Plug, snapshot: SnapshotAssertion) -> None:
    assert plug.stagegbo("destroy", "--yes").returncode == 0  # slots of other tests would be on the screen
    assert plug.stagegbo("provision").returncode == 0
    wanted = [(name, width) for name in COMMANDS for width in WIDTHS if (name, width) not in CUT_ELSEWHERE]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda each: screen(plug.folder, COMMANDS[each[0]], each[1]), wanted)
        screens = dict(zip(wanted, found, strict=True))
    for (name, width), text in screens.items():
        assert text == snapshot(name=f"{name}, {f'{width} columns' if width else 'piped'}")


TESTS = """
    def test_uses(keys):
        keys("SET", "a", "b")
    @pytest.mark.stage_reset("cache")
    def test_is_clean(keys):
        assert keys("DBSIZE") == 0
"""
FAILING = """
    def test_fails(keys):
        assert keys("GET", "nothing") == "something"
"""
SESSIONS = {
    "tests that pass": ("test_passing.py",),
    "tests that pass, quietly": ("test_passing.py", "-q"),
    "tests that pass, and verify": ("test_passing.py", "--stage-verify"),
    "a test that fails": ("test_failing.py",),
    "two workers": ("test_passing.py", "-n", "2"),
    "no stage": ("test_passing.py", "--stage-project=STAGE-NOT-THERE", "--stage-provision=never"),
}


def test_sessions_print_what_they_did(plug: Plug, snapshot: SnapshotAssertion) -> None:
    assert plug.stagegbo("destroy", "--yes").returncode == 0
    assert plug.stagegbo("provision").returncode == 0
    plug.write(test_passing=TESTS, test_failing=FAILING)
    for name, arguments in SESSIONS.items():
        done = plug.run(*arguments, "-p", "no:randomly")
        assert plain("\n".join([*done.outlines, *done.errlines]), int(done.ret)) == snapshot(name=name)


def test_a_note_of_people_at_a_clone_is_not_red(plug: Plug, incus: Incus) -> None:
    assert plug.stagegbo("provision").returncode == 0
    incus("config", "set", "cache", "user.foo=bar", project="STAGE-PLUG")
    try:
        assert plug.stagegbo("verify", "--check", "locked.instances").returncode == 0
    finally:
        incus("config", "unset", "cache", "user.foo", project="STAGE-PLUG")
