"""POSIX shell that clears folders and proves it, shared by the first boot and by resets."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["clear_files", "empty_folders", "functions"]


def functions(report: str = "") -> str:
    """Shell functions `empty` and `clear_files`, which say what they did: in the file `report`, or as output.

    `find` gets each folder with a trailing slash, so that one reached through a link is cleared too. What can't be
    deleted, or is no folder, ends the script with status 1.
    """
    to_report = f" >>{shlex.quote(report)}" if report else ""
    return f"""say() {{ printf '%s\\n' "$1"{to_report}; }}

is_there() {{
    [ -e "$1" ] || {{ say "absent $1"; return 1; }}
    [ -d "$1" ] || {{ echo "not a folder: $1" >&2; exit 1; }}
}}

empty() {{
    is_there "$1" || return 0
    find "$1/" -mindepth 1 -delete
    left=$(find "$1/" -mindepth 1 -print -quit)
    [ -z "$left" ] || {{ echo "still there: $left" >&2; exit 1; }}
    say "emptied $1"
}}

clear_files() {{
    is_there "$1" || return 0
    find "$1/" -mindepth 1 ! -type d -delete
    left=$(find "$1/" -mindepth 1 ! -type d -print -quit)
    [ -z "$left" ] || {{ echo "still there: $left" >&2; exit 1; }}
    say "cleared $1"
}}
"""


def empty_folders(paths: Iterable[str]) -> str:
    """Calls that remove everything below each folder, dot files included."""
    return "".join(f"empty {shlex.quote(path)}\n" for path in paths)


def clear_files(paths: Iterable[str]) -> str:
    """Calls that remove every file below each folder and keep the folders, their owners and modes."""
    return "".join(f"clear_files {shlex.quote(path)}\n" for path in paths)
