"""The reference lists every key, and the documentation holds the current one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_stagegbo.settings import load
from pytest_stagegbo.settings.keys import all_keys
from pytest_stagegbo.settings.reference import Row, reference, render

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_there_is_a_row_for_every_key() -> None:
    rows = {
        row.key.replace("<name>", "*").replace("<key>", "*").replace("<artefact>", "*")
        for row in reference()
        if "[]" not in row.key
    }
    assert rows == {".".join(path) for path in all_keys()}


def test_every_row_says_what_it_is_for() -> None:
    assert [row.key for row in reference() if not row.text] == []


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            Row("project", "STAGEGBO_PROJECT", "text", '"STAGE-GBO"', "Incus project of the stage."), id="text"
        ),
        pytest.param(
            Row(
                "containers.<name>.needs",
                "STAGEGBO_CONTAINERS__<NAME>__NEEDS",
                "a list of text",
                "[]",
                "Containers whose services must answer before the services of this container start.",
            ),
            id="container",
        ),
        pytest.param(
            Row(
                "containers.<name>.probes[].path",
                "",
                "text",
                '""',
                "For `http` only: the page that answers 200 when the service is ready.",
            ),
            id="probe",
        ),
    ],
)
def test_a_row_has_key_variable_type_default_and_meaning(row: Row) -> None:
    assert row in reference()


def test_every_key_of_the_reference_is_in_the_table() -> None:
    text = render()
    assert [row.key for row in reference() if f"`{row.key.removeprefix('containers.<name>.')}`" not in text] == []


def test_the_module_prints_the_reference() -> None:
    command = [sys.executable, "-W", "error", "-m", "pytest_stagegbo.settings.reference"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == render() + "\n"


def test_the_documentation_is_up_to_date() -> None:
    """`python -m pytest_stagegbo.settings.reference` prints what belongs at the end of docs/settings.md."""
    assert DOCS.read_text().endswith(render() + "\n")


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", DOCS.read_text(), flags=re.DOTALL))
def test_the_examples_of_the_documentation_are_accepted(tmp_path: Path, example: str) -> None:
    (tmp_path / "stagegbo.toml").write_text(example)
    assert set(load(None, tmp_path, {}).origins.values()) != {"default"}
