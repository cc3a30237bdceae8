"""Shell scripts that inspect, receive and swap the files of a build in a running clone.

Beside a file that is replaced lie, hidden, the one that is being received (`new`), the one from before the deployment
that is under way (`before`), and production's (`production`). All are in the file's own folder, so that one rename puts
each in its place, and a running program keeps the file that it was started from.
"""

from __future__ import annotations

import posixpath
import shlex
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Found",
    "Inspection",
    "discard_script",
    "inspect_script",
    "parse_inspection",
    "put_back_script",
    "receive_script",
    "swap_script",
]

Kept = Literal["new", "before", "production"]


class Found(Struct, frozen=True):
    """The file, or whatever else, at a path in a clone."""

    path: str
    real: str
    """Where links lead."""
    kind: str
    """`file`, `absent`: there is its folder only, `nowhere`: not even that, or `other`: a folder, a device."""
    state: str = ""
    """Inode, size and time of change of a file."""


class Inspection(Struct, frozen=True):
    """What a deployment has to know about a clone: its files, its units and its room."""

    files: tuple[Found, ...]
    units: tuple[str, ...]
    """That are there."""
    users: tuple[tuple[str, tuple[str, ...]], ...]
    """By path, the units that run it: it is a word of their commands, or one of their processes executes it."""

    def units_of(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The units that have to be stopped and started for these paths, in their order: all, where a file is none
        that a unit runs, since who reads it can't be told."""
        users, wanted = dict(self.users), set()
        for path in paths:
            wanted |= set(users[path] or self.units)
        return tuple(unit for unit in self.units if unit in wanted)


def inspect_script(paths: Sequence[str], units: Sequence[str]) -> str:
    """POSIX shell that prints what `parse_inspection` reads."""
    return f"""export LC_ALL=C SYSTEMD_COLORS=0
for path in {_quoted(paths)}; do
    real=$(readlink -f -- "$path") || real=
    if [ -z "$real" ]; then kind=nowhere
    elif [ -f "$real" ]; then kind=file
    elif [ -e "$real" ]; then kind=other
    elif [ -d "${{real%/*}}/" ]; then kind=absent
    else kind=nowhere; fi
    printf 'file\t%s\t%s\t%s\t%s\n' "$path" "$real" "$kind" "$(stat -c '%i %s %Y' -- "$real" 2>/dev/null)"
    [ $kind != file ] || find -L /proc/[0-9]*/exe -maxdepth 0 -samefile "$real" 2>/dev/null |
        while IFS= read -r program; do
            while IFS= read -r group; do
                printf 'runs\t%s\t%s\n' "$path" "${{group##*/}}"
            done <"${{program%/exe}}/cgroup"
        done 2>/dev/null
done
systemctl show --no-pager -p Id -p LoadState -p ExecStart -p ExecStartPre -p ExecStartPost -- {_quoted(units)} |
    sed 's/^/unit\t/'
"""


def parse_inspection(text: str, paths: Sequence[str]) -> Inspection:
    """What `inspect_script` printed. Pure. Raises `ValueError`."""
    files: dict[str, Found] = {}
    runs: dict[str, set[str]] = {path: set() for path in paths}
    blocks: list[dict[str, set[str]]] = [{}]
    """The words of the properties of each unit."""
    for line in text.splitlines():
        word, _, rest = line.partition("\t")
        if word == "file":
            path, real, kind, state = rest.split("\t")
            files[path] = Found(path, real, kind, state)
        elif word == "runs":
            path, unit = rest.split("\t")
            runs[path].add(unit)
        elif word == "unit" and rest:
            key, _, value = rest.partition("=")
            blocks[-1].setdefault("Exec" if key.startswith("Exec") else key, set()).update(value.split())
        elif word == "unit":
            blocks.append({})
    if set(files) != set(paths):
        raise ValueError(f"no word about {', '.join(sorted(set(paths) - set(files)))}")
    loaded = {
        unit: block.get("Exec", set())
        for block in blocks
        if "loaded" in block.get("LoadState", ())
        for unit in block["Id"]
    }
    users = []
    for path, found in files.items():
        named = {f"{prefix}{each}" for each in (path, found.real) for prefix in ("", "path=", "argv[]=") if each}
        users.append((path, tuple(unit for unit, words in loaded.items() if unit in runs[path] or named & words)))
    return Inspection(tuple(files[path] for path in paths), tuple(loaded), tuple(users))


def receive_script(real: str, size: int) -> str:
    """POSIX shell that takes a file of `size` bytes from its standard input, beside the one that it will replace, with
    that one's owner, mode and attributes, and prints its SHA-256. Status 3: it could not be written.

    What is left of the input is read: the daemon would wait for ever with it.
    """
    new, old = shlex.quote(_kept(real, "new")), shlex.quote(real)
    return f"""set -eu
rm -f {new}
umask 077
if ! {{ head -c {size} >{new}; }}; then echo "the file could not be written"; rm -f {new}; cat >/dev/null; exit 3; fi
[ "$(stat -c %s {new})" = {size} ] || {{ rm -f {new}; echo "the stream ended early"; exit 3; }}
if [ -e {old} ]; then
    cp --attributes-only --preserve=mode,ownership,xattr {old} {new}
else
    chown --reference={shlex.quote(posixpath.dirname(real))} {new}
    chmod 755 {new}
fi
sha256sum <{new}
"""


def swap_script(reals: Iterable[str]) -> str:
    """POSIX shell that puts received files in their places, and keeps those that were there."""
    lines = [_FUNCTIONS]
    for real in reals:
        path, new, before, production = _names(real)
        lines.append(f"keep {path} {production}\nkeep {path} {before}\nmv -f {new} {path}")
    return "\n".join(lines)


def put_back_script(reals: Iterable[str], kept: Literal["before", "production"]) -> str:
    """POSIX shell that puts the files that were kept back in their places. May be repeated."""
    lines = [_FUNCTIONS]
    for real in reals:
        path, new, before, production = _names(real)
        lines.append(f"put_back {path} {before if kept == 'before' else production}\nrm -f {new}")
    return "\n".join(lines)


def discard_script(reals: Iterable[str], kept: Sequence[Kept]) -> str:
    """POSIX shell that removes what is kept beside files. May be repeated."""
    names = [shlex.quote(f"{_kept(real, each)}{end}") for real in reals for each in kept for end in ("", "-absent")]
    return f"rm -f {' '.join(names)}\n" if names else ":\n"


_FUNCTIONS = """set -eu
keep() { # FILE KEPT: keep it, or that there is none
    if [ -e "$2" ] || [ -e "$2-absent" ]; then return 0; fi
    if [ -e "$1" ]; then ln "$1" "$2"; else : >"$2-absent"; fi
}
put_back() { # FILE KEPT
    if [ -e "$2" ]; then
        if [ "$2" -ef "$1" ]; then rm -f "$2"; else mv -f "$2" "$1"; fi
    elif [ -e "$2-absent" ]; then
        rm -f "$1"
        rm -f "$2-absent"
    fi
}"""


def _names(real: str) -> tuple[str, str, str, str]:
    new, before, production = (shlex.quote(_kept(real, each)) for each in ("new", "before", "production"))
    return shlex.quote(real), new, before, production


def _kept(real: str, kept: str) -> str:
    folder, name = posixpath.split(real)
    return posixpath.join(folder, f".stagegbo-{name}.{kept}")


def _quoted(words: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, words))
