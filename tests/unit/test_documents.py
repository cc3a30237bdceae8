"""Documents lead where they say: links, sections and files of this repository exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.cli.parser import MODULES, parse
from pytest_stagegbo.plugin.options import OPTIONS, SWITCHES
from pytest_stagegbo.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if not any(part == "node_modules" or part[0] == "." for part in path.relative_to(ROOT).parts)  # left by a run
)


def sections(document: Path) -> set[str]:
    """The anchors of its headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def prose(name: str) -> str:
    return re.sub(r"^```.*?^```", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(language: str, *, least: int) -> list[tuple[str, str]]:
    """The examples in a language of all documents, each with its place."""
    found = []
    for name in DOCUMENTS:
        for each in re.finditer(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL):
            line = (ROOT / name).read_text()[: each.start()].count("\n") + 1
            found.append((f"{name}:{line}", each[1]))
    assert len(found) >= least, "the examples are not where these tests look"
    return found


def test_there_are_documents() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/isolation.md", "examples/botserver/README.md"} <= set(DOCUMENTS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", prose(name)):
        path, _, section = target.partition("#")
        document = (ROOT / name).parent / path if path else ROOT / name
        assert document.exists(), target
        if section:
            assert section in sections(document), target


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_are_named_exist(name: str) -> None:
    package = ROOT / "src/pytest_stagegbo"
    for path in re.findall(r"`([\w/.]+/[\w.]+\.(?:py|md|toml))`", (ROOT / name).read_text()):
        assert (ROOT / path).exists() or (package / path).exists(), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_sentences_name_their_subject(name: str) -> None:
    """Words that send a reader to the sentence before, or leave out who does something."""
    assert re.findall(r"\b(?:anew|whoever|likewise|who asks)\b", prose(name), re.IGNORECASE) == []


def test_every_page_is_in_the_navigation() -> None:
    """`docs/index.md` lists all pages of the site: give a new one its line there."""
    listed = set()
    for page in ("docs/index.md", "docs/decisions/README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+\.md)", (ROOT / page).read_text()):
            listed.add(((ROOT / page).parent / target).resolve().relative_to(ROOT).as_posix())
    assert listed | {"docs/index.md", "README.md"} == set(DOCUMENTS)


def commands() -> Iterator[tuple[str, str]]:
    """Lines of examples that call `stagegbo`, without what a shell does with them."""
    for place, block in blocks("(?:console|sh)", least=40):
        for line in block.replace("\\\n", " ").splitlines():
            called = re.match(r"(?:[$#] )?(?:sudo )?(?:\w+=\S+ )*(?:python -m pytest_stagegbo|stagegbo) (.*)", line)
            if called:
                yield place, re.split(r"\s+(?:[|>]|#|&&)", f"{called[1]} ")[0]


@pytest.mark.parametrize(("place", "command"), [pytest.param(*each, id=f"{each[0]} {each[1]}") for each in commands()])
def test_commands_of_examples_exist(place: str, command: str) -> None:
    words = shlex.split(command)
    assert set(words) & {*MODULES, "--version"}, place
    assert parse(words).run, place


@pytest.mark.parametrize("name", DOCUMENTS)
def test_options_of_pytest_that_are_named_exist(name: str) -> None:
    known = {f"--stage-{each}" for each in (*OPTIONS, *SWITCHES)}
    assert set(re.findall(r"(?<![\w-])--stage-[a-z-]*[a-z]", (ROOT / name).read_text())) <= known


@pytest.mark.parametrize(("place", "example"), [pytest.param(*each, id=each[0]) for each in blocks("toml", least=10)])
def test_settings_of_examples_are_accepted(place: str, example: str, tmp_path: Path) -> None:
    for hook in re.findall(r'"([\w/]+\.(?:sql|sh|py))"', example):
        (tmp_path / hook).parent.mkdir(exist_ok=True)
        (tmp_path / hook).write_text("#!/bin/sh\n")
    file = tmp_path / ("pyproject.toml" if re.search(r"^\[tool\.stagegbo", example, re.MULTILINE) else "stagegbo.toml")
    file.write_text(example)
    assert load(file, tmp_path, {}).file == file, place


def test_tests_of_examples_name_fixtures_and_markers_that_exist(tmp_path: Path) -> None:
    """pytest collects all of them, and plans their setup. It executes none, so no stage is needed."""
    for place, example in blocks("python", least=10):
        name = re.sub(r"\W", "_", place)
        conftest = example.startswith("# conftest.py")
        (tmp_path / name).mkdir()
        file = tmp_path / name / ("conftest.py" if conftest else f"test_{name}.py")
        file.write_text(example if conftest else f"import pytest\n{example}")
        if conftest:
            (file.parent / f"test_{name}.py").write_text("def test_it(stage_gbo): ...\n")
    argv = [sys.executable, "-m", "pytest", "--setup-plan", "-W", "error", "-q", "-c", "/dev/null"]
    argv += ["-o", "markers=asyncio: pytest-asyncio's, which need not be installed here"]
    done = subprocess.run([*argv, f"--rootdir={tmp_path}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
