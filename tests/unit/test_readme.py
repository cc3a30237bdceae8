"""What README.md and the tables of the reference say is what the code does."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from pytest_stagegbo import errors
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.settings import Settings, load

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs/reference.md").read_text()


def table(heading: str, document: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its own head."""
    below = document.partition(f"# {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert lines, heading
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[0].splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in rows]


def test_exit_codes_are_those_of_the_errors() -> None:
    expected = defaultdict(set)
    for name in set(errors.__all__) - {"StageGboError"}:
        expected[getattr(errors, name).exit_code].add(name)
    rows = table("Exit codes", (ROOT / "docs/errors.md").read_text())
    documented = {int(code): set(re.findall(r"`(\w+)`", names)) for code, names, _ in rows}
    assert {code: names for code, names in documented.items() if names} == expected


def test_every_command_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    listed = set(re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE))
    assert {row[0].strip("`").split()[0] for row in table("Commands", REFERENCE)} == listed


@pytest.mark.parametrize(
    "usage", [pytest.param(row[0].strip("`"), id=row[0].split()[0]) for row in table("Commands", REFERENCE)]
)
def test_options_of_a_command_exist(usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse([usage.split()[0], "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", usage):
        assert option in text


def test_options_of_every_command_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    sentence = REFERENCE.partition("Before or after any command:")[2].partition("\n\n")[0]
    for option in re.findall(r"`(--[\w-]+)", sentence):
        assert option in text


def test_the_addresses_are_the_default_ones(tmp_path: Path) -> None:
    settings: Settings = load(None, tmp_path, {"STAGEGBO_CONFIG": ""}).settings
    documented = {
        name: (there, here) for name, there, here, _ in table("The clones", (ROOT / "docs/promises.md").read_text())
    }
    assert documented == {
        name: (str(container.production_address), str(container.address))
        for name, container in settings.containers.items()
    }


def test_the_commands_to_begin_with_exist() -> None:
    commands = re.findall(r"^# (\./dev \w+)", README, re.MULTILINE)
    assert commands == ["./dev demo", "./dev test"]
    usage = subprocess.run(["./dev"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for command in re.findall(r"\./dev (\w+)", README):
        assert re.search(rf"^  {command} ", usage, re.MULTILINE), command
