"""A command that `run` starts: its exit status, the signals that it gets, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from stage_fakes import FakeEngine, serving, settings_for

from pytest_stagegbo.cli import main
from pytest_stagegbo.errors import NoRoom
from pytest_stagegbo.session.command import Child
from pytest_stagegbo.stage.environment import child_environment

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, signal, sys
for each in (signal.SIGINT, signal.SIGQUIT):  # which a shell's background jobs ignore
    signal.signal(each, signal.SIG_DFL)
from pytest_stagegbo.session.command import Child
sys.exit(Child(sys.argv[1:]).run(os.environ))
"""


WAIT = "i=0; while [ $i -lt 1000 ]; do sleep 0.02; i=$((i + 1)); done"
"""For a signal, and not for ever. A shell hears of it between two commands."""


def start(script: str) -> subprocess.Popen[str]:
    """A process whose child is a shell that runs a script. Without a terminal, as in CI."""
    argv = [sys.executable, "-c", PROGRAM, "sh", "-c", script]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_its_status_is_what_a_shell_would_say(script: str, status: int) -> None:
    assert Child(["sh", "-c", script]).run(os.environ) == status


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_a_signal_is_passed_on(name: str) -> None:
    with start(f"trap 'echo got; exit 9' {name}; echo ready; {WAIT}") as process:
        assert line(process) == "ready"
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert (line(process), process.wait(20)) == ("got", 9)


def test_a_signal_that_interrupts_nothing_is_passed_on() -> None:
    """It comes to another thread here, as one does that comes just before the wait begins."""
    child = Child(["sh", "-c", f"trap 'exit 9' TERM; {WAIT.replace('1000', '200')}; exit 3"])

    def elsewhere() -> None:
        time.sleep(1)  # until the wait for the command has begun: nothing shows that it has
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    other = threading.Thread(target=elsewhere)
    other.start()
    try:
        assert child.run(os.environ) == 9
    finally:
        other.join()


def test_it_does_not_outlive_the_process_that_holds_the_locks() -> None:
    with start("echo $$; exec sleep 60") as process:
        pid = int(line(process))
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{pid}"):  # noqa: PTH110 - until init, or who adopts it here, has asked for its end
            with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    break
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_signals_mean_what_they_meant_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert Child(["true"]).run(os.environ) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_full_disk_ends_it(tmp_path: Path) -> None:
    child, error = Child(["sh", "-c", f"touch {tmp_path}/there; exec sleep 60"]), NoRoom("no room")

    def fill() -> None:
        while not (tmp_path / "there").exists():
            time.sleep(0.01)
        child.end(error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    with pytest.raises(NoRoom) as caught:
        child.run(os.environ)
    assert caught.value is error


def test_one_that_is_over_before_it_began_is_not_started(tmp_path: Path) -> None:
    child = Child(["touch", str(tmp_path / "there")])
    child.end(NoRoom("no room"))
    with pytest.raises(NoRoom):
        child.run(os.environ)
    assert not (tmp_path / "there").exists()


def test_nothing_leads_it_to_another_server() -> None:
    """What a person's shell has of production is not what a command gets beside the stage's variables."""
    inherited = {
        "PATH": "/bin",
        "PGHOSTADDR": "10.0.2.11",
        "VAULT_TOKEN": "hvs.of-production",
        "DATABASE_URL": "postgresql://10.0.2.11/x",
        "STAGEGBO_ENDPOINT_OLD_HOST": "10.0.2.9",
        "AWS_SESSION_TOKEN": "mine",
    }
    with serving() as vault:
        stage = FakeEngine(settings_for(vault)).stage()
        found = child_environment(stage, inherited)
        assert found == {"PATH": "/bin", **stage.env()}
        assert not {*inherited} & {*found} - {"PATH", "DATABASE_URL"}
        vault.secrets = {}
        assert "DATABASE_URL" not in child_environment(FakeEngine(settings_for(vault)).stage(), inherited)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        pytest.param(["run"], 2, id="no command"),
        pytest.param(["run", "--"], 2, id="no command behind dashes"),
        pytest.param(["run", "--", "no-such-command-anywhere"], 3, id="a command that is not there"),
        pytest.param(["--slot", "many", "run", "--", "true"], 2, id="no number"),
    ],
)
def test_what_can_not_be_run_is_said_at_once(
    argv: list[str], status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == status
