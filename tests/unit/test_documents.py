"""Documents lead where they say: links, sections and files of this repository exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)


def sections(document: Path) -> set[str]:
    """The anchors of its headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def prose(name: str) -> str:
    return re.sub(r"^```.*?^```", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)


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
