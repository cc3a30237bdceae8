"""Command lines that are wrong, and settings that can't be read: one error that says so, and never a traceback."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from msgspec import to_builtins

from pytest_stagegbo import cli
from pytest_stagegbo.cli import main
from pytest_stagegbo.cli.console import console_progress
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.cli.provision import methods
from pytest_stagegbo.guest.logs import NO_CONTROLS
from pytest_stagegbo.plan.steps import RemoveClone, RemoveProject
from pytest_stagegbo.progress import task
from pytest_stagegbo.resets.resetter import Outcome
from pytest_stagegbo.settings import IncusSettings
from pytest_stagegbo.text import count_text


def outcome(*argv: str) -> int:
    try:
        return main(argv)
    except SystemExit as error:  # argparse's way
        return int(error.code or 0)


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(("logs", "cache", "-n", "-5"), id="a negative number"),
        pytest.param(("logs", "cache", "--since", "yesterday"), id="no time"),
        pytest.param(("logs", "cache", "--since", "2026-02-31"), id="no such day"),
        pytest.param(("logs", "cache", "--grep", "["), id="no regular expression"),
        pytest.param(("logs", "cache", "drive", "-f"), id="two at once"),
        pytest.param(("logs", "cache", "-f", "--grep", "x"), id="chosen lines, followed"),
        pytest.param(("logs", "cache", "-n", ""), id="no number"),
        pytest.param(("logs", "cache", "-n", "nan"), id="not a number"),
        pytest.param(("logs", "cache", "-n", "9" * 5000), id="a number that no computer likes"),
        pytest.param(("--config=--", "status"), id="dashes for a file"),
        pytest.param(("verify", "--check=--"), id="dashes for a check"),
        pytest.param(("exec", "cache"), id="no command"),
        pytest.param(("exec", "cache", "--"), id="no command behind dashes"),
        pytest.param(("--slot", "²", "status"), id="a slot that only looks like a number"),
        pytest.param(("--slot", "9" * 5000, "status"), id="a slot without end"),
        pytest.param(("--slot", "-1", "status"), id="a negative slot"),
        pytest.param(("--slot=", "status"), id="an empty slot"),
        pytest.param(("--slot=", "run", "--", "true"), id="an empty slot of a command"),
        pytest.param(("--config", "no\x1b[31m such", "status"), id="a file name with controls"),
        pytest.param(("--project", "a\nb", "status"), id="a project of two lines"),
    ],
)
def test_a_wrong_argument_is_a_usage_error(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcome(*argv) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.err + said.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("x = " + "[" * 100_000, "nested too deeply", id="brackets"),
        pytest.param("x = " + "{a=" * 100_000, "nested too deeply", id="braces"),
        pytest.param('project = "a\\u0000b"', "cannot name an Incus project", id="a NUL byte"),
        pytest.param('[vault]\nunseal_file = "a\\u0000b"', "NUL byte", id="a NUL byte in a path"),
        pytest.param('[vault]\nunseal_command = ["a\\u0000b"]', "NUL byte", id="a NUL byte in a command"),
    ],
)
def test_settings_that_cannot_be_read_are_an_error(
    text: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "stagegbo.toml").write_text(text)
    assert outcome("--config", str(tmp_path / "stagegbo.toml"), "status") == 2
    assert said in capsys.readouterr().err


def test_brackets_in_a_variable_are_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGEGBO_CONTAINERS__CACHE__WIPE", "[" * 100_000)
    assert outcome("status") == 2
    assert "is not a JSON array" in capsys.readouterr().err


def test_a_followed_log_writes_no_controls_to_a_terminal() -> None:
    printed = "one\ttwo\x1b[31m\x9b1m\x07\x7f ünï\n".encode()
    command = ["sh", "-c", f"{NO_CONTROLS}"]
    done = subprocess.run(command, input=printed, capture_output=True, check=True)
    assert done.stdout.decode() == "one\ttwo?[31m?1m?? ünï\n"


def test_what_the_system_refuses_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Parsed:
        debug = verbose = False

        @staticmethod
        def run(_: object) -> int:
            return len((tmp_path / "missing").read_text())

    monkeypatch.setattr(cli, "parse", lambda _: Parsed)
    assert outcome("status") == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/missing: No such file or directory" in said.replace("\n", "")
    assert "--debug" in said


def test_quiet_progress_shows_notes_only() -> None:
    stream = io.StringIO()
    with console_progress(stream, quiet=True) as progress, task(progress, "copy:cache", "copy cache"):
        progress.note("limits do not hold")
    assert stream.getvalue() == "limits do not hold\n"


def test_what_destroy_deletes_is_named() -> None:
    assert RemoveClone(subject="cache").text == "delete container cache"
    assert RemoveClone(subject="cache", reason="a new copy was requested").text == (
        "delete container cache (a new copy was requested)"
    )
    assert RemoveProject(subject="STAGE-GBO").text == "delete project STAGE-GBO"


def test_a_reset_names_its_method_and_a_reason_where_there_is_one() -> None:
    outcomes = (Outcome("cache", "hot", 0, 1), Outcome("drive", "restart", 0, 1, "something was started"))
    assert to_builtins(methods(outcomes)) == {
        "cache": {"method": "hot"},
        "drive": {"method": "restart", "reason": "something was started"},
    }


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps")])
def test_one_thing_has_no_plural(number: int, text: str) -> None:
    assert count_text(number, "step") == text


@pytest.mark.parametrize(
    ("names", "coloured", "prefixes"),
    [
        pytest.param(["cache"], True, {"cache": ""}, id="one container"),
        pytest.param(["cache", "llm"], False, {"cache": "cache | ", "llm": "llm   | "}, id="a pipe"),
        pytest.param(
            ["cache", "llm"],
            True,
            {"cache": "\x1b[36mcache | \x1b[0m", "llm": "\x1b[33mllm   | \x1b[0m"},
            id="a terminal",
        ),
    ],
)
def test_lines_of_several_logs_say_whose_they_are(names: list[str], coloured: bool, prefixes: dict[str, str]) -> None:
    from pytest_stagegbo.cli.logs import line_prefixes

    assert line_prefixes(names, coloured=coloured) == prefixes


@pytest.mark.parametrize("line", [["exec", "cache"], ["run"], ["connect", "cache"], ["lab", "exec"]], ids=" ".join)
def test_the_first_double_dash_is_the_tools_own(line: list[str]) -> None:
    assert parse([*line, "--", "a", "--", "b"]).argv == ["a", "--", "b"]


def test_the_clients_settings_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_stagegbo.cli import incus_client

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("client.crt", "client.key", "server.crt"):
        (tmp_path / name).write_text(name)
    remote = IncusSettings(
        endpoint="https://192.0.2.1:8443",
        client_cert=str(tmp_path / "client.crt"),
        client_key=str(tmp_path / "client.key"),
        server_cert=str(tmp_path / "server.crt"),
    )
    first = incus_client.client_settings(remote, "stage")
    assert incus_client.client_settings(remote, "stage") == first
    assert (Path(first) / "servercerts/stage.crt").read_text() == "server.crt"
    local = incus_client.client_settings(remote, incus_client.LOCAL)
    assert local != first
    assert not (Path(local) / "config.yml").exists()
    (folder,) = (each for each in tmp_path.iterdir() if each.is_dir())
    assert len(list(folder.iterdir())) == 2
    folder.chmod(0o777)  # others can write to it now
    assert Path(incus_client.client_settings(remote, "stage")).parent.parent == tmp_path
    assert Path(incus_client.client_settings(remote, "stage")).parent != folder


# -- standard streams


def doctor(redirections: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`doctor`, which prints a table without any daemon, run by a shell; its status is the last line printed there."""
    words = [sys.executable, "-m", "pytest_stagegbo", "--endpoint", "/nowhere", "doctor"]
    script = f"{shlex.join(words)} {redirections}"
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_error(closed: str, tmp_path: Path) -> None:
    done = doctor(f"{closed}; echo $? >status", tmp_path)
    assert (tmp_path / "status").read_text() == "1\n", "there is no daemon"
    assert done.stderr == ""
    assert ("connection" in done.stdout) == (">&- " not in f"{closed} " or closed == "2>&-")


def test_output_that_nobody_reads_ends_like_sigpipe(tmp_path: Path) -> None:
    """And not with the status of a stage that is not ready."""
    done = doctor("| true; echo ${PIPESTATUS[0]}", tmp_path)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_output_that_can_t_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    done = doctor(">/dev/full", tmp_path)
    assert done.returncode == 1
    assert "standard output can't be written: No space left on device" in done.stderr


class Unread(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_that_nobody_reads_does_not_stop_the_work(*, quiet: bool) -> None:
    done = []
    with console_progress(Unread(), quiet=quiet) as progress, task(progress, "a", "do it"):
        progress.note("on the way")
        done.append(1)
    assert done
