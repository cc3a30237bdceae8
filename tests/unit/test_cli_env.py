"""What `env` prints is read by shells, dotenv files, Docker and systemd, and shows credentials only when asked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from stage_fakes import PASSWORD, FakeEngine, Vault, serving, settings_for

from pytest_stagegbo.cli import env, main
from pytest_stagegbo.cli.context import Context
from pytest_stagegbo.credentials.secret import Hidden
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.stage.environment import NAMES, by_container

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_stagegbo.stage import Stage

AWKWARD = [
    "plain-1.2_3",
    "http://10.0.3.14:9100/a?b=c&d=e",
    "two words",
    " spaces around ",
    "it's",
    'say "yes"',
    "$HOME `id` $(id)",
    "back\\slash \\n",
    "# no comment",
    "a'b\"c$d\\e`f",
    "",
    "ünï",
]


@pytest.fixture
def vault() -> Iterator[Vault]:
    with serving() as found:
        yield found


@pytest.fixture
def stage(vault: Vault) -> Stage:
    return FakeEngine(settings_for(vault)).stage()


@pytest.fixture
def command(vault: Vault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command works on the fake stage."""
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine(settings_for(vault))
    monkeypatch.setattr(Context, "engine", lambda _: engine)


def read_by_shell(file: Path) -> dict[str, str]:
    argv = ["sh", "-c", 'set -a; . "$1"; exec env -0', "sh", str(file)]
    done = subprocess.run(argv, capture_output=True, check=True, env={"PATH": os.environ["PATH"]})
    return dict(each.split("=", 1) for each in done.stdout.decode().split("\0") if each)


def read_by_docker(file: Path) -> dict[str, str]:
    """As Docker's documentation has it: a line a variable, without blanks before it; lines with # are comments; the
    rest of the line is the value, quotes included. A name without `=` would take Docker's own value of it."""
    lines = [line.lstrip(" \t") for line in file.read_text().split("\n")]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("export", ["", "export "])
@pytest.mark.parametrize("form", ["sh", "dotenv", "systemd"])
def test_a_shell_reads_what_is_quoted(form: str, export: str, tmp_path: Path) -> None:
    """dotenv's and systemd's quotes are a part of a shell's, but for dotenv's way to write a line's end."""
    file, values = tmp_path / "env", AWKWARD if form == "dotenv" else [*AWKWARD, "two\nlines $x\n", "\ttab"]
    file.write_text("".join(f"{export}V{n}={env.FORMATS[form](value)}\n" for n, value in enumerate(values)))
    found = read_by_shell(file)
    assert [found[f"V{n}"] for n in range(len(values))] == values


def test_docker_reads_values_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("".join(f"V{n}={env.FORMATS['docker'](value)}\n" for n, value in enumerate(AWKWARD)))
    assert [*read_by_docker(file).values()] == AWKWARD
    with pytest.raises(SettingsError, match="several lines"):
        env.FORMATS["docker"]("two\nlines")


def test_a_plain_value_is_the_same_for_every_reader() -> None:
    value = "postgresql://gbuser:0123abc@10.0.3.11:5432/botserver"
    assert {quote(value) for quote in env.FORMATS.values()} == {value}


def test_every_variable_is_known_by_name(stage: Stage) -> None:
    """`run` takes those away from a command that the stage has no value for."""
    found = {name for name in stage.env(vault_token=True) if not name.startswith("STAGEGBO_ENDPOINT_")}
    assert found == set(NAMES)


def test_bottest_finds_what_it_asks_for(stage: Stage) -> None:
    found = stage.env()
    expected = {
        "BOTSERVER_URL": "http://10.0.3.10:5858",
        "BOTUI_URL": "http://10.0.3.10:5859",
        "DB_HOST": "10.0.3.11",
        "DB_PORT": "5432",
        "DB_USER": "gbuser",
        "DB_PASSWORD": PASSWORD,
        "DB_NAME": "botserver",
        "S3_ENDPOINT": "http://10.0.3.14:9100",
    }
    assert {name: found.get(name) for name in expected} == expected


def test_names_choose_variables_and_containers(stage: Stage) -> None:
    every = by_container(stage, stage.credentials, None)
    assert [*env.chosen(every, ["DB_HOST", "cache"], stage.settings)] == [
        "STAGEGBO_ENDPOINT_CACHE_HOST",
        "STAGEGBO_ENDPOINT_CACHE_PORT",
        "STAGEGBO_ENDPOINT_CACHE_URL",
        "DB_HOST",
        "REDIS_URL",
    ]
    with pytest.raises(SettingsError, match="no variable and no container crm"):
        env.chosen(every, ["crm"], Settings())


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("DB_NAME", "botserver", "botserver"),
        ("DB_PASSWORD", Hidden("redis://looks-like-one"), "***"),
        ("REDIS_URL", Hidden("redis://:p%40ss@10.0.3.13:6379/0"), "redis://:***@10.0.3.13:6379/0"),
        ("REDIS_URL", Hidden("redis://10.0.3.13:6379/0"), "redis://10.0.3.13:6379/0"),
    ],
)
def test_only_the_secret_of_a_value_is_masked(name: str, value: str, shown: str) -> None:
    assert env.masked(name, value) == shown


@pytest.mark.usefixtures("command")
class TestCommand:
    def test_credentials_are_masked(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["env"]) == 0
        said = capsys.readouterr()
        assert "DATABASE_URL='postgresql://gbuser:***@10.0.3.11:5432/botserver'\n" in said.out
        assert "5 credentials are masked (DATABASE_URL, DB_PASSWORD, REDIS_URL, AWS_ACCESS_KEY_ID" in said.err
        assert not [s for s in (PASSWORD, "p%40ss", "password-of-cache", "secret-of-drive") if s in said.out + said.err]

    def test_json_is_one_object(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["env", "--format", "json", "DB_HOST", "DB_PASSWORD"]) == 0
        assert json.loads(capsys.readouterr().out) == {"DB_HOST": "10.0.3.11", "DB_PASSWORD": "***"}

    def test_export_is_for_shells(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["env", "--export", "DB_HOST"]) == 0
        assert capsys.readouterr().out == "export DB_HOST=10.0.3.11\n"
        assert main(["env", "--export", "--format", "docker"]) == 2

    def test_a_file_is_its_owners_alone_and_has_the_secrets(self, tmp_path: Path) -> None:
        file = tmp_path / "stage.env"
        file.write_text("OLD=1\n")
        file.chmod(0o644)
        assert main(["env", "--secrets", "-o", str(file)]) == 0
        assert file.stat().st_mode & 0o777 == 0o600
        found = read_by_shell(file)
        assert (found["DB_PASSWORD"], found["REDIS_URL"]) == (PASSWORD, "redis://:password-of-cache@10.0.3.13:6379/0")
        assert [*tmp_path.iterdir()] == [file]

    def test_what_is_no_file_is_left_alone(self, tmp_path: Path) -> None:
        assert main(["env", "--secrets", "-o", str(tmp_path)]) == 2

    def test_no_pipe_gets_a_secret(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading) as pipe, os.fdopen(writing, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main(["env", "--secrets"]) == 2
            stdout.flush()
            monkeypatch.undo()
            stdout.close()
            assert pipe.read() == ""
        assert "-o FILE" in capfd.readouterr().err

    def test_a_file_that_the_shell_made_becomes_private(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "out"
        with file.open("w") as stdout:
            file.chmod(0o644)
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main(["env", "--secrets", "DB_PASSWORD"]) == 0
        assert file.stat().st_mode & 0o777 == 0o600
        assert read_by_shell(file)["DB_PASSWORD"] == PASSWORD

    def test_a_log_that_others_read_gets_none(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "log"
        file.write_text("begun\n")
        file.chmod(0o644)
        with file.open("a") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main(["env", "--secrets"]) == 2
        assert (file.read_text(), file.stat().st_mode & 0o777) == ("begun\n", 0o644)
