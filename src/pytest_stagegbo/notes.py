"""Small files that processes of this package leave for each other: UTF-8, whatever a process's locale is.

Their texts may name tests, and files of tests, whose names need not be UTF-8. Such characters are written as escapes:
the names are only for people. Nothing that is found in a file makes reading it fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read", "rewrite", "write"]


def read(path: Path) -> str:
    """The text of a note; also of one whose writer was killed in the middle of a character. Raises `OSError`."""
    return path.read_text(encoding="utf-8", errors="replace")


def write(path: Path, text: str) -> None:
    """Make a note, in place of the one that is there."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def rewrite(path: Path, text: str) -> None:
    """As `write`, without making the file empty first: ext4 takes that for a replacement that must be on the disk
    when the file is closed (`auto_da_alloc`), which takes ten times as long."""
    try:
        with path.open("r+", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.truncate()
    except FileNotFoundError:
        write(path, text)
