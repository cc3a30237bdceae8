"""What is in a container at one moment, in folders, processes and network: shell that tells, Python that reads.

One call of the kept shell tells it all, in 2 to 3 ms: most of that is one process of `find` and one of `cat`.
"""

from __future__ import annotations

import shlex
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.guest import removal
from pytest_stagegbo.guest.clearing import MOUNTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "CONNECTIONS",
    "Connection",
    "Entry",
    "Inspection",
    "Process",
    "entries_script",
    "inspect_script",
    "main_processes_script",
    "parse_connections",
    "parse_counters",
    "parse_entries",
    "parse_inspection",
    "parse_main_processes",
    "parse_process",
    "remove_script",
    "written_script",
]

NOTES = "/run/stagegbo"
"""Gone when the container ends, like the processes that the notes speak of."""
_FORMAT = r"%D:%i %y %U %s %C@ %T@ %p\0"
_LEAVE_OUT_MOUNTS = f"set --\n[ ! -e {MOUNTS} ] || . {MOUNTS}\n"
_SEPARATOR = b"\n=\n"
"""A line that begins neither like a process, nor like a note, nor like a counter."""
_ESTABLISHED = "01"
_MOST_PATHS = 500
"""Arguments of one command: the kernel limits their bytes."""
CONNECTIONS = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true\n"
"""POSIX shell that tells what `parse_connections` reads. Slow: the kernel goes through its whole table for it."""


class Entry(Struct, frozen=True):
    """A file, a folder or anything else below a folder, or that folder itself."""

    place: str
    """Device and inode."""
    kind: str
    """`f`, `d`, `l` and so on, as find says."""
    user: int
    size: int
    changed: str
    """When its inode or content changed last: nobody can set that but the kernel."""
    modified: str
    path: str

    @property
    def inode(self) -> str:
        return self.place.partition(":")[2]


class Process(Struct, frozen=True):
    """A running process; its start makes it another one than a later one of the same number."""

    pid: int
    started: int
    """In ticks since the host's start (proc_pid_stat(5))."""


class Connection(Struct, frozen=True):
    """One that is established."""

    own_port: int
    address: str
    """Address of the other end."""
    port: int


class Inspection(Struct, frozen=True):
    """What was seen."""

    note: str
    """What the last restart wrote down; empty when there was none since the container started."""
    processes: tuple[Process, ...]
    """Those of the note that still run."""
    accepted: int
    """Connections that were accepted since the container started, by anything in it (`PassiveOpens`)."""
    established: int
    """Connections that are open, of anything in the container, both ways (`CurrEstab`)."""
    entries: tuple[Entry, ...]
    """Every folder and what is in it."""
    complete: bool = True
    """False: there are more entries than these."""


def inspect_script(name: str, folders: Sequence[str]) -> str:
    """POSIX shell that tells what `parse_inspection` reads, and ends with it. Paths may hold any byte but NUL."""
    note = f"{NOTES}/{name}"
    find = f'exec find {_with_slash(folders)} "$@" -printf {shlex.quote(_FORMAT)}\n'
    listing = f"{_LEAVE_OUT_MOUNTS}{find}" if folders else ""
    # Few writes: each becomes a message of the daemon's websocket, which takes longer than what it tells of.
    return f"""[ ! -e {note}.pids ] || read -r pids <{note}.pids || true
stats= note={note} none=
for pid in ${{pids:-}}; do
    if read -r line 2>/dev/null </proc/$pid/stat; then stats="$stats$line
"; fi
done
[ -e $note ] || {{ note= none='
'; }}
printf '%s=\\n%s' "$stats" "$none"
cat $note /proc/net/snmp - <<'END'
=
END
{listing}"""


def parse_inspection(data: bytes, most: int | None = None) -> Inspection:
    """Raises ValueError for anything that `inspect_script` does not print.

    Args:
        most: Entries that are read beside as many as the note names. None: all.
    """
    stats, tables, listing = (b"\n" + data).split(_SEPARATOR, 2)
    note, _, rest = tables.decode().partition("\n")
    accepted, established = parse_counters(rest.splitlines())
    limit = -1 if most is None else most + note.count("[")  # each entry of a note is a list
    lines = listing.split(b"\0", limit)
    complete = not lines.pop()
    return Inspection(
        note=note,
        processes=tuple(parse_process(line) for line in stats.decode("utf-8", "replace").splitlines() if line),
        accepted=accepted,
        established=established,
        entries=tuple(map(_entry, lines)),
        complete=complete,
    )


def entries_script(paths: Iterable[str]) -> str:
    """POSIX shell that tells what `parse_entries` reads: of these paths alone, where they are there."""
    found = list(paths)
    batches = (found[begin : begin + _MOST_PATHS] for begin in range(0, len(found), _MOST_PATHS))
    shown = f"-maxdepth 0 -printf {shlex.quote(_FORMAT)}"
    return "".join(f"find {shlex.join(batch)} {shown} 2>/dev/null || true\n" for batch in batches)


def parse_entries(data: bytes) -> tuple[Entry, ...]:
    return tuple(_entry(each) for each in data.split(b"\0") if each)


def written_script(folders: Sequence[str], kept: Iterable[Entry], users: Iterable[int]) -> str:
    """POSIX shell that prints one path below the folders that one of the users owns, and that is none of `kept`."""
    owners = " -o ".join(f"-uid {user}" for user in users)
    but = _none_of(kept)
    return f"""{_LEAVE_OUT_MOUNTS}find {_with_slash(folders)} -mindepth 1 "$@" {but}\\( {owners} \\) -print -quit\n"""


def remove_script(folders: Sequence[str], kept: Iterable[Entry], *, many: bool = False) -> str:
    """POSIX shell that removes everything below the folders but `kept`; what stays says the next look.

    Args:
        many: So much that it is moved aside where that can be, and deleted in the background.
    """
    kept = list(kept)
    but = _none_of(kept)
    below = f"find {_with_slash(folders)} -mindepth 1"
    aside = removal.functions() if many else ""
    moved = "".join(f"    move_aside {shlex.quote(folder)} {_one_of(kept)}\n" for folder in folders) if many else ""
    return f"""{aside}{_LEAVE_OUT_MOUNTS}if [ $# = 0 ]; then
{moved}    {below} {but}-delete 2>&1 || true
else # -delete goes depth first, which -prune does not work with
    {below} "$@" {but}! -type d -exec rm -f -- {{}} + 2>&1 || true
    {below} "$@" {but}-type d -print0 | sort -rz | xargs -0r rmdir --ignore-fail-on-non-empty -- 2>&1 || true
fi
{removal.delete_aside(folders)}"""


def _none_of(entries: Iterable[Entry]) -> str:
    """Tests of find; empty where there are no entries."""
    found = _one_of(entries)
    return f"! {found} " if found else ""


def _one_of(entries: Iterable[Entry]) -> str:
    inodes = sorted({entry.inode for entry in entries})
    return f"\\( {' -o '.join(f'-inum {inode}' for inode in inodes)} \\)" if inodes else ""


def _with_slash(folders: Sequence[str]) -> str:
    """With a slash at the end, so that a folder that is reached through a link is looked into too."""
    return " ".join(shlex.quote(f"{folder}/") for folder in folders)


def parse_process(line: str) -> Process:
    """A line of /proc/PID/stat."""
    # The second field is the command's name in parentheses, and may hold both spaces and parentheses.
    rest = line.rpartition(")")[2].split()
    return Process(int(line.partition(" ")[0]), int(rest[19]))


def main_processes_script(units: Iterable[str]) -> str:
    """POSIX shell that tells what `parse_main_processes` reads."""
    return f"""for pid in $(systemctl show -p MainPID --value {shlex.join(units)}); do
    if [ "$pid" != 0 ] && read -r line 2>/dev/null </proc/$pid/stat; then printf '%s\\n' "$line"; fi
done"""


def parse_main_processes(data: bytes) -> tuple[Process, ...]:
    """Those of units that run."""
    return tuple(parse_process(line) for line in data.decode("utf-8", "replace").splitlines() if line)


def _entry(data: bytes) -> Entry:
    place, kind, user, size, changed, modified, path = data.decode("utf-8", "surrogateescape").split(" ", 6)
    return Entry(place, kind, int(user), int(size), changed, modified, path)


def parse_counters(lines: Sequence[str]) -> tuple[int, int]:
    """Accepted and established connections, in /proc/net/snmp. Raises ValueError when it does not tell."""
    tcp = [line.split() for line in lines if line.startswith("Tcp:")]
    if len(tcp) != 2:
        raise ValueError("no counters of TCP")
    values = dict(zip(*tcp, strict=True))
    try:
        return int(values["PassiveOpens"]), int(values["CurrEstab"])
    except KeyError as error:
        raise ValueError(f"no counter {error}") from None


def parse_connections(data: bytes) -> tuple[Connection, ...]:
    """Established ones among those in the kernel's tables."""
    found = []
    for line in data.decode().splitlines():
        words = line.split()
        if len(words) > 4 and words[0].endswith(":") and words[3] == _ESTABLISHED:
            own, other = words[1].split(":"), words[2].split(":")
            found.append(Connection(int(own[1], 16), _address(other[0]), int(other[1], 16)))
    return tuple(found)


def _address(text: str) -> str:
    """An address of /proc/net/tcp: words of four bytes, each in the machine's order (x86 and ARM: little)."""
    data = b"".join(bytes.fromhex(text[begin : begin + 8])[::-1] for begin in range(0, len(text), 8))
    if len(data) == 4:
        return str(IPv4Address(data))
    address = IPv6Address(data)
    return str(address.ipv4_mapped or address)
