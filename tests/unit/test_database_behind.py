"""What works behind a reset of a database, and the next reset, which ends it: their shell, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from pytest_stagegbo.resets.database_in_place import IN_PLACE
from pytest_stagegbo.resets.database_spare import FLIP

if TYPE_CHECKING:
    from pathlib import Path

HARNESS = """
import ctypes, json, os, pathlib, subprocess, sys
folder, behind, reset = sys.argv[1:]
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what loses its parent comes here, not to init
session = os.pipe()
work = subprocess.Popen(
    ["sh", "-c", behind], cwd=folder, stdin=session[0], stdout=subprocess.PIPE, text=True
)
os.close(session[0])
assert work.stdout.readline() == "works\\n"
ended = subprocess.run(["sh", "-c", reset], cwd=folder, timeout=60, check=False)
children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
waits = work.poll() is None
os.close(session[1])  # the session ends
print(json.dumps({
    "reset": ended.returncode,
    "orphans": len([each for each in children if int(each) != work.pid]),
    "waits": waits,
    "work": work.wait(timeout=60),
}))
"""
"""Prints how the reset ended, how many processes lost their parent, and whether and how the shell behind ended."""

WORK = """
exec 3<&0 </dev/null
(exec cat) <&3 >/dev/null 9>&- &
echo "$! 0 0 0 session" >"$note.session"
exec 3<&-
read -r inner rest </proc/self/stat
may_end
{last}
echo works
(
    sleep 60 || true
    sleep 60
) || true
while :; do sleep 60 || true; done
"""

RESET = """
hasten || flock -w 30 9
"""


def run(folder: Path, last: str = "") -> dict[str, object]:
    head = f"set -eu\nnote=./note\n{IN_PLACE}{FLIP}\nexec 9>./lock\n"
    work = f"{head}flock 9\n{WORK.format(last=last)}"
    argv = [sys.executable, "-c", HARNESS, str(folder), work, f"{head}{RESET}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_shell_behind_a_reset_ends_what_it_started_by_itself(tmp_path: Path) -> None:
    """No process of it goes to the container's first one. That would wake systemd, and whoever finds that it has been
    awake has to ask it what runs."""
    assert run(tmp_path) == {"reset": 0, "orphans": 0, "waits": True, "work": 0}


def test_one_that_does_not_end_by_itself_is_killed(tmp_path: Path) -> None:
    found = run(tmp_path, "trap '' TERM")
    assert (found["reset"], found["work"]) == (0, -9)
