"""The settings of every example are valid, and say what their comments say."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pytest_stagegbo.settings import load

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*/stagegbo.toml"))


def test_there_are_examples() -> None:
    assert FILES


@pytest.mark.parametrize("file", [pytest.param(file, id=file.parent.name) for file in FILES])
def test_the_settings_of_an_example_are_valid(file: Path, tmp_path: Path) -> None:
    assert load(file, tmp_path, {}).file == file


def test_the_quickstart_means_what_its_comments_say(tmp_path: Path) -> None:
    settings = load(EXAMPLES / "quickstart/stagegbo.toml", tmp_path, {}).settings
    assert settings.containers["tables"].address == IPv4Address("10.0.7.11")
    assert "llm" not in settings.containers
    assert "llm" not in settings.containers["system"].needs
    assert settings.containers["system"].disk_limit == "20GB"
    assert Path(settings.vault.unseal_file) == Path("~/.config/stagegbo/init.json").expanduser()
