"""What README.md says is what the code does."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from pytest_stagegbo import errors
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.settings import Settings, load
from pytest_stagegbo.settings.reference import reference

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its own head."""
    below = README.partition(f"# {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert lines, heading
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[0].splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in rows]


def test_exit_codes_are_those_of_the_errors() -> None:
    expected = defaultdict(set)
    for name in set(errors.__all__) - {"StageGboError"}:
        expected[getattr(errors, name).exit_code].add(name)
    documented = {int(code): set(re.findall(r"`(\w+)`", names)) for code, names, _ in table("Exit codes")}
    assert {code: names for code, names in documented.items() if names} == expected


def test_every_command_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    listed = set(re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE))
    assert {row[0].strip("`").split()[0] for row in table("Commands")} == listed


@pytest.mark.parametrize("usage", [pytest.param(row[0].strip("`"), id=row[0].split()[0]) for row in table("Commands")])
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
    sentence = README.partition("Before or after any command:")[2].partition("\n\n")[0]
    for option in re.findall(r"`(--[\w-]+)", sentence):
        assert option in text


def test_settings_and_their_defaults_exist() -> None:
    defaults = {row.key: row.default for row in reference()}
    for key, default, _ in table("Settings"):
        name = key.strip("`").replace("NAME", "<name>")
        if default:
            assert default.strip("`") == defaults[name], name
        else:
            assert name.rpartition(".")[2] in {"probes"}


def test_the_addresses_are_the_default_ones(tmp_path: Path) -> None:
    settings: Settings = load(None, tmp_path, {"STAGEGBO_CONFIG": ""}).settings
    documented = {name: (there, here) for name, there, here, _ in table("What it does")}
    assert documented == {
        name: (str(container.production_address), str(container.address))
        for name, container in settings.containers.items()
    }


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
