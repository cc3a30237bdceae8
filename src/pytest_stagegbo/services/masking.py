"""Removes secrets from text that people will read: log lines, answers, a command's standard error."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HIDDEN", "Masker", "mask"]

HIDDEN = "***"
SHORTEST = 6
"""Characters of the shortest secret that is looked for; shorter ones would eat ordinary words."""

_NAMES = (
    r"(?:pass(?:word|wd|phrase)?|pwd|secret(?:[ _-]?(?:access[ _-]?)?key)?|token|(?:api|private)[ _-]?key"
    r"|access[ _-]?key(?:[ _-]?id)?|(?:unseal|recovery)[ _-]?keys?(?:[ _-]?(?:b64|hex))?(?: \d+)?|credentials?)"
)
_VALUE = r"(?:\\?\"[^\"\r\n]*\"|'[^'\r\n]*'|\[[^\]]*\]|[^\s,;&}\"'\[][^\s,;&}]*)"


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    """What secrets look like, each with what takes its place. Compiling them takes 4 ms, and most processes mask
    nothing."""
    return (
        (
            re.compile(
                r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----).*?(-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)", re.S
            ),
            rf"\1{HIDDEN}\2",
        ),
        # Headers; the rest of the line, since schemes and their parameters differ.
        (re.compile(r"(?i)\b((?:proxy-)?authorization[\"']?\s*[:=]\s*)[^\r\n]+"), rf"\1{HIDDEN}"),
        (
            re.compile(r"(?i)\b(x-(?:vault-token|api-key|auth-token|amz-security-token)[\"']?\s*[:=]\s*)[^\s,;]+"),
            rf"\1{HIDDEN}",
        ),
        (re.compile(r"(?i)\b(bearer\s+)[\w.~+/-]{8,}=*"), rf"\1{HIDDEN}"),
        # scheme://user:secret@host. The secret may itself hold an @ that nobody escaped.
        (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,20}://[^\s:/@]{0,100}:)[^\s/]+@"), rf"\1{HIDDEN}@"),
        # name = value, name: value, "name": "value", --name=value, NAME='value'
        (re.compile(rf"(?i)({_NAMES}\\?[\"']?\s*(?:=>?|:)\s*){_VALUE}"), rf"\1{HIDDEN}"),
        # --password value; PASSWORD 'value' in SQL; requirepass value in Valkey's configuration
        (re.compile(rf"(?i)(--?{_NAMES}\s+)[^\s-]\S*"), rf"\1{HIDDEN}"),
        (re.compile(r"(?i)\b(password\s+)'[^'\r\n]*'"), rf"\1{HIDDEN}"),
        (re.compile(r"(?i)\b((?:requirepass|masterauth|primaryauth)\s+)\S+"), rf"\1{HIDDEN}"),
        (re.compile(r"\bSCRAM-SHA-256\$\S+"), f"SCRAM-SHA-256${HIDDEN}"),
        # Vault's and OpenBao's tokens, in their new and their old form
        (re.compile(r"\bhv[sbr]\.[\w-]{8,}"), HIDDEN),
        (re.compile(r"(?<![\w.])[sbr]\.[A-Za-z0-9]{24}(?![A-Za-z0-9])"), HIDDEN),
        # AWS: ids, signatures
        (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), HIDDEN),
        (re.compile(r"(?i)\b((?:X-Amz-)?(?:Signature|Security-Token)=)[\w%./+-]+"), rf"\1{HIDDEN}"),
        # What keys look like when they stand alone: 40 characters of base64 (AWS) or 44 (an unseal key), with letters
        # of both cases and digits; an unseal key in hexadecimal.
        (
            re.compile(
                r"(?<![\w+/=-])(?=[A-Za-z+/]*\d)(?=[a-z0-9+/]*[A-Z])(?=[A-Z0-9+/]*[a-z])"
                r"(?:[\w+/-]{40}|[\w+/-]{44}|[\w+/-]{43}=)(?![\w+/=-])"
            ),
            HIDDEN,
        ),
        (re.compile(r"(?<!\w)[0-9a-f]{66}(?!\w)"), HIDDEN),
    )


def mask(text: str) -> str:
    """Return `text` with everything that looks like a secret replaced by `***`."""
    for pattern, replacement in _patterns():
        text = pattern.sub(replacement, text)
    return text


class Masker:
    """Replaces secrets that are known, wherever they stand, and then what `mask` finds by its shape.

    Secrets of fewer than six characters are passed over. Holds them privately: not in its `repr`, not picklable.
    """

    __slots__ = ("_known", "_pattern")

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None
        self.add(*secrets)

    def add(self, *secrets: str) -> None:
        known = self._known.union(secret.strip() for secret in secrets if len(secret.strip()) >= SHORTEST)
        # Longest first: one secret may begin with another.
        ordered = sorted(known, key=lambda secret: (-len(secret), secret))
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._known = known

    def mask(self, text: str) -> str:
        return mask(self._pattern.sub(HIDDEN, text) if self._pattern else text)

    def __repr__(self) -> str:
        return f"Masker({len(self._known)} secrets)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Masker holds secrets and is not pickled")
