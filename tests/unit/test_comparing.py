"""The script that compares two databases, with a shell that is real, and servers that are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from pytest_stagegbo.guest.capsules import REFERENCE
from pytest_stagegbo.guest.comparing import compare_script
from pytest_stagegbo.settings.model import default_containers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the script runs in a container, which is Linux")

NOW, BEFORE = "5432", "54329"
"""Ports of the server with what the test left, and of the one with the clean copy."""
PSQL = """#!/bin/sh
case $3 in
*"SELECT 1"*) exit ;;
*pg_database*) file=databases ;;
*pg_tables*) file=$PGDATABASE ;;
*) table=${3##*ONLY }; file=$PGDATABASE.${table%% *} ;;
esac
[ -e "$ANSWERS/$PGPORT/$file" ] || { echo "FATAL:  $file refuses" >&2; exit 2; }
cat "$ANSWERS/$PGPORT/$file"
"""
RUNUSER = """#!/bin/sh
shift 3
exec "$@"
"""


class Servers:
    """Two servers, by port and by what is asked: `databases`, the name of a database, or it with a table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        programs = folder / "bin"
        for path in (self.data, folder / f"data{REFERENCE}", programs):
            path.mkdir()
        for name, text in (("psql", PSQL), ("runuser", RUNUSER)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        shutil.copy(shutil.which("sleep") or "", programs / "postgres")
        self.server = subprocess.Popen([programs / "postgres", "60"])
        (self.data / "postmaster.pid").write_text(f"{self.server.pid}\n{self.data}\n0\n{NOW}\n/run\n")
        self.environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "ANSWERS": str(folder)}

    def compare(self, now: Mapping[str, str], before: Mapping[str, str]) -> tuple[int, list[str], str]:
        for port, answers in ((NOW, now), (BEFORE, before)):
            (self.folder / port).mkdir()
            for name, text in answers.items():
                (self.folder / port / name).write_text(text)
        script = compare_script(replace(default_containers()["tables"], data=str(self.data)))
        done = subprocess.run(
            ["sh", "-c", script], env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path)
    yield found
    found.server.kill()
    found.server.wait()
    assert not (tmp_path / "data.stagegbo-compared").exists(), "its own copy is gone"


def test_rows_tables_and_databases_that_differ_are_named(servers: Servers) -> None:
    now = {
        "databases": "my db\nnew\n",
        "my db": 'public.a\n"with\ttab"\n',
        "my db.public.a": "(1,x)\n(3,z)\n",
        'my db."with\ttab"': "(1)\n",
    }
    before = {
        "databases": "my db\nold\n",
        "my db": 'public.a\npublic.gone\n"with\ttab"\n',
        "my db.public.a": "(1,x)\n(2,y)\n",
        'my db."with\ttab"': "",
    }
    status, lines, said = servers.compare(now, before)
    assert (status, said) == (0, "")
    assert [line.split("\t") for line in lines] == [
        ["table", "new", "+", "(database)"],
        ["table", "old", "-", "(database)"],
        ["table", "my db", "-", "public.gone"],
        ["rows", 'my db "with tab"', "+", "1"],
        ["row", 'my db "with tab"', "+", "(1)"],
        ["rows", "my db public.a", "+", "1"],
        ["row", "my db public.a", "+", "(3,z)"],
        ["rows", "my db public.a", "-", "1"],
        ["row", "my db public.a", "-", "(2,y)"],
    ]


@pytest.mark.parametrize("refused", ["databases", "app", "app.public.a"])
@pytest.mark.parametrize("port", [NOW, BEFORE])
def test_a_server_that_does_not_answer_has_not_nothing(servers: Servers, port: str, refused: str) -> None:
    answers = {"databases": "app\n", "app": "public.a\n", "app.public.a": "(1)\n"}
    fewer = {name: text for name, text in answers.items() if name != refused}
    status, _, said = servers.compare(*((fewer, answers) if port == NOW else (answers, fewer)))
    assert status != 0
    assert f"{refused} refuses" in said
