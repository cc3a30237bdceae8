"""POSIX shell that clears a folder of very many files at once, and deletes them later.

Deleting 50,000 files takes a second, renaming the folders that they are in takes none. So these are moved to a folder
beside the one that is cleared, which nobody but root can look into, and deleted in the background. How much waits
there is limited: what was moved aside before is deleted first, and more than `MOST_KIB` is deleted at once. Whatever
can't be moved, for want of room or since a file system ends there, is left for whoever calls this to delete.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.incus.channel import MARK

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ASIDE", "delete_aside", "functions"]

ASIDE = ".stagegbo-wiped"
"""What is behind the name of the folder for what was moved aside."""
MOST_KIB = 256 * 1024
"""On the disk, of what is deleted in the background: it must not be what a disk limit or the disk guard meets."""


def functions() -> str:
    """A shell function `move_aside FOLDER [TEST...]`: folders that the tests of find name stay, and files do."""
    return f"""move_aside() {{
    [ -d "$1" ] && [ ! -L "$1" ] || return 0
    aside=$1{ASIDE} at='' where=$(readlink -f "$1")
    while read -r _ _ _ _ at _; do # what is renamed out of a mount is copied instead
        case $at in *'\\'*) at=$(printf %b "$(printf %s "$at" | sed 's/\\\\\\([0-7]\\{{3\\}}\\)/\\\\0\\1/g')") ;; esac
        [ "$at" != "$where" ] || return 0
    done </proc/self/mountinfo
    [ "$(stat -L -c %d "$where")" = "$(stat -L -c %d "$where/..")" ] || return 0 # a subvolume has a device of its own
    rm -rf -- "$aside" 2>/dev/null || return 0
    mkdir -m 700 -- "$aside" 2>/dev/null || return 0
    below=$1/
    shift
    [ $# = 0 ] || set -- "$@" -o
    find "$below" -mindepth 1 "$@" -type d -prune -exec mv -t "$aside" -- {{}} + 2>/dev/null || true
    kib=$(du -sk -- "$aside" 2>/dev/null) || true
    kib=${{kib%%[!0-9]*}}
    [ "${{kib:-0}}" -le {MOST_KIB} ] || rm -rf -- "$aside" 2>/dev/null || true
}}
"""


def delete_aside(folders: Iterable[str], *, wait: bool = False) -> str:
    """Commands that delete what was moved aside, now or by a run that was killed.

    Args:
        wait: Until it is done: nothing runs on after this.
    """
    lines = []
    for folder in folders:
        aside = shlex.quote(folder + ASIDE)
        command = f"rm -rf -- {aside}"
        end = ";" if wait else " </dev/null >/dev/null 2>&1 &"
        lines.append(f"if [ -d {aside} ]; then {'' if wait else f'{MARK}=1 nice -n 19 '}{command}{end} fi\n")
    return "".join(lines)
