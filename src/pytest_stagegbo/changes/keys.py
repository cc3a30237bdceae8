"""What is in Valkey that was not there when it was empty: keys by pattern and type. Values are never read."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from pytest_stagegbo.changes.records import ContainerChanges, KeyChange
from pytest_stagegbo.resets.valkey import connected, key_counts, keys_in
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.services.resp import Resp

__all__ = ["pattern_of", "read_keys"]

SECONDS = 5.0
"""For the whole conversation."""
MOST_KEYS = 2000
"""Whose types are asked for, in all databases together. More are counted without a pattern."""
_MAIL = r"[^\s:/|@]+@[^\s:/|@]+"
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_HEXADECIMAL = r"(?<![0-9A-Za-z])(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}(?![0-9A-Za-z])"
_TOKEN = r"(?<![\w-])(?=[A-Za-z_-]*\d)[\w-]{20,}(?![\w-])"
_VARIABLE = re.compile(f"{_MAIL}|{_UUID}|{_HEXADECIMAL}|{_TOKEN}|\\d+", re.ASCII)


def pattern_of(key: bytes) -> str:
    """A key's name with `*` for what names a single user, session or message: `session:*:cart`."""
    text = mask(key.decode("utf-8", "backslashreplace"))
    return re.sub(r"\*{2,}", "*", _VARIABLE.sub("*", text))


def read_keys(target: ResetTarget) -> ContainerChanges:
    """Raises `NoAnswer` and `NeedsRestart`: the server does not answer, or lets nobody in."""
    with connected(target, ("INFO", "keyspace"), seconds=SECONDS) as (valkey, (said,)):
        counts = key_counts(said)
        left = MOST_KEYS
        changes: list[KeyChange] = []
        for database, count in counts.items():
            seen = _patterns(valkey, database, left) if left else Counter[tuple[str, str]]()
            left = max(0, left - seen.total())
            whole = seen.total() >= count
            changes += [
                KeyChange(database, pattern, kind, number, whole) for (pattern, kind), number in seen.most_common()
            ]
            if not whole:
                changes.append(KeyChange(database, "*", "any", count - seen.total()))
    return ContainerChanges(target.name, keys=tuple(changes))


def _patterns(valkey: Resp, database: int, most: int) -> Counter[tuple[str, str]]:
    """How many keys of a database have which pattern and type; not of all keys if there are more than `most`."""
    keys: set[bytes] = set()
    for names in keys_in(valkey, database):
        keys.update(names)
        if len(keys) >= most:
            break
    chosen = sorted(keys)[:most]
    kinds = valkey.ask(*(("TYPE", key) for key in chosen)) if chosen else []
    return Counter(
        (pattern_of(key), kind.decode())
        for key, kind in zip(chosen, kinds, strict=True)
        if isinstance(kind, bytes) and kind != b"none"
    )
