"""POSIX shell that clears folders and proves it, shared by the first boot and by resets."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.guest import removal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MOUNTS", "clear_files", "empty_folders", "functions", "note_mounts", "truncate_files"]

MOUNTS = "/run/stagegbo-mounts"
"""POSIX shell of one line, where something is mounted below a folder to wipe: sets the arguments of the shell to tests
of find that leave it out."""
QUICK = 0.1
"""Seconds of deleting after which folders are moved aside instead."""


def functions(report: str = "", *, many: bool = False) -> str:
    """Shell functions `empty`, `clear_files` and `truncate_files`, which say what they did.

    They never enter what is mounted below a folder: a bind mount has the file system of the folder itself, so `-xdev`
    would not see it, and emptying it empties somebody else's folder. A folder that is itself a mount point is cleared.
    `find` gets each folder by its real path, so that one reached through a link is cleared too. What can't be deleted,
    or is no folder, ends the script with status 1.

    Args:
        report: A file that gets the lines, at the first boot; empty: standard output, for a reset.
        many: For a reset: there are so many files that it is not tried first how long their deletion takes.
    """
    to_report = f" >>{shlex.quote(report)}" if report else ""
    return f"""say() {{ printf '%s\\n' "$1"{to_report}; }}

is_there() {{
    [ -e "$1" ] || {{ say "absent $1"; return 1; }}
    [ -d "$1" ] || {{ echo "not a folder: $1" >&2; exit 1; }}
}}

{removal.functions()}
{_mounts_of_boot() if not report else _mounts()}
search() {{ # FOLDER TEST...: find below a folder, without the mounts that `mounts_below` found
    real=$1
    shift
    tests=$#
    while read -r at; do
        [ -z "$at" ] || set -- "$@" -path "$at" -prune -o
    done <<END_OF_MOUNTS
$mounts
END_OF_MOUNTS
    while [ "$tests" -gt 0 ]; do # the tests go behind the mounts
        set -- "$@" "$1"
        shift
        tests=$((tests - 1))
    done
    find "$real/" -mindepth 1 "$@"
}}

nothing_left() {{ # FOLDER TEST...
    left=$(search "$@" -print -quit)
    [ -z "$left" ] || {{ echo "still there: $left" >&2; exit 1; }}
}}

say_mounts() {{
    while read -r at; do
        [ -z "$at" ] || say "not entered, since it is a mount: $(printf %s "$at" | sed 's/\\\\\\(.\\)/\\1/g')"
    done <<END_OF_MOUNTS
$mounts
END_OF_MOUNTS
}}

empty() {{
    is_there "$1" || return 0
    folder=$(readlink -f "$1")
    mounts_below "$folder"
    if [ -z "$mounts" ]; then
        {_delete(quick=not report, many=many)}
        nothing_left "$folder"
    else # -delete goes depth first, which -prune does not work with
        search "$folder" ! -type d -exec rm -f -- {{}} +
        search "$folder" -type d -print0 | sort -rz | xargs -0r rmdir --ignore-fail-on-non-empty --
        nothing_left "$folder" ! -type d
    fi
    say_mounts
    say "emptied $1"
}}

clear_files() {{
    is_there "$1" || return 0
    folder=$(readlink -f "$1")
    mounts_below "$folder"
    if [ -z "$mounts" ]; then
        find "$folder/" -mindepth 1 ! -type d -delete
    else
        search "$folder" ! -type d -exec rm -f -- {{}} +
    fi
    nothing_left "$folder" ! -type d
    say_mounts
    say "cleared $1"
}}

note_mounts() {{ # FOLDER
    folder=$(readlink -f "$1") || return 0
    mounts_below "$folder"
    while read -r at; do
        [ -n "$at" ] || continue
        printf '%s\\n' "$at" >>{MOUNTS}.list
        [ -e {MOUNTS} ] || printf 'set --' >{MOUNTS}
        at=$1${{at#"$folder"}} tests=-prune
        while [ "$at" != "$1" ]; do # the folders around it stay, and are looked into
            printf " -path '%s' $tests -o" "$(printf %s "$at" | sed "s/'/'\\\\\\\\''/g")" >>{MOUNTS}
            at=${{at%/*}} tests=
        done
    done <<END_OF_MOUNTS
$mounts
END_OF_MOUNTS
}}

truncate_files() {{ # files stay with owners and modes, since a service may not be able to make them; journals go
    is_there "$1" || return 0
    folder=$(readlink -f "$1")
    mounts_below "$folder"
    search "$folder" -path '*/journal/*' ! -type d -exec rm -f -- {{}} +
    search "$folder" -type f -size +0 -exec truncate -s 0 -- {{}} +
    nothing_left "$folder" -type f -size +0
    say_mounts
    say "truncated $1"
}}
"""


def _delete(*, quick: bool, many: bool) -> str:
    """Shell commands that delete everything below `$folder`, which is the folder `$1`.

    Args:
        quick: Very many files may be deleted after this. Not at the first boot: what proves that production's data is
            gone must not come before it is.
        many: They are there for certain.
    """
    if quick and many:
        return 'move_aside "$1"; find "$folder/" -mindepth 1 -delete'
    if not quick:
        return 'find "$folder/" -mindepth 1 -delete'
    return f"""status=0
        timeout {QUICK} find "$folder/" -mindepth 1 -delete 2>/dev/null || status=$?
        [ "$status" != 124 ] || move_aside "$1"
        [ "$status" = 0 ] || find "$folder/" -mindepth 1 -delete"""


def _mounts() -> str:
    """Return shell commands that list what is mounted now. At a boot, the container's own `fstab` has mounted it."""
    return """mounts_below() { # FOLDER, a real path: sets `mounts`, a line each, as find's -path takes them
    mounts=
    while read -r _ _ _ _ at _; do
        case $at in
        "$1"/?*) mounts="$mounts$(printf %b "$(printf %s "$at" | sed 's/\\\\\\([0-7]\\{3\\}\\)/\\\\0\\1/g')" |
            sed 's/[][*?\\\\]/\\\\&/g')
" ;;
        esac
    done </proc/self/mountinfo
}
"""


def _mounts_of_boot() -> str:
    """Return shell commands that list what was mounted at the boot. Mounts that a test has made are cleared."""
    return f"""mounts_below() {{ # as at the first boot
    mounts=
    [ -e {MOUNTS}.list ] || return 0
    while read -r at; do
        case $at in "$1"/?*) mounts="$mounts$at
" ;; esac
    done <{MOUNTS}.list
}}
"""


def note_mounts(paths: Iterable[str]) -> str:
    """Return calls that write `MOUNTS` at each boot. Resets read that file, which is quicker than reading the
    mounts."""
    return "".join(f"note_mounts {shlex.quote(path)}\n" for path in paths)


def empty_folders(paths: Iterable[str]) -> str:
    """Return calls that remove everything below each folder, hidden files included."""
    return "".join(f"empty {shlex.quote(path)}\n" for path in paths)


def clear_files(paths: Iterable[str]) -> str:
    """Return calls that remove every file below each folder, and keep the folders with their owners and modes."""
    return "".join(f"clear_files {shlex.quote(path)}\n" for path in paths)


def truncate_files(paths: Iterable[str]) -> str:
    """Return calls that empty every file below each folder and keep their owners and modes. Journals are removed."""
    return "".join(f"truncate_files {shlex.quote(path)}\n" for path in paths)
