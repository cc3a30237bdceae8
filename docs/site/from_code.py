"""What the site says about the code, as Markdown: errors, commands, options, markers, fixtures and settings.

A page has a comment where such a text belongs, for example `<!-- from the code: errors -->`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
from importlib import resources
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.parser import MODULES, parse
from pytest_stagegbo.explanations import explanations
from pytest_stagegbo.plugin import options
from pytest_stagegbo.settings.keys import env_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["insert"]

_COMMENT = re.compile(r"^<!-- from the code: (.+) -->$", re.MULTILINE)


def insert(text: str) -> str:
    """A page with what the code says.

    Raises:
        KeyError: the code says nothing of that name.
    """
    return _COMMENT.sub(lambda comment: TEXTS[comment[1]](), text)


def errors() -> str:
    return "\n".join(each.markdown() for each in explanations().values())


def commands() -> str:
    return "\n".join(f"### {' '.join(words)}\n\n```text\n{text}\n```\n" for words, text in _commands())


def _commands() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command with what its `--help` prints; behind one that has commands of its own, these."""
    for command in MODULES:
        text = _help(command)
        yield (command,), text
        choices = re.search(r"^usage: .*?\{([\w,-]+)\} \.\.\.", text, re.DOTALL)
        for inner in choices[1].split(",") if choices else ():
            yield (command, inner), _help(command, inner)


def _help(*words: str) -> str:
    printed = io.StringIO()
    os.environ["COLUMNS"] = "80"
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parse([*words, "--help"])
    return printed.getvalue().partition("\noptions of every command:")[0].rstrip()


def pytest_options() -> str:
    rows = []
    for name, (setting, metavar, text) in options.OPTIONS.items():
        rows.append(_option(f"--stage-{name}={metavar}", name, setting, text))
    for name, (setting, text) in options.SWITCHES.items():
        rows.append(_option(f"--stage-{name}", name, setting, text))
    return _table(("option", "ini", "setting", "environment", "meaning"), rows)


def _option(shown: str, name: str, setting: str, text: str) -> tuple[str, ...]:
    variable = env_name(tuple(setting.split("."))) if setting else f"STAGEGBO_{name.upper()}"
    key = f"[`{setting}`](settings.md#all-keys)" if setting else ""
    return (f"`{shown}`", f"`{options.destination(name)}`", key, f"`{variable}`", text)


def fixtures() -> str:
    """Every fixture of the plugin, with its docstring."""
    source = resources.files("pytest_stagegbo.plugin").joinpath("fixtures.py").read_text("utf-8")
    rows = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            session = any("scope='session'" in ast.unparse(each) for each in node.decorator_list)
            gives = re.sub(r"^(?:Async)?Iterator\[(.*)\]$", r"\1", ast.unparse(node.returns) if node.returns else "")
            text = " ".join((ast.get_docstring(node) or "").split())
            rows.append((f"`{node.name}`", "session" if session else "function", f"`{gives}`", text))
    return _table(("fixture", "scope", "gives", ""), rows)


def markers() -> str:
    """Every marker of the plugin, as `pytest --markers` prints it."""
    argv = [sys.executable, "-m", "pytest", "--markers", "-p", "no:cacheprovider", "-c", os.devnull]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^(@pytest\.mark\.stage_[^:]+): (.*)$", said, re.MULTILINE)
    return _table(("marker", "meaning"), [(f"`{marker}`", text) for marker, text in rows])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


TEXTS: dict[str, Callable[[], str]] = {
    "errors": errors,
    "commands": commands,
    "options": pytest_options,
    "fixtures": fixtures,
    "markers": markers,
}
