"""What causes each error, and what mends it: what `stagegbo explain` prints, and the site's page of errors.

The texts are in `explanations.md`, beside this module. What an error means is the docstring of its class.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Explanation", "explanations"]

_LINK = re.compile(r"\[([^]]+)\]\(([\w/-]+\.md)(?:#[\w-]+)?\)")


class Explanation(Struct, frozen=True):
    """One error, as it is explained to somebody who has just seen it."""

    code: str
    name: str
    """Of its class."""
    meaning: str
    exit_code: int
    causes: tuple[tuple[str, str], ...]
    """Each cause, with what to do about it. Both are Markdown, whose links are relative to `docs/`."""

    def markdown(self) -> str:
        """Its section in the page of errors."""
        entries = "\n".join(f"- **{cause}** {remedy}" for cause, remedy in self.causes)
        return f"## {self.code}\n\n`{self.name}`, exit code {self.exit_code}. {self.meaning}\n\n{entries}\n"

    def text(self) -> str:
        """The same for a terminal, where links can't be followed."""
        entries = (_LINK.sub(r"\1 (docs/\2)", f"- {cause}\n  {remedy}") for cause, remedy in self.causes)
        head = f"{self.code} {self.name}, exit code {self.exit_code}\n{self.meaning}"
        return "\n".join((head, "", "causes, and what to do:", *entries))


@cache
def explanations() -> dict[str, Explanation]:
    """By code, in the order of the codes."""
    source = resources.files("pytest_stagegbo").joinpath("explanations.md").read_text("utf-8")
    classes = {kind.code: kind for kind in (getattr(errors, name) for name in errors.__all__)}
    _, *sections = re.split(r"^## (SG\d{3})\n", source, flags=re.MULTILINE)
    found = {}
    for code, section in zip(sections[::2], sections[1::2]):  # noqa: B905 (Python 3.10: both are as long)
        kind = classes[code]
        meaning = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n", 1)[0].split())
        found[code] = Explanation(code, kind.__name__, meaning, kind.exit_code, tuple(_entries(section)))
    return found


def _entries(section: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(r"^- ", section, flags=re.MULTILINE)[1:]:
        cause, _, remedy = " ".join(entry.split()).removeprefix("**").partition("** ")
        yield cause, remedy
