"""Programs that use the stage: `env`, `run`, `connect`, `exec` and `shell`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.cli import env

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.conftest import Incus, StageGbo

    from pytest_stagegbo.lab import Lab

pytestmark = pytest.mark.lab

AWKWARD = [
    "plain",
    "two words",
    "it's",
    'say "yes"',
    "$HOME `id`",
    "back\\slash \\n",
    "# none",
    "",
    "two\nlines $x",
    "a=b #c",
]


def test_a_file_leads_programs_to_the_stage(
    lab: Lab, stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    """PostgreSQL's own client, in a shell that read the file."""
    assert provisioned.returncode == 0
    file = tmp_path / "stage.env"
    stagegbo("env", "--secrets", "-o", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    script = f'set -a; . {file}; psql "$DATABASE_URL" -XqAt -c "SELECT host(inet_server_addr()), $((DB_PORT + 1))"'
    done = subprocess.run(lab.exec_argv(["sh", "-c", script]), capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("10.0.3.11|5433\n", 0), done.stderr


def test_without_being_asked_it_shows_no_secret(
    lab: Lab, stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str]
) -> None:
    assert provisioned.returncode == 0
    done = stagegbo("env", "--format", "json")
    made = lab.credentials()
    secrets = [made[name][key] for name in made for key in ("password", "secret_key") if key in made[name]]
    assert json.loads(done.stdout)["DB_HOST"] == "10.0.3.11"
    assert len(secrets) == 3
    assert not [secret for secret in secrets if secret in done.stdout + done.stderr]


def test_systemd_reads_what_is_quoted(provisioned: subprocess.CompletedProcess[str], incus: Incus) -> None:
    """With a systemd of its own, in a clone, whose next reset ends what this test started."""
    assert provisioned.returncode == 0
    lines = "".join(f"V{n}={env.FORMATS['systemd'](value)}\n" for n, value in enumerate(AWKWARD))
    script = r"""cd /run; printf %s "$1" >of-a-test.env
    systemd-run -q -p Type=oneshot -p EnvironmentFile=/run/of-a-test.env \
      -p StandardOutput=file:/run/of-a-test.out env -0
    cat of-a-test.out; rm of-a-test.*"""
    done = incus("exec", "cache", "--", "bash", "-c", script, "sh", lines, project="STAGE-GBO")
    found = [each for each in done.stdout.split("\0") if each[:1] == "V"]
    assert found == [f"V{n}={value}" for n, value in enumerate(AWKWARD)]


def test_direnv_reads_what_is_quoted(tmp_path: Path) -> None:
    """But for a line feed and a dollar in one value: it replaces variables behind a backslash, too."""
    values = [each for each in AWKWARD if not {"\n", "$"} <= set(each)]
    lines = "".join(f"V{n}={env.FORMATS['dotenv'](value)}\n" for n, value in enumerate(values))
    (tmp_path / "stage.env").write_text(lines)
    argv = ["direnv", "dotenv", "json", str(tmp_path / "stage.env")]
    found = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert [found[f"V{n}"] for n in range(len(values))] == values


@contextlib.contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """`run` with this command, which has printed a line when this returns."""
    words = [sys.executable, "-m", "pytest_stagegbo", "--lab", "run", *argv]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first == "begun\n", process.stderr.read() if process.stderr and not first else first
            yield process
        finally:
            process.kill()


BEGUN = "echo begun; while :; do sleep 0.05; done"


def test_a_command_finds_the_stage_and_its_status_is_passed_on(
    stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str]
) -> None:
    assert provisioned.returncode == 0
    script = """set -e
    [ "$(psql "$DATABASE_URL" -XqAt -c 'SELECT host(inet_server_addr())')" = "$DB_HOST" ]
    curl -s -o /dev/null "$BOTSERVER_URL/api/health"
    [ -z "$VAULT_TOKEN$PGHOST" ]
    exit 7"""
    inherited = {"VAULT_TOKEN": "hvs.of-somebody", "PGHOST": "10.0.2.11"}
    done = stagegbo("run", "--reset", "cache,drive", "--", "sh", "-c", script, check=False, env=inherited)
    assert done.returncode == 7, done.stderr


def test_a_command_begins_with_a_baseline(stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str]) -> None:
    """Or not at all."""
    assert provisioned.returncode == 0
    psql = 'exec psql "$DATABASE_URL" -XqAtc'
    stagegbo("run", "--", "sh", "-c", f"{psql} 'CREATE TABLE of_baseline AS SELECT 7 AS seven'")
    stagegbo("baseline", "save", "programs", "--containers", "tables", "--replace")
    try:
        stagegbo("reset", "tables")
        look = f"""{psql} "SELECT to_regclass('of_baseline')" """
        assert stagegbo("run", "--", "sh", "-c", look).stdout.strip() == ""
        assert stagegbo("run", "--baseline", "programs", "--", "sh", "-c", look).stdout.strip() == "of_baseline"
        missing = stagegbo("run", "--baseline", "other", "--", "echo", "ran", check=False)
        assert (missing.returncode, missing.stdout) == (1, "")
        assert "no baseline other" in missing.stderr
        (row,) = json.loads(stagegbo("baseline", "list", "--json").stdout)["baselines"]
        assert (row["name"], row["containers"], row["build"], row["reason"]) == ("programs", ["tables"], [], "")
        assert row["bytes"] > 1 << 20
        assert "programs" in stagegbo("baseline", "list").stdout
    finally:
        stagegbo("baseline", "delete", "programs")
        stagegbo("reset", "tables")


def test_what_is_reset_is_the_commands_own_until_it_ends_or_dies(
    stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str]
) -> None:
    assert provisioned.returncode == 0
    impatient = {"STAGEGBO_TIMEOUTS__LOCK": "0.2"}
    with running("--reset", "cache", "--", "sh", "-c", BEGUN) as process:
        refused = stagegbo("reset", "cache", check=False, env=impatient)
        assert refused.returncode == 8
        assert f"process {process.pid} (command sh -c" in refused.stderr
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        assert stagegbo("reset", "cache", env=impatient).returncode == 0


def test_a_signal_ends_command_and_locks(stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str]) -> None:
    assert provisioned.returncode == 0
    with running("--", "sh", "-c", f"trap 'exit 5' TERM; {BEGUN}") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 5
    assert "is used by" not in stagegbo("status").stdout


def test_connect_is_the_services_own_client(
    stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str], lab: Lab, tmp_path: Path
) -> None:
    """With a client of this host, and with the container's own where there is none."""
    assert provisioned.returncode == 0
    asked = "SELECT host(inet_server_addr())"
    assert stagegbo("connect", "tables", "--", "-XqAt", "-c", asked).stdout == "10.0.3.11\n"
    (tmp_path / "env").symlink_to("/usr/bin/env")  # what brings the client into the lab needs it
    bare = {"PATH": str(tmp_path)}
    asked = "SELECT current_user, current_database()"
    assert stagegbo("connect", "tables", "--", "-XqAt", "-c", asked, env=bare).stdout == "postgres|botserver\n"
    done = stagegbo("connect", "cache", "--", "PING", env=bare)
    assert (done.stdout, lab.credentials()["cache"]["password"] in done.stderr) == ("PONG\n", False)
    left = stagegbo("exec", "cache", "--", "sh", "-c", "ls /run | grep -c stagegbo-connect; true").stdout
    assert left == "0\n"
    assert stagegbo("connect", "drive").returncode == 0
    assert stagegbo("connect", "vault", check=False).returncode == 2


def test_commands_and_clients_are_carried_where_nothing_is_direct(
    stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    """`psql` here is a program that connects to where it is sent, and says what answers."""
    assert provisioned.returncode == 0
    ask = (
        "import os, socket; found = socket.create_connection((os.environ['PGHOST'], int(os.environ['PGPORT'])), 10); "
        "found.sendall(bytes.fromhex('0000000804d2162f')); print(os.environ['PGHOST'], found.recv(1))"
    )
    client = tmp_path / "psql"
    client.write_text(f"#!{sys.executable}\n{ask}\n")
    client.chmod(0o755)
    env = {"STAGEGBO_NETWORK__REACH": "forward", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert stagegbo("connect", "tables", env=env).stdout == "127.0.0.1 b'N'\n"
    script = "PGHOST=$DB_HOST PGPORT=$DB_PORT psql; exit 7"
    done = stagegbo("run", "--", "sh", "-c", script, env=env, check=False)
    assert (done.stdout, done.returncode) == ("127.0.0.1 b'N'\n", 7)


def test_exec_changes_user_directory_and_variables(
    stagegbo: StageGbo, provisioned: subprocess.CompletedProcess[str]
) -> None:
    assert provisioned.returncode == 0
    options = ("--user", "postgres", "--cwd", "/var/lib", "--env", "A=two words", "--env", "B=$x")
    done = stagegbo("exec", *options, "tables", "--", "sh", "-c", 'id -un; pwd; echo "$A $B"; exit 4', check=False)
    assert (done.stdout, done.returncode) == ("postgres\n/var/lib\ntwo words $x\n", 4)


def test_a_shell_says_that_it_is_not_production(provisioned: subprocess.CompletedProcess[str]) -> None:
    """On a terminal, with no file of the clone changed for it: prompt, title and a line before."""
    assert provisioned.returncode == 0
    words = [sys.executable, "-m", "pytest_stagegbo", "--lab", "shell", "cache"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(words[0], words, {**os.environ, "TERM": "xterm"})
    seen, deadline = b"", time.monotonic() + 60
    try:
        while b"\x1b]0;[STAGE-GBO] cache\x07" not in seen or not seen.endswith(b"# "):
            assert time.monotonic() < deadline, seen
            seen += os.read(terminal, 4096)
        os.write(terminal, b"exit 3\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    finally:
        os.close(terminal)
    text = seen.decode()
    assert "[STAGE-GBO]\x1b[0m cache at 10.0.3.13: a clone." in text
    assert "[STAGE-GBO]\x1b[0m root@cache:" in text
