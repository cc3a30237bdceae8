"""Commands that errors and messages name can be copied: they exist, and are aimed at what the run was aimed at."""

from __future__ import annotations

import argparse
import ast
import functools
import itertools
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_stagegbo
from pytest_stagegbo.cli.parser import MODULES, parse
from pytest_stagegbo.cli.remedies import aimed

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(pytest_stagegbo.__file__).parent
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
"""What every module consists of. To parse them takes a second, so it is done once."""


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text of a module, with `NAME` for what is put into it when it is shown."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "NAME" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


COMMANDS = sorted(
    {command for tree in TREES.values() for text in texts(tree) for command in re.findall(r"`(stagegbo [^`]+)`", text)}
)


def test_there_are_commands() -> None:
    assert {"stagegbo provision", "stagegbo provision --recreate", "stagegbo shell NAME"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_named_exists(command: str) -> None:
    assert parse(shlex.split(command)[1:]).run


@functools.cache
def runtime_texts() -> dict[Path, list[str]]:
    """By module, every text but its docstrings."""
    return {path: list(shown_texts(tree)) for path, tree in TREES.items()}


def shown_texts(tree: ast.AST) -> Iterator[str]:
    passed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    passed |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.Constant)) and id(node) not in passed:
            yield from itertools.islice(texts(node), 1)


def test_every_command_that_is_named_is_called_stagegbo() -> None:
    """`provision` alone can't be copied, and gets none of the run's own options."""
    commands = "|".join(set(MODULES) - {"logs"})  # `logs` is a setting as well
    bare = re.compile(rf"`({commands})\b[^`]*`|\b(run provision|provision again|provision (--\w+))\b")
    named = [
        f"{path}: {text}"
        for path, found in runtime_texts().items()
        if path.name != "examples.py"  # they begin with `stagegbo`
        for text in found
        if bare.search(re.sub(r"`stagegbo [^`]+`", "", text))
    ]
    assert named == []


def test_what_pytest_shows_as_well_names_settings_and_no_options_of_the_command() -> None:
    """pytest has no --endpoint: what is wrong there is mended by the setting, as it is for the command."""
    option = re.compile(r"(?<![\w-])--(endpoint|source-project|network|project)\b")
    named = [
        f"{path}: {text}"
        for path, found in runtime_texts().items()
        if path.parts[0] not in {"cli", "lab", "plugin"}
        for text in found
        if " " in text and option.search(re.sub(r"`(stagegbo|incus) [^`]+`", "", text))
    ]
    assert named == []


def test_no_text_names_the_module() -> None:
    """One name for one thing: `python -m pytest_stagegbo` is the same, and only documents say so."""
    named = [
        f"{path}: {text}"
        for path, tree in TREES.items()
        for text in texts(tree)
        if "python -m pytest_stagegbo " in text
    ]
    assert named == []


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        pytest.param([], "run `stagegbo provision`", "run `stagegbo provision`", id="nothing"),
        pytest.param(
            ["--lab", "--slot", "1"],
            "`stagegbo shell cache`",
            "`stagegbo --lab --slot 1 shell cache`",
            id="lab and slot",
        ),
        pytest.param(
            ["--project", "MY STAGE", "--config", "a.toml"],
            "`stagegbo provision`, then `stagegbo verify`",
            "`stagegbo --config a.toml --project 'MY STAGE' provision`, "
            "then `stagegbo --config a.toml --project 'MY STAGE' verify`",
            id="two",
        ),
        pytest.param(
            ["--slot", "1", "--lab"],
            "`stagegbo provision --slots 2`",
            "`stagegbo --lab provision --slots 2`",
            id="a command for all slots",
        ),
        pytest.param(["--lab"], "`stagegbo lab up`, `incus list`", "`stagegbo lab up`, `incus list`", id="others"),
    ],
)
def test_a_command_is_aimed_as_its_run_was(options: list[str], text: str, expected: str) -> None:
    assert aimed(text, parse([*options, "status"])) == expected


def test_what_a_run_was_not_given_is_not_added() -> None:
    assert aimed("`stagegbo status`", argparse.Namespace()) == "`stagegbo status`"
