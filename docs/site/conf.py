"""Builds the site from `docs/`, `examples/` and the documents of the project's root. `./dev docs` does it.

The sources are plain Markdown that a forge shows as well, so their links are relative paths. Two things are added while
they are read: what the code says, in place of comments such as `<!-- from the code: errors -->` (`from_code.py`), and
the navigation, from the links of `docs/index.md`.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from from_code import insert

project = "pytest-stagegbo"
author = "the authors of pytest-stagegbo"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "docs/index"
include_patterns = ["docs/**.md", "examples/**.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [".*", "**/.*", "build", "dist", "node_modules", "**/node_modules"]
nitpicky = True
myst_heading_anchors = 4

html_theme = "furo"
html_title = "pytest-stagegbo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["extra"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6477", "color-brand-content": "#0b6477"},
    "dark_css_variables": {"color-brand-primary": "#62c6d9", "color-brand-content": "#62c6d9"},
}
pygments_style = "default"
pygments_dark_style = "github-dark"

NAVIGATION = {"docs/index", "docs/decisions/README"}
"""Pages whose links to other pages are the navigation. A page that none of them has is an error of the build."""
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_PAGE = re.compile(r"\[([^]]+)\]\((?!https?:)([^)#]+)\.md\)")


def prepare(_: Any, docname: str, source: list[str]) -> None:
    """Add to a page what the code says, and to a page of links the navigation."""
    source[0] = insert(source[0])
    if docname in NAVIGATION:
        source[0] += "\n" + "\n".join(navigation(source[0], posixpath.dirname(docname)))


def navigation(text: str, folder: str) -> list[str]:
    """A tree of contents for each section of a page, with the pages that the section links to."""
    before, *parts = _SECTION.split(text)
    if not parts:
        parts = ["", before]
    trees = []
    for caption, part in zip(parts[::2], parts[1::2], strict=True):
        entries = [
            f"{title} </{posixpath.normpath(posixpath.join(folder, path))}>" for title, path in _PAGE.findall(part)
        ]
        if entries:
            trees += [
                "```{toctree}",
                ":hidden:",
                *([f":caption: {caption}"] if caption else []),
                "",
                *entries,
                "```",
                "",
            ]
    return trees


def setup(app: Any) -> None:
    app.connect("source-read", prepare)
