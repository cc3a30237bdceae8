"""Writes `stagegbo.toml`: what differs from the defaults, each with its reason. Pure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.discovery.proposal import order
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_stagegbo.discovery.pools import PoolAdvice
    from pytest_stagegbo.discovery.proposal import Proposal
    from pytest_stagegbo.discovery.records import Conclusion

__all__ = ["document"]

_TABLES = ("incus", "network", "vault")
_WIDTH = 110


def document(proposal: Proposal, advice: PoolAdvice | None) -> str:
    """The text of the file."""
    clones = ", ".join(
        each.name if each.name == each.source.name else f"{each.name} ({each.source.name})"
        for each in proposal.roles.assigned
    )
    lines = [
        *_comment("Settings of pytest-stagegbo, written by `stagegbo init`. What is not here has its default:"),
        *_comment("docs/settings.md"),
        *_comment(f"Production is project {proposal.source_project}: {clones}."),
    ]
    for source, reason in proposal.roles.left_out:
        lines += _comment(f"Not cloned: {source.name}; {reason}.")
    if not proposal.conclusions:
        lines += _comment("Everything is as the defaults are: nothing has to be set.")
    lines += _pairs([each for each in proposal.conclusions if "." not in each.key], "")
    for table in _TABLES:
        lines += _table(table, [each for each in proposal.conclusions if each.key.startswith(f"{table}.")])
    lines += _containers(proposal.conclusions)
    if proposal.doubts:
        lines += ["", "# Not known, so look at these:"]
        lines += [line for text in proposal.doubts for line in _comment(text, bullet="- ")]
    if advice is not None:
        lines += ["", *_comment(advice.text), *_comment(f"To have it: `{advice.command}`, then")]
        lines += ["# [storage]", f"# pool = {toml(advice.name)}"]
    return "\n".join(lines) + "\n"


def _containers(conclusions: Sequence[Conclusion]) -> Iterator[str]:
    found = [each for each in conclusions if each.key.startswith("containers.")]
    yield from _table("containers", [each for each in found if each.key.count(".") == 1])
    names = sorted({each.key.split(".")[1] for each in found if each.key.count(".") > 1}, key=order)
    for name in names:
        table = f"containers.{name}"
        inside = [each for each in found if each.key.startswith(f"{table}.")]
        yield from _table(table, inside)


def _table(name: str, conclusions: Sequence[Conclusion]) -> Iterator[str]:
    if conclusions:
        yield ""
        yield f"[{name}]"
        yield from _pairs(conclusions, f"{name}.")


def _pairs(conclusions: Sequence[Conclusion], prefix: str) -> Iterator[str]:
    if not prefix and conclusions:
        yield ""
    for each in conclusions:
        doubt = {"seen": "", "likely": "likely: ", "unsure": "NOT SURE: "}[each.sure]
        yield from _comment(f"{doubt}{each.why}")
        yield f"{each.key.removeprefix(prefix)} = {toml(each.value)}"


def _comment(text: str, *, bullet: str = "") -> list[str]:
    """Lines of a comment. Names and reasons may be production's, and become no line of their own."""
    words = " ".join(printable(text).split())
    later = f"# {' ' * len(bullet)}"
    return textwrap.wrap(words, _WIDTH, initial_indent=f"# {bullet}", subsequent_indent=later, break_on_hyphens=False)


def toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {toml(inner)}' for key, inner in value.items())} }}"
    return str(value)
