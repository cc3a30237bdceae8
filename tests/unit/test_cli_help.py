"""Help says first what a command does, with examples; a misspelt word gets the one that may have been meant."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.cli import main
from pytest_stagegbo.cli.command import parsers_in
from pytest_stagegbo.cli.examples import EXAMPLES
from pytest_stagegbo.cli.parser import MODULES, new_parser, parse
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.text import did_you_mean
from pytest_stagegbo.verify import chosen

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [
    *MODULES,
    *(f"{name} {inner}" for name, _, parser in parsers_in(new_parser("")) for inner, _, _ in parsers_in(parser)),
]


def refused(*argv: str) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    assert stop.value.code == 2


def test_examples_are_of_commands_that_exist() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_a_sentence_and_examples(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse([*command.split(), "--help"])
    usage, sentence, examples, *rest = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: stagegbo {command} ")
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert examples.splitlines() == [examples.splitlines()[0], *(f"  {each}" for each in EXAMPLES[command])]
    assert examples.startswith("example")
    assert "options of every command:" in "\n\n".join(rest) or command.startswith("lab ")


@pytest.mark.parametrize("example", [each for found in EXAMPLES.values() for each in found])
def test_an_example_is_a_line_that_works(example: str) -> None:
    words = shlex.split(example.partition("|")[0].partition(">")[0], comments=True)
    assert words[0] == "stagegbo"
    assert parse(words[1:]).run
    assert len(example) <= 78, "it has to fit into 80 columns"


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        pytest.param("stauts", "there is no 'stauts'; did you mean status?", id="command"),
        pytest.param("lab dwon", "there is no 'dwon'; did you mean down?", id="command of a command"),
        pytest.param("status --jsno", "there is no option --jsno; did you mean --json?", id="option"),
        pytest.param("logs --folow", "there is no option --folow; did you mean --follow?", id="before what is missing"),
        pytest.param("lab up --frsh", "there is no option --frsh; did you mean --fresh?", id="option below"),
        pytest.param("exec cache --usr x -- id", "no option --usr; did you mean --user?", id="before two dashes"),
        pytest.param("env --format dokcer", "there is no 'dokcer'; did you mean docker?", id="value"),
        pytest.param("baseline sav x", "there is no 'sav'; did you mean save?", id="action"),
    ],
)
def test_what_may_have_been_meant_is_named(line: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(*line.split())
    assert meant in capsys.readouterr().err


def test_nothing_similar_is_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    refused("xyzzy")
    said = capsys.readouterr().err
    assert "did you mean" not in said
    assert "choose from init, provision" in said
    assert did_you_mean(["xyzzy", "cach", "tabels"], ["cache", "tables"]) == "; did you mean cache, tables?"


def test_containers_and_checks_have_neighbours() -> None:
    error = SettingsError.unknown("no container", ["cahce"], Settings().containers or ["cache", "drive"])
    assert error.message == "no container cahce; did you mean cache?"
    assert error.remedy.startswith("choose from ")
    with pytest.raises(SettingsError, match=r"no check reach\.internt; did you mean reach\.internet\?"):
        chosen(["reach.internt"])


def test_an_option_is_never_abbreviated() -> None:
    """A script that does it breaks when a second option begins in the same way."""
    refused("status", "--js")


# -- commands that run a command


def test_options_stand_anywhere_before_the_two_dashes() -> None:
    found = parse(["exec", "cache", "--user", "gbuser", "-q", "--", "id", "--user"])
    assert (found.name, found.user, found.quiet, found.argv) == ("cache", "gbuser", True, ["id", "--user"])
    found = parse(["lab", "exec", "--member", "member2", "--", "incus", "list"])
    assert (found.member, found.argv) == ("member2", ["incus", "list"])


def test_without_them_the_rest_is_the_command() -> None:
    assert parse(["exec", "cache", "ls", "-l", "--all"]).argv == ["ls", "-l", "--all"]


@pytest.mark.parametrize(
    "line", ["exec cache --user x id", "run --resett cache true", "exec cache id -- x", "lab up -- x"]
)
def test_an_option_is_not_run_as_a_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(*line.split())
    assert "what to do: `stagegbo" in capsys.readouterr().err


# -- how much is said


def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    refused("-q", "status", "-v")
    assert "exclude each other" in capsys.readouterr().err


def test_every_command_has_both() -> None:
    for name, _, parser in parsers_in(new_parser("")):
        assert {"-q", "-v", "--debug"} <= set(parser._option_string_actions), name


def test_standard_output_is_the_same_however_much_is_said(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pytest_stagegbo", "--endpoint", str(tmp_path / "none"), "doctor"]
    plain, quiet, verbose, debug = (
        subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        for more in ([], ["-q"], ["-v"], ["--debug"])
    )
    assert plain.stdout
    assert plain.stdout == quiet.stdout == verbose.stdout == debug.stdout
    assert (plain.stderr, quiet.stderr) == ("", "")
    assert "stagegbo.settings: settings of defaults and environment" in verbose.stderr


def test_the_version_has_a_short_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["-V"])
    assert not stop.value.code
    assert capsys.readouterr().out.startswith("pytest-stagegbo ")
