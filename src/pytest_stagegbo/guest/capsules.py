"""Shell scripts that keep what a failed test left in a clone, beside the data and sharing blocks with it.

The part that a clone has of a capsule is a folder, named as the capsule is, beside the clone's first folder with state:
a copy of each such folder, by number, and texts. Whatever else is there is of a run that was killed.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.guest.keeping import BASELINES, BUILD, GOLDEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.settings import ContainerSettings

__all__ = [
    "begin_script",
    "drop_script",
    "finish_script",
    "folders_of",
    "keep_script",
    "put_back_script",
    "sweep_script",
    "text_path",
]

CAPSULES = ".stagegbo-capsules"
"""What is behind the name of a container's first folder for the folder with all its parts."""


REFERENCE = ".stagegbo-reference"
"""What is behind the name of a database's folder, in an opened capsule, for what was its clean state: see `diff`."""


def folders_of(container: ContainerSettings) -> tuple[str, ...]:
    """The folders that hold a container's state; none: nothing is kept of it."""
    found = dict.fromkeys(path.rstrip("/") for path in (container.data, *container.wipe, *container.state) if path)
    return tuple(path for path in found if not any(path.startswith(f"{other}/") for other in found))


def _place(container: ContainerSettings) -> str:
    return folders_of(container)[0] + CAPSULES


def text_path(container: ContainerSettings, key: str, name: str) -> str:
    """Where a text of a part is."""
    return f"{_place(container)}/{key}/{name}"


def _loop(container: ContainerSettings, body: str) -> str:
    """Shell that runs `body` for each `$folder`, whose `$number` it has in a part."""
    folders = " ".join(map(shlex.quote, folders_of(container)))
    return f"""number=0
for folder in {folders}; do
{body}
    number=$((number + 1))
done
"""


def _sweep(names: str) -> str:
    """Shell that deletes parts. From its renaming on, one is no part any more; deleting it is nobody's to wait for."""
    return f"""for part in {names}; do
    case $part in ????????) [ ! -d "$part" ] || mv "$part" ".gone-$part-$$" ;; esac
done
(rm -rf .gone-*) </dev/null >/dev/null 2>&1 &
"""


def begin_script(container: ContainerSettings, key: str, known: Iterable[str]) -> str:
    """POSIX shell that makes the place for a new part, and deletes parts of capsules that are not known."""
    place = shlex.quote(_place(container))
    return f"set -eu\n[ -d {place} ] || mkdir -m 700 {place}\n{sweep_script(container, known)}mkdir -m 700 {key}\n"


def sweep_script(container: ContainerSettings, known: Iterable[str]) -> str:
    """POSIX shell that deletes parts of capsules that are not known."""
    return f"""cd {shlex.quote(_place(container))} 2>/dev/null || exit 0
left=
for part in *; do
    case " {" ".join(known)} " in *" $part "*) ;; *) left="$left $part" ;; esac
done
{_sweep("$left")}"""


def keep_script(container: ContainerSettings, key: str) -> str:
    """POSIX shell that copies the folders, while nothing writes to them. It fails where blocks can't be shared. A
    folder that the test has removed is left out."""
    body = '    [ ! -d "$folder" ] || cp -a --reflink=always "$(readlink -f "$folder")" $number'
    return f"set -eu\ncd {shlex.quote(_place(container))}/{key}\n{_loop(container, body)}"


def finish_script(container: ContainerSettings, key: str, texts: Mapping[str, str]) -> str:
    """POSIX shell that adds texts to a part, and prints how many bytes it has."""
    written = "".join(f"printf %s {shlex.quote(text)} >{shlex.quote(name)}\n" for name, text in texts.items())
    return f"set -eu\ncd {shlex.quote(_place(container))}/{key}\n{written}du -s -B1 . | cut -f 1\n"


def drop_script(container: ContainerSettings, keys: Iterable[str]) -> str:
    """POSIX shell that deletes parts. One that is gone is fine."""
    return f"cd {shlex.quote(_place(container))} 2>/dev/null || exit 0\n{_sweep(' '.join(keys))}"


def put_back_script(container: ContainerSettings, key: str) -> str:
    """POSIX shell that gives the folders of a copy of the clone what a part has of them. It may be repeated. Resets of
    a database go to that state, too."""
    kept = ""
    if container.data:
        data = shlex.quote(container.data.rstrip("/"))
        golden = data + GOLDEN
        kept = f"""if [ ! -d {data}{REFERENCE} ]; then
    for clean in {data}{BUILD} {golden}; do
        [ ! -d "$clean" ] || {{ mv "$clean" {data}{REFERENCE}; break; }}
    done
fi
rm -rf {golden} {golden}.clean {data}{BUILD} {data}{BUILD}.clean {data}.stagegbo-next {data}.stagegbo-spare \\
    {data}.stagegbo-spare.new {data}{BASELINES}
cp -a --reflink=always {data} {golden}
"""
    body = """    if [ -d "$part/$number" ]; then
        mkdir -p "$folder"
        real=$(readlink -f "$folder")
        find "$real/" -mindepth 1 -delete
        cp -a --reflink=always "$part/$number/." "$real/"
    else
        rm -rf "$folder"
    fi"""
    return f"""set -eu
part={shlex.quote(_place(container))}/{key}
[ -d "$part" ] || {{ echo "nothing is kept in $part"; exit 1; }}
{_loop(container, body)}{kept}"""
