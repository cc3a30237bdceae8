"""The name of a relation that was dropped, read from a page of `pg_class` in the clean copy of its cluster. Pure.

The write-ahead log says which row of `pg_class` was deleted, by its place. In the clean copy it is still there.
"""

from __future__ import annotations

import struct

from msgspec import Struct

__all__ = ["PAGE", "Relation", "relation_at"]

PAGE = 8192
"""Bytes of a page, unless somebody has built another PostgreSQL."""
_LINE_POINTERS = 24
"""Where they begin, behind the page's header."""
_NORMAL = 1
"""A line pointer to a row."""
_HEADER = 22
"""Where a row says how long its header is."""
_NAME = slice(4, 68)
_NAMESPACE = 68
_KIND, _KIND_18 = 115, 119
"""From PostgreSQL 18 on there is another column before it."""


class Relation(Struct, frozen=True):
    name: str
    kind: str
    """As `relkind`."""
    namespace: int
    """Its OID."""


def relation_at(page: bytes, offset: int, version: int) -> Relation | None:
    """The relation that a row describes, by its number in the page, from 1; None: there is no such row.

    Args:
        version: The server's, as `server_version_num` has it.
    """
    begin = _LINE_POINTERS + 4 * (offset - 1)
    if offset < 1 or len(page) < begin + 4:
        return None
    (pointer,) = struct.unpack_from("<I", page, begin)
    start, state = pointer & 0x7FFF, pointer >> 15 & 3
    if state != _NORMAL or len(page) <= start + _HEADER:
        return None
    row = page[start + page[start + _HEADER] :]
    kind = _KIND_18 if version >= 180000 else _KIND
    if len(row) <= kind:
        return None
    name = row[_NAME].partition(b"\0")[0].decode("utf-8", "replace")
    return Relation(name, chr(row[kind]), *struct.unpack_from("<I", row, _NAMESPACE))
