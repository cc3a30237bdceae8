"""Shell scripts that keep folders of a clone under a name, list what is kept, put it back and delete it.

What is kept of a container for one baseline is a folder beside its first folder: a copy of each folder, which shares
blocks with it, and a file that says what it is. The folder's name ends with `.new` until all containers have their
part. A baseline is there from the moment on in which the first container's part gets its final name.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.guest.keeping import BASELINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_stagegbo.settings import ContainerSettings

__all__ = [
    "NEW",
    "about_script",
    "begin_script",
    "commit_script",
    "describe_script",
    "drop_script",
    "folders_of",
    "keep_script",
    "list_script",
    "pack_script",
    "put_back",
    "unpack_script",
]

NEW = ".new"
"""What is behind a part's name until all parts are there."""
_LISTING = r"\( -type d -printf '%y %m %U %G %T@ %P\0' \) -o -printf '%y %m %U %G %s %T@ %l %P\0'"


def folders_of(container: ContainerSettings) -> tuple[str, ...]:
    """The folders that hold a container's state; none: it has none that resets know of."""
    return (container.data.rstrip("/"),) if container.data else container.wipe


def _place(folders: Sequence[str]) -> str:
    return shlex.quote(folders[0] + BASELINES)


def _quoted(folders: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, folders))


def begin_script(folders: Sequence[str], key: str) -> str:
    """POSIX shell that makes the place for a new part, once nothing works behind the last reset any more."""
    return f"""set -eu
exec 9>/run/stagegbo-reset
if command -v flock >/dev/null; then flock 9; fi
for folder in {_quoted(folders)}; do
    [ -d "$folder" ] || {{ echo "$folder is not a folder"; exit 1; }}
done
[ -d {_place(folders)} ] || mkdir -m 711 {_place(folders)}
rm -rf {_place(folders)}/{key}{NEW}
mkdir -m 711 {_place(folders)}/{key}{NEW}
"""


def keep_script(folders: Sequence[str], key: str) -> str:
    """POSIX shell that copies the folders, while nothing writes to them. It fails where blocks can't be shared."""
    return f"""set -eu
number=0
for folder in {_quoted(folders)}; do
    cp -a --reflink=always "$(readlink -f "$folder")" {_place(folders)}/{key}{NEW}/$number
    number=$((number + 1))
done
"""


def describe_script(folders: Sequence[str], key: str, about: str) -> str:
    """POSIX shell that writes down what the files of a part are like, and what it is."""
    return f"""set -eu
{_FUNCTIONS}
cd {_place(folders)}/{key}{NEW}
number=0
for folder in {_quoted(folders)}; do
    list $number
    number=$((number + 1))
done | sha256sum >files
{about_script(folders, key, about)}"""


def about_script(folders: Sequence[str], key: str, about: str) -> str:
    """POSIX shell that writes down what a part is."""
    return f"printf '%s\\n' {shlex.quote(about)} >{_place(folders)}/{key}{NEW}/about\n"


_FUNCTIONS = f"""list() {{ (cd "$1" && find . {_LISTING} | LC_ALL=C sort -z); }}
"""


def pack_script(folders: Sequence[str], key: str) -> str:
    """POSIX shell that prints what is kept in a part as an archive: the same bytes each time."""
    options = "--format=posix --pax-option=delete=atime,delete=ctime --sort=name --numeric-owner --xattrs"
    names = " ".join(map(str, range(len(folders))))
    return f"""set -eu
cd {_place(folders)}
part={key}
[ -d "$part" ] || part={key}{NEW}
cd "$part"
set -- {names} files
[ ! -e 0.clean ] || set -- "$@" 0.clean
tar {options} -cf - -- "$@"
"""


def unpack_script(folders: Sequence[str], key: str, size: int) -> str:
    """POSIX shell that makes a new part of an archive of so many bytes on its standard input, and compares its files
    with the list that came with them."""
    return f"""set -eu
{_FUNCTIONS}
{{
cd {_place(folders)}/{key}{NEW}
head -c {size} | tar --xattrs --numeric-owner -xpf -
number=0
for folder in {_quoted(folders)}; do
    list $number
    number=$((number + 1))
done | sha256sum | cmp -s - files
}} || {{ echo "what came is not what was kept"; exit 1; }}
"""


def commit_script(folders: Sequence[str], key: str) -> str:
    """POSIX shell that gives a part its final name."""
    return f"""cd {_place(folders)} && {{ [ -d {key} ] || mv {key}{NEW} {key}; }}\n"""


def list_script(folders: Sequence[str], *, sizes: bool) -> str:
    """POSIX shell that prints a line for each part: its folder, its bytes and what `describe_script` was given.

    Args:
        sizes: Count bytes, which takes as long as going through all files. Else they are 0.
    """
    size = '$(du -s -B1 "$part" | cut -f 1)' if sizes else "0"
    return f"""cd {_place(folders)} 2>/dev/null || exit 0
for part in *; do
    [ -d "$part" ] || continue
    about=
    [ ! -e "$part/about" ] || IFS= read -r about <"$part/about" || true
    printf '%s\\t%s\\t%s\\n' "$part" "{size}" "$about"
done
"""


def drop_script(folders: Sequence[str], names: Iterable[str]) -> str:
    """POSIX shell that deletes parts by the names of their folders. One that is gone is fine."""
    return f"""cd {_place(folders)} 2>/dev/null || exit 0
for part in {_quoted(names)}; do # from the first rename on, it is no part any more
    [ ! -d "$part" ] || mv "$part" ".gone-$part"
done
rm -rf .gone-*
"""


def put_back(folders: Sequence[str], key: str) -> str:
    """Shell commands for a script that has just emptied the folders: they get what was kept of them, and that is
    compared with what was noted when it was kept."""
    return f"""{_FUNCTIONS}
part={_place(folders)}/{key}
[ -d "$part" ] || part=$part{NEW}
[ -e "$part/files" ] || {{ echo "baseline: nothing is kept in $part" >&2; exit 1; }}
number=0
for folder in {_quoted(folders)}; do
    cp -a --reflink=always "$part/$number/." "$(readlink -f "$folder")/"
    number=$((number + 1))
done
for folder in {_quoted(folders)}; do list "$(readlink -f "$folder")"; done | sha256sum | cmp -s - "$part/files" ||
    {{ echo "baseline: the files are not those that were kept" >&2; exit 1; }}
"""
