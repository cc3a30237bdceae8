"""Numbers as people read them, and text of others that may be shown to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "age_text",
    "bytes_text",
    "count_text",
    "did_you_mean",
    "nearest",
    "printable",
    "printable_json",
    "printable_name",
]

_CONTROL = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
"""Everything that moves a cursor, changes colours or titles, or turns the direction of writing; not tab and newline.
And surrogates, which Python puts for bytes of file names that are not UTF-8, and which no encoding can write."""


def printable(text: str) -> str:
    """Text of a container, a service or a file that may be written to a terminal: controls are shown as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return _CONTROL.sub(_escape, text.replace("\r\n", "\n"))


def printable_name(text: str) -> str:
    """The same of a name within a line: what would end the line, or begin another field of it, is an escape, too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(text: str) -> str:
    """The same of JSON, which stays JSON: it escapes only some of these."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def bytes_text(size: int) -> str:
    """At least three digits and a binary unit: `1.5 GiB`, `1023 B`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{_three_digits(value)} {unit}"
        value /= 1024
    return f"{_three_digits(value)} TiB"


def age_text(seconds: float) -> str:
    """A whole number of the largest unit that makes one: `59 s`, `2 min`, `47 h`, `3 days`."""
    for size, most, unit in ((1, 120, "s"), (60, 120, "min"), (3600, 48, "h")):
        if seconds < size * most:
            return f"{max(0, int(seconds / size))} {unit}"
    return f"{int(seconds / 86400)} days"


def count_text(number: int, noun: str) -> str:
    """A number of things, with an `s` unless it is one: `1 step`, `2 steps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known word that is most similar to `word`, or an empty text if none is similar."""
    from difflib import get_close_matches  # what nobody has misspelt need not be imported

    return next(iter(get_close_matches(word, sorted(set(known)), n=1, cutoff=cutoff)), "")


def did_you_mean(words: Iterable[str], known: Iterable[str]) -> str:
    """Return a clause that suggests a known word for each of these that is similar to one: `; did you mean cache?`."""
    every = tuple(known)
    found = [near for word in words if (near := nearest(word, every))]
    return f"; did you mean {', '.join(found)}?" if found else ""


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"  # `g` would write 1e+03
