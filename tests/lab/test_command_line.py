"""The command line as scripts and shells use it: JSON, `wait`, `status --watch`, completion."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SCHEMAS, held, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Stage

pytestmark = pytest.mark.lab

SIX = {"system", "tables", "vault", "cache", "drive", "llm"}


def test_what_every_command_prints_holds_its_schema(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a build")
    there = f"/opt/of-a-test={file}"
    lines = [
        ("init", "--dry-run", "--yes"),
        ("provision",),
        ("provision", "--dry-run"),
        ("provision", "--refresh"),
        ("provision", "--refresh", "--dry-run"),
        ("status",),  # while everything answers: a reset of cache has BotServer connect again
        ("reset", "cache"),
        ("deploy", "cache", there, "--dry-run"),
        ("deploy", "cache", there),
        ("deploy", "--list"),
        ("deploy", "--undo", "cache"),
        ("baseline", "save", "of-a-test", "--containers", "cache"),
        ("baseline", "list"),
        ("baseline", "delete", "of-a-test"),
        ("endpoints",),
        ("doctor",),
        ("verify", "--check", "locked.project"),
        ("expose", "--close"),
        ("lab", "status"),
    ]
    seen = {held(stage.run(*line, "--json").stdout)["schema"] for line in lines}
    others = {path.stem for path in SCHEMAS.glob("capsule*.json")} | {"report"}
    """Held in `test_capsules.py` and `test_reports.py`, where there is something to print."""
    assert {each.removeprefix("stagegbo.").partition("/")[0] for each in seen} == {
        path.stem for path in SCHEMAS.glob("*.json")
    } - others


# -- wait


def test_wait_tells_scripts_by_its_status(stage: Stage) -> None:
    def waited(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return stage.run("wait", *words, check=False, env=env)

    assert waited("--timeout", "0").stdout.startswith(f"{stage.project} is ready after ")
    assert waited("cache", "drive", "--timeout", "0").returncode == 0
    missing = {"STAGEGBO_PROJECT": "STAGE-NONE"}
    assert waited("--for", "gone", "--timeout", "0", env=missing).returncode == 0
    assert waited("--for", "free", "--timeout", "0").returncode == 0
    assert waited("--for", "gone", "--timeout", "0").returncode == 6
    refused = waited("--timeout", "0", env=missing)
    assert refused.returncode == 6
    assert "there is no stage STAGE-NONE" in refused.stderr
    user = stage.start("run", "--", "sh", "-c", "echo begun; exec sleep 60")
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == "begun\n"
        held_by = waited("--for", "free", "--timeout", "0")
        assert held_by.returncode == 8
        assert f"process {user.pid} (command sh -c" in held_by.stderr
        waiting = stage.start("wait", "--for", "free", "--timeout", "1m")
    finally:
        user.terminate()
        user.communicate(timeout=60)
    said, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, said.startswith(f"{stage.project} is free after ")) == (0, True)


# -- status --watch


class Lines:
    """What a process prints, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._file = process.stdout.fileno()
        self.text = ""

    def __call__(self, words: str) -> bool:
        """Whether these words were printed so far."""
        while select.select([self._file], [], [], 0)[0]:
            more = os.read(self._file, 1 << 16)
            if not more:
                break
            self.text += more.decode()
        return words in self.text


def test_a_pipe_gets_a_line_for_each_change(stage: Stage) -> None:
    watching, reporting = stage.start("status", "--watch"), stage.start("status", "--watch", "--json")
    try:
        lines, reports = Lines(watching), Lines(reporting)
        until(lambda: all(lines(f"\t{name}\tready\n") for name in SIX) and reports('"ready": true'), "the first look")
        before = lines.text
        stage.ground.inside("incus", "pause", "cache", "--project", stage.project)
        until(lambda: lines("\tcache\tfrozen\n") and reports('"frozen"'), "a change")
    finally:
        stage.ground.inside("incus", "resume", "cache", "--project", stage.project)
    until(lambda: lines.text.count("\tcache\tready\n") == 2 or lines("\tnothing"), "the way back")
    for process in (watching, reporting):
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == ""
        assert process.returncode == 0
    assert before.count("\n") == len(SIX) + 1, "each container, and who uses the stage"
    assert [held(line)["ready"] for line in reports.text.splitlines()][:2] == [True, False]


@contextlib.contextmanager
def terminal(argv: list[str], env: dict[str, str], columns: int = 100) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process with a terminal of its own, whose other end is the second value."""
    mine, its = pty.openpty()
    environ = {**env, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "50"}
    process = subprocess.Popen(argv, stdin=its, stdout=its, stderr=its, env=environ, start_new_session=True)
    os.close(its)
    try:
        yield process, mine
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def read_until(file: int, words: str, seconds: float = 60) -> str:
    """What a terminal shows, up to these words."""
    text, deadline = "", time.monotonic() + seconds
    while words not in text:
        ready = select.select([file], [], [], max(0, deadline - time.monotonic()))[0]
        assert ready, f"no {words!r} in {text!r}"
        text += os.read(file, 1 << 16).decode("utf-8", "replace")
    return text


def test_a_terminal_is_drawn_again_until_it_is_ended(stage: Stage) -> None:
    with terminal(stage.argv("status", "--watch"), stage.environment()) as (process, screen):
        text = read_until(screen, "until Ctrl-C")
        text += read_until(screen, "until Ctrl-C")
        process.send_signal(signal.SIGINT)
        text += read_until(screen, "\x1b[?25h")  # the cursor is there again
        assert process.wait(30) == 0
    assert all(name in text for name in SIX)
    assert "\x1b[2J" not in text, "a screen that is cleared flickers"


# -- completion


@pytest.fixture(scope="module")
def shells(stage: Stage) -> dict[str, str]:
    """The environment of shells that find this command, its stage, and a baseline in it."""
    stage.run("baseline", "save", "shells-own", "--containers", "cache", "--replace")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**stage.environment(), "PATH": path, "STAGEGBO_LAB": "on", "STAGEGBO_CONFIG": str(stage.config)}


COMPLETED = {
    "stagegbo provis": "stagegbo provision",
    "stagegbo status --wa": "stagegbo status --watch",
    "stagegbo reset cache dri": "stagegbo reset cache drive",
    "stagegbo run --reset cache,dri": "stagegbo run --reset cache,drive",
    "stagegbo verify --check reach.int": "stagegbo verify --check reach.internet",
    "stagegbo env --format dock": "stagegbo env --format docker",
    "stagegbo -q lab dow": "stagegbo -q lab down",
}
START = {
    "bash": (["bash", "--norc", "-i"], "set +o history"),
    "zsh": (["zsh", "-f", "-i"], "bindkey -e; unsetopt prompt_sp; autoload -Uz compinit; compinit -u -D"),
}


@pytest.mark.parametrize("shell", START)
def test_an_interactive_shell_completes_a_line(shell: str, shells: dict[str, str], tmp_path: Path) -> None:
    argv, setup = START[shell]
    env = {**shells, "PS1": "> ", "HOME": str(tmp_path)}
    with terminal(argv, env, columns=200) as (_, screen):
        os.write(screen, f'{setup}; eval "$(stagegbo completion {shell})"; echo be""gun\n'.encode())
        read_until(screen, "begun\r\n")
        for line, completed in COMPLETED.items():
            os.write(screen, f"{line}\t".encode() + b"\x01echo '<\x05>'\n")  # printed instead of run
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read_until(screen, ">\r\n"))
            assert f"<{completed}" in text


def test_fish_completes_a_line(shells: dict[str, str], tmp_path: Path) -> None:
    asked = "\n".join(f"complete -C {shlex.quote(line)} | cut -f 1; echo" for line in COMPLETED)
    script = f"stagegbo completion fish | source\n{asked}"
    env = {**shells, "HOME": str(tmp_path)}
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, env=env, check=True, timeout=120)
    found = done.stdout.split("\n\n")
    for line, words in zip(COMPLETED, found, strict=False):
        assert COMPLETED[line].split()[-1] in words.split(), (line, words, done.stderr)


def test_baselines_are_completed(shells: dict[str, str]) -> None:
    """They are asked for at the daemon, which a busy machine does not always answer in time."""
    line = "stagegbo baseline use shells"
    asking = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " ", "COMP_LINE": line, "COMP_POINT": str(len(line))}

    def words() -> str:
        argv = ["bash", "-c", "stagegbo 8>&1 9>&2 >/dev/null"]
        return subprocess.run(argv, capture_output=True, text=True, env={**shells, **asking}, check=False).stdout

    until(lambda: words().strip() == "shells-own", "the baseline is completed", seconds=60)
