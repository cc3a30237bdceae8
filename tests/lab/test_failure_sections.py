"""The logs of real containers, as the report of a failed test carries them."""

from __future__ import annotations

import functools
import shlex
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import until

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.guest.logs import Wanted, fetch_script, token
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.services.masking import Masker, mask
from pytest_stagegbo.session.failure import sections
from pytest_stagegbo.session.logsizes import remember
from pytest_stagegbo.settings import IncusSettings, Settings

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.lab.conftest import StageGbo

    from pytest_stagegbo.lab import Lab

pytestmark = pytest.mark.lab

SECRET = "hunter2secret"
FOLDER = "/opt/gbo/logs/failure-sections"


@pytest.fixture
def engine(lab: Lab, provisioned: subprocess.CompletedProcess[str]) -> Iterator[StageEngine]:
    """Of the stage in the shared lab. This process stays out of its network."""
    assert provisioned.returncode == 0
    engine = StageEngine(Settings(), Connection(IncusSettings(endpoint=str(lab.socket))))
    _shell(engine, f"mkdir -p {FOLDER}")
    yield engine
    _shell(engine, f"rm -r {FOLDER}")


def _shell(engine: StageEngine, script: str) -> str:
    result = engine.execute("cache", ["sh", "-c", script])
    assert result.status == 0, result.stderr
    return result.stdout


def test_what_was_logged_since_the_test_began_and_nothing_before(engine: StageEngine) -> None:
    """The journal, a log with times and one without; secrets masked; in all six containers at once."""

    def log(what: str) -> None:
        _shell(
            engine,
            f"echo '{what} plain {SECRET}' >>{FOLDER}/plain.log; "
            f"echo \"$(date '+%F %T.%3N') {what} timed\" >>{FOLDER}/timed.log; "
            f"printf 'MESSAGE={what} journal {SECRET}\\nOBJECT_SYSTEMD_UNIT=valkey.service\\n' | logger --journald",
        )

    names = list(engine.settings.containers)
    log("earlier")
    remember(engine, names)
    since = time.time()
    log("meanwhile")
    began = time.monotonic()
    found = dict(sections(engine, names, since, Masker([SECRET]).mask))
    took = time.monotonic() - began
    covered = [name for title in found for name in title.partition(":")[0].split(" ", 2)[2].split(", ")]
    assert sorted(covered) == sorted(names)
    text = found["stage container cache: logged since the test began"]
    assert "meanwhile journal ***" in text
    assert "meanwhile plain ***" in text
    assert "meanwhile timed" in text
    assert "earlier" not in text
    assert not [each for each in found.values() if SECRET in each or "could not be fetched" in each]
    assert took < 5


def test_a_later_test_sees_only_its_own(engine: StageEngine) -> None:
    """Each failed test has sizes noted again."""
    remember(engine, ["cache"])
    first = time.time()
    _shell(engine, f"echo first >>{FOLDER}/plain.log")
    assert "first" in sections(engine, ["cache"], first, mask)[0][1]
    second = time.time()
    _shell(engine, f"echo second >>{FOLDER}/plain.log")
    shown = sections(engine, ["cache"], second, mask)[0][1]
    assert "second" in shown
    assert "first" not in shown


def test_the_command_shows_chosen_lines_of_several_clones(engine: StageEngine, stagegbo: StageGbo) -> None:
    _shell(engine, f"echo 2020-01-01 00:00:00 chosen long ago >>{FOLDER}/timed.log")
    since = time.time()
    _shell(engine, f"date '+%F %T.%3N chosen \033[31mnow%n%F %T.%3N other' >>{FOLDER}/timed.log")
    title = f"cache | file {FOLDER}/timed.log:"
    stamp = datetime.fromtimestamp(since, timezone.utc).isoformat()
    lines = stagegbo("logs", "cache", "drive", "--since", stamp, "--grep", "chosen|Nothing").stdout.splitlines()
    found = lines[lines.index(title) + 1]
    assert found.startswith("cache | ")
    assert found.endswith("chosen \\x1b[31mnow")
    assert not [line for line in lines if "long ago" in line or "other" in line]
    assert "long ago" in stagegbo("logs", "cache", "--since", "10000d", "--grep", "chosen").stdout


def test_a_real_log_that_is_large_costs_little(engine: StageEngine) -> None:
    """Of each log the end comes back, of a line without an end, too."""
    _shell(
        engine,
        f"yes 'a line' | head -c 50000000 >{FOLDER}/large.log; tr '\\n' x <{FOLDER}/large.log >{FOLDER}/line.log",
    )
    head, wanted = token(), Wanted(size=1000)
    script = fetch_script(engine.settings.containers["cache"], head, wanted)
    assert len(_shell(engine, script)) < 30_000


def test_real_services_are_read(engine: StageEngine) -> None:
    """PostgreSQL's own log, whose lines have times."""
    since = time.time()
    query = "runuser -u postgres -- psql -XqAt botserver -c 'SELECT no_such_column'"
    engine.execute("tables", ["sh", "-c", f"cd / && {query}"])
    ((_, text),) = sections(engine, ["tables"], since, mask)
    assert "no_such_column" in text


def _has(sql: Callable[[str], str], zone: str) -> bool:
    return sql("SHOW log_timezone") == zone


def test_a_server_whose_log_has_a_zone_of_its_own(engine: StageEngine) -> None:
    """Neither lines of earlier tests nor too few: New York is behind the container, Berlin ahead."""

    def sql(statement: str) -> str:
        words = f"cd / && runuser -u postgres -- psql -XqAt botserver -c {shlex.quote(statement)}"
        return engine.execute("tables", ["sh", "-c", words]).stdout.strip()

    try:
        for zone in ("America/New_York", "Europe/Berlin", "Asia/Kolkata"):
            sql(f"ALTER SYSTEM SET log_timezone = '{zone}'")
            sql("SELECT pg_reload_conf()")
            until(functools.partial(_has, sql, zone), "the server has the zone")
            name = zone.rpartition("/")[2].lower()  # what was logged in another zone before can't be told
            sql(f"SELECT earlier_{name}")
            since = time.time()
            sql(f"SELECT own_{name}")
            ((_, text),) = sections(engine, ["tables"], since, mask)
            assert f"own_{name}" in text
            assert f"earlier_{name}" not in text
    finally:
        sql("ALTER SYSTEM RESET log_timezone")
        sql("SELECT pg_reload_conf()")
