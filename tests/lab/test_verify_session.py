"""`pytest --stage-verify`: a session that works in the stage, seen from production, and one that breaks out of it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import checksums, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

FLOW = Path(__file__).parents[2] / "examples/botserver/test_flow.py"
DUMPS = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = key .. ' ' .. redis.sha1hex(redis.call('DUMP', key)) .. ' ' .. redis.call('PEXPIRETIME', key)
end
table.sort(found)
return found
"""


def session(stage: Stage, *arguments: str) -> tuple[int, str]:
    """Run pytest on the stage; its exit status and what it printed."""
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--stage-lab", "--stage-verify"]
    done = subprocess.run(
        [*argv, f"--stage-config={stage.config}", *arguments],
        cwd=stage.config.parent,
        env=stage.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def a_test(folder: Path, body: str) -> str:
    file = folder / "test_it.py"
    file.write_text(f"def test_it(stage_gbo, stage_llm):\n    {body}\n")
    return str(file)


@contextlib.contextmanager
def at_rest(ground: Ground) -> Iterator[None]:
    """Production's BotServer, which writes by itself, has a break."""
    ground.exec("system", "systemctl", "stop", "botserver.service")
    try:
        yield
    finally:
        ground.exec("system", "systemctl", "start", "botserver.service")


def contents(ground: Ground) -> dict[str, object]:
    """Production's database, keys and objects."""
    dump = ground.exec("tables", "runuser", "-u", "postgres", "--", "pg_dumpall")
    dump = re.sub(r"(?m)^\\(un)?restrict .*$", "", dump)  # a random word of each dump
    password = f"REDISCLI_AUTH={ground.lab.credentials()['cache']['password']}"
    keys = ground.exec("cache", "env", password, "valkey-cli", "--raw", "EVAL", DUMPS, "0")
    return {
        "tables": hashlib.sha256(dump.encode()).hexdigest(),
        "cache": keys.splitlines(),
        "drive": checksums(ground.rootfs("drive"), ["opt/gbo/data/minio"], large=1 << 40),
    }


@pytest.mark.both_lts
def test_a_whole_session_leaves_production_byte_for_byte_and_sends_it_no_packet(stage: Stage, tmp_path: Path) -> None:
    """A bot's life through all six containers, in workers, while a test dials production; proven at both ends."""
    ground = stage.ground
    dials = a_test(tmp_path, "stage_llm.exec('bash', '-c', 'true </dev/tcp/10.0.2.11/5432')")
    with at_rest(ground), counted(ground) as packets:
        before = contents(ground)
        assert before["cache"]
        assert before["drive"]
        status, printed = session(stage, "-n2", str(FLOW), dials)
        assert status == 0, printed
        assert "2 passed" in printed
        after = contents(ground)
        assert after == before
        assert packets() == 0
        way = ("10.0.2.11/32", "via", "10.0.3.1", "dev", "eth0", "src", "10.0.3.15")
        stage.exec("llm", "ip", "route", "replace", *way)
        try:  # the counter would have seen one, which the access list then rejects
            stage.exec("llm", "timeout", "1", "bash", "-c", "true </dev/tcp/10.0.2.11/5432", check=False)
            assert packets() > 0
        finally:
            stage.exec("llm", "ip", "route", "del", *way[:5])
            stage.exec("llm", "/var/lib/stagegbo/twins")
        ground.exec("cache", "env", f"REDISCLI_AUTH={stage.password}", "valkey-cli", "SET", "seen", "1")
        try:  # and a change would be one
            assert contents(ground) != before
        finally:
            ground.exec("cache", "env", f"REDISCLI_AUTH={stage.password}", "valkey-cli", "DEL", "seen")


def test_a_session_that_breaks_the_isolation_fails_and_so_do_the_tests_of_the_next(
    stage: Stage, tmp_path: Path
) -> None:
    try:
        status, printed = session(
            stage, a_test(tmp_path, "stage_llm.exec('ip', 'address', 'add', '10.0.2.15/24', 'dev', 'eth0')")
        )
        assert status == 1, printed
        assert "1 passed" in printed
        assert "stage-gbo: isolation" in printed
        assert "locked.addresses: llm: eth0 has 10.0.2.15" in printed
        status, printed = session(stage, a_test(tmp_path, "pass"))
        assert status == 1, printed
        assert "IsolationBroken" in printed
        assert "1 passed" not in printed
    finally:
        stage.exec("llm", "ip", "address", "del", "10.0.2.15/24", "dev", "eth0")


TOUCHING = """
def test_it(stage_gbo, pytestconfig):
    connection = stage_gbo._engine._connection
    for value in ("by a test", ""):
        body = {"config": {"user.changed": value}}
        query = {"project": "default"}
        connection.wait(connection.request("PATCH", ("instances", "cache"), params=query, body=body), "changing", 60)
"""


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["one-process", "worker"])
def test_a_process_that_did_something_to_production_fails_the_session(
    stage: Stage, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(TOUCHING)
    status, printed = session(stage, *workers, str(file))
    assert status == 1, printed
    assert "1 passed" in printed
    assert "production.events: instance-updated /1.0/instances/cache of project default" in printed
