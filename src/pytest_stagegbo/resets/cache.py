"""Valkey, emptied while it runs: keys, functions, scripts, clients of tests, and its files on disk.

Flushing alone leaves what was there in the append-only file until that is rewritten. Rewriting it takes a child
process, which Valkey looks after ten times a second only. So the file is cut to nothing instead, in a moment that
nobody writes in: `CLIENT PAUSE` in the transaction that flushes holds writers back, the last write before it is to
database 0, which is where a file that begins without a `SELECT` begins, and Valkey goes on appending at the new end
of a file that it opened for appending. It opens one so at its start only, so after a rewrite a restart is what helps.

What a restart would also put back (`CONFIG SET`, `ACL SETUSER`, modules, replication) is not repaired here: when it
is not as it was at the server's start, that is a doubt, and the restart is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from typing import TYPE_CHECKING, Any

from pytest_stagegbo import clocks
from pytest_stagegbo.resets.listing import Entry
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.resets.valkey import check_answers, connected, counts_of
from pytest_stagegbo.services.answer import NoAnswer
from pytest_stagegbo.services.resp import Refused, Resp, fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.resets.listing import Inspection
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.services.resp import Value

__all__ = ["HotCache", "check_saved", "go_on", "write_down"]

QUICK = 1.0
"""For the question whether anything was done. A container that is paused does not answer, and is let go on later."""
PAUSE_MILLISECONDS = 3000
"""After which writers go on by themselves, should this process die in between."""
MARK = "__stagegbo_reset__"
MOST_DATABASES = 256
FLUSHING = 10
"""Changes that Valkey counts for a flush, beside the keys."""
SOON = 30.0
"""Seconds after a reset in which Valkey does not save by itself what came before; half of a save point's, if less. A
save takes two fsyncs, so it is not done by each reset."""
LOOKS = 20
POSTPONED, PATIENCE = 5.0, 0.01
"""Seconds to wait until Valkey has appended to its file, and from one look to the next: nothing tells when it has.
Valkey postpones that by two seconds at most."""

# fmt: off
HARMLESS = frozenset((
    "acl|list", "acl|whoami", "auth", "client|getname", "client|id", "client|list", "client|setinfo",
    "client|unpause", "config|get", "discard", "echo", "exec", "hello", "info", "module|list", "multi", "ping",
    "quit", "time",
))
"""Commands that change nothing. What a transaction holds is counted by itself."""
UNREPAIRABLE = (
    "acl|", "bgrewriteaof", "cluster|", "config|", "debug", "failover", "module|", "psync", "replicaof", "shutdown",
    "slaveof", "sync",
)
"""How commands begin after which only a restart is a clean start."""
READING = frozenset((
    "acl|cat", "acl|getuser", "acl|list", "acl|log", "acl|users", "acl|whoami", "cluster|info", "config|get",
    "module|list",
))
"""Those among them that change nothing."""

_INFO: tuple[str, ...] = ("INFO", "everything")
_DOINGS: tuple[tuple[str, ...], ...] = (
    # One section each: servers before 7.0 take no more at once, and all of them take a quarter of a millisecond.
    ("INFO", "server"), ("INFO", "clients"), ("INFO", "commandstats"), ("CLIENT", "LIST"), ("CLIENT", "ID"),
)
_SERVER: tuple[tuple[str, ...], ...] = (("CONFIG", "GET", "*"), ("ACL", "LIST"), ("MODULE", "LIST"))
# fmt: on
State = tuple["str | None", dict[str, int], "str | None"]
"""Which server it is, which commands it got, and how many clients wait for something."""


class HotCache:
    """For containers whose first probe speaks Valkey's protocol."""

    def untouched(self, target: ResetTarget) -> bool:
        if target.unchanged(accepted=False) is None:
            return False
        with connected(target, *_DOINGS, seconds=QUICK) as (_, answers):
            state, foreign_clients = _doings(answers, target.others)
        return not foreign_clients and isinstance(target.mark, tuple) and target.mark[0] == state

    def clean(self, target: ResetTarget) -> bool:
        if target.probe.tls or len(target.container.wipe) != 1:
            raise NeedsRestart("a Valkey with TLS, or not one folder")
        with connected(target, *_DOINGS) as (valkey, answers):
            state, foreign_clients = _doings(answers, target.others)
            mark = target.mark
            if not foreign_clients and isinstance(mark, tuple) and mark[0] == state:
                inspection = target.inspection()
                if mark[1] == inspection.entries:
                    target.settle(mark, inspection, idle=True)
                    return False
            target.mark = None
            note = self._known(target, state)
            info, *server = valkey.ask(_INFO, *_SERVER)
            said = fields(info)
            _check_server(said, server, note)
            kills: list[tuple[str | int, ...]] = [("CLIENT", "UNPAUSE")]  # a reset that was killed may have left it
            kills += [("CLIENT", "KILL", "ID", client) for client in foreign_clients]
            save = [("SAVE",)] if _saves_soon(said, server[0]) else []
            answers = valkey.ask(*kills, *_flush(_databases(server[0])), *save, ("INFO", "persistence"))
            try:
                check_answers(answers[len(kills) :])
                _wait_written(valkey, answers[-1])
                inspection = self._clear_files(target, note["files"])
                found = valkey.ask(("MULTI",), _INFO, ("CLIENT", "UNPAUSE"), ("EXEC",))
            except BaseException:
                with contextlib.suppress(NoAnswer):  # the pause ends by itself
                    valkey.ask(("DISCARD",), ("CLIENT", "UNPAUSE"))
                raise
        results = found[-1]
        if not isinstance(results, list):
            raise NeedsRestart(f"Valkey answered {results!r}")
        said = fields(results[0])
        left = [f"db{number}" for number in sorted(counts_of(said))]
        if left or said.get("run_id") != note["run_id"] or said.get("number_of_functions", "0") != "0":
            raise NeedsRestart(f"Valkey still has keys in {', '.join(left) or 'another server'}")
        check_saved(said)
        target.settle((_state(said), inspection.entries), inspection)
        return True

    def _known(self, target: ResetTarget, state: State) -> Mapping[str, Any]:
        """The note of the server that runs: the one that this process has read before, as long as it is of it."""
        if target.known is None or target.known["run_id"] != state[0]:
            target.known = target.read_note(target.inspection())
        return target.known

    def _clear_files(self, target: ResetTarget, files: Mapping[str, Any]) -> Inspection:
        """Remove what an empty server does not need, cut the file that it appends to, and look at what is left."""
        kept = [Entry(identity[0], identity[1], 0, 0, "", "", path) for path, identity in files["kept"].items()]
        cut = ""
        if files["appended"]:
            path = shlex.quote(files["appended"])
            inode = files["kept"][files["appended"]][0].partition(":")[2]
            cut = f'[ "$(stat -c %i {path})" != {inode} ] || : >{path}; '
        inspection = target.clear(kept, cut)
        _check_files(inspection.entries, files)
        return inspection

    def settle(self, target: ResetTarget) -> None:
        with connected(target, *_DOINGS) as (_, answers):
            state, foreign_clients = _doings(answers, target.others)
        if not (foreign_clients or state[1]):
            inspection = target.inspection()
            target.settle((state, inspection.entries), inspection, idle=True)

    def note(self, target: ResetTarget, inspection: Inspection) -> dict[str, Any]:
        with connected(target, _INFO, *_SERVER) as (_, (info, *server)):
            pass
        said = fields(info)
        appended = _appended(target, inspection) if said.get("aof_enabled") == "1" else ""
        return {
            "run_id": said["run_id"],
            "server": _digest(*server),
            "calls": _unrepairable(said),
            "files": {"appended": appended, "kept": _kept(inspection.entries, appended)},
        }


def write_down(target: ResetTarget) -> None:
    """Wait until each write that the server has answered is in its files, and pause its writers for some seconds.

    With `appendfsync everysec`, Valkey may answer a write up to two seconds before it appends it to its file: while the
    disk is busy with the last sync. Only the length of its buffer shows that.

    Raises:
        NeedsRestart, NoAnswer: it can't be done.
    """
    pause = ("CLIENT", "PAUSE", PAUSE_MILLISECONDS, "WRITE")
    with connected(target, ("INFO", "persistence"), seconds=2 * POSTPONED) as (valkey, (said,)):
        if fields(said).get("aof_enabled") != "1":
            check_answers(valkey.ask(pause, ("SAVE",)))
            return
        ends = clocks.monotonic() + POSTPONED
        _, said = valkey.ask(pause, ("INFO", "persistence"))  # a user who may not pause has the writes before this one
        while fields(said).get("aof_buffer_length", "0") != "0":
            if clocks.monotonic() > ends:
                raise NeedsRestart("Valkey holds back what it is to append to its file")
            clocks.sleep(PATIENCE)
            (said,) = valkey.ask(("INFO", "persistence"))


def go_on(target: ResetTarget) -> None:
    """Let writers go on that `write_down` has held back. They do so by themselves a while later."""
    with contextlib.suppress(NeedsRestart, NoAnswer), connected(target, ("CLIENT", "UNPAUSE")):
        pass


def _flush(databases: int) -> list[tuple[str | int, ...]]:
    """One transaction. Not FLUSHALL, which also saves and syncs an empty file where there are save points."""
    commands: list[tuple[str | int, ...]] = [("MULTI",)]
    for number in (*range(1, databases), 0):
        commands += [("SELECT", number), ("FLUSHDB", "SYNC")]
    commands += [("FUNCTION", "FLUSH", "SYNC"), ("SCRIPT", "FLUSH", "SYNC"), ("SET", MARK, 1), ("DEL", MARK)]
    commands += [("CLIENT", "PAUSE", PAUSE_MILLISECONDS, "WRITE"), ("EXEC",)]
    return [*commands, ("SLOWLOG", "RESET"), ("LATENCY", "RESET"), ("ACL", "LOG", "RESET")]


def _saves_soon(said: Mapping[str, str], config: Value) -> bool:
    """Whether Valkey would save by itself soon after this reset, for its save points count what was changed before, and
    the flush. It would put a file into the folder that was cleared. A save beforehand has it count from 0."""
    pairs = dict(zip(config[::2], config[1::2], strict=False)) if isinstance(config, list) else {}
    words = pairs.get(b"save")
    numbers = [int(word) for word in words.split()] if isinstance(words, bytes) else []
    now = int(said.get("server_time_usec", "0")) // 10**6 or int(clocks.now())
    age = now - int(said.get("rdb_last_save_time", "0"))
    keys = sum(counts_of(said).values())
    changes = int(said.get("rdb_changes_since_last_save", "0")) + keys + FLUSHING
    points = zip(numbers[::2], numbers[1::2], strict=False)
    return any(changes >= needed and age + min(SOON, seconds / 2) >= seconds for seconds, needed in points)


def _wait_written(valkey: Resp, persistence: Value) -> None:
    """Until what was to be appended is in the file: what comes later would come after the cut."""
    for _ in range(LOOKS):
        said = fields(persistence)
        if said.get("aof_enabled") != "1" or said.get("aof_buffer_length") == "0":
            return
        (persistence,) = valkey.ask(("INFO", "persistence"))
    raise NeedsRestart("Valkey holds back what it is to append to its file")


def _check_server(said: Mapping[str, str], answers: Sequence[Value], note: Mapping[str, Any]) -> None:
    """Raises `NeedsRestart` unless the server is, but for its data, as it was right after its start."""
    if said.get("run_id") != note["run_id"]:
        raise NeedsRestart("Valkey was started again")
    expected = {"role": "master", "cluster_enabled": "0", "loading": "0", "rdb_bgsave_in_progress": "0"}
    expected |= {"aof_rewrite_in_progress": "0", "aof_rewrite_scheduled": "0", "connected_slaves": "0"}
    for name, value in expected.items():
        if said.get(name, value) != value:
            raise NeedsRestart(f"Valkey says {name}:{said[name]}")
    check_saved(said)
    if _digest(*answers) != note["server"]:
        raise NeedsRestart("Valkey's configuration, users or modules were changed")
    calls = _unrepairable(said)
    if calls != note["calls"]:
        raise NeedsRestart(
            f"Valkey was told {', '.join(sorted(set(calls.items()) ^ set(note['calls'].items()))[0][:1])}"
        )


def check_saved(said: Mapping[str, str]) -> None:
    """Raises `NeedsRestart` when the file of a save was removed during the save, or may have been. Valkey then
    refuses writes."""
    if said.get("rdb_last_bgsave_status", "ok") != "ok" or said.get("rdb_bgsave_in_progress", "0") != "0":
        raise NeedsRestart("Valkey could not save")


def _digest(*answers: Value) -> str:
    """A digest of answers, since they may hold passwords."""
    refused = next((answer for answer in answers if isinstance(answer, Refused)), None)
    if refused is not None:
        raise NeedsRestart(f"Valkey refused: {refused.code}")
    # Settings come as names and values in turns, in no order.
    parts = [
        sorted(zip(each[::2], each[1::2], strict=False), key=repr) if isinstance(each, list) else each
        for each in answers[:1]
    ]
    return hashlib.sha256(repr((parts, answers[1:])).encode()).hexdigest()


def _calls(said: Mapping[str, str]) -> dict[str, int]:
    """How many times each command was carried out since the server's start."""
    found = {}
    for name, text in said.items():
        if name.startswith("cmdstat_"):
            calls = int(text.partition("calls=")[2].partition(",")[0])
            if calls:
                found[name.removeprefix("cmdstat_")] = calls
    return found


def _unrepairable(said: Mapping[str, str]) -> dict[str, int]:
    return {
        name: calls for name, calls in _calls(said).items() if name.startswith(UNREPAIRABLE) and name not in READING
    }


def _doings(answers: Sequence[Value], others: frozenset[str]) -> tuple[State, list[int]]:
    """What answers to `_DOINGS` say: the server's state, and clients that are nobody's of the stage."""
    *sections, clients, own = answers
    said = {name: value for section in sections for name, value in fields(section).items()}
    return _state(said), _foreign_clients(clients, own, others)


def _state(said: Mapping[str, str]) -> State:
    """What differs as soon as anything was done to the data or may be done by somebody who waits."""
    calls = {name: count for name, count in _calls(said).items() if name not in HARMLESS}
    return said.get("run_id"), calls, said.get("blocked_clients")


def _foreign_clients(clients: Value, own: Value, others: frozenset[str]) -> list[int]:
    """Clients but this one and those of the stage's other containers, which a test has no hold of."""
    if not isinstance(clients, bytes) or not isinstance(own, int):
        raise NeedsRestart("Valkey does not list its clients")
    found = []
    for line in clients.splitlines():
        client = fields(line)
        number, address = int(client["id"]), client["addr"].rpartition(":")[0].strip("[]")
        if number != own and address not in others:
            found.append(number)
    return found


def _databases(config: Value) -> int:
    values = config if isinstance(config, list) else []
    pairs = dict(zip(values[::2], values[1::2], strict=False)) if all(isinstance(v, bytes) for v in values) else {}
    count = pairs.get(b"databases")
    number = int(count) if isinstance(count, bytes) else 0
    if not 1 <= number <= MOST_DATABASES:
        raise NeedsRestart(f"{number} databases")
    return number


# -- files


def _appended(target: ResetTarget, inspection: Inspection) -> str:
    """Path of the file that Valkey appends to, which it opened for appending; found among its open files."""
    script = ""
    for process in target.main_processes():
        script += f"""for link in /proc/{process.pid}/fd/*; do
    path=$(readlink "$link") || continue
    case $path in *.aof) flags=; while read -r word value; do [ "$word" != flags: ] || flags=$value; done \
</proc/{process.pid}/fdinfo/${{link##*/}}; printf '%s %s\\n' "$flags" "$path";; esac
done
"""
    found = []
    for line in target.run_checked(script).decode("utf-8", "replace").splitlines():
        flags, _, path = line.partition(" ")
        if flags and int(flags, 8) & 0o2000:  # O_APPEND
            found.append(path)
    inside = [entry.path for entry in inspection.entries if entry.kind == "f" and entry.path.endswith(".aof")]
    matching = [path for path in inside if any(_same(path, other) for other in found)]
    if len(matching) != 1:
        raise NeedsRestart("Valkey's append-only file is not open for appending")
    return matching[0]


def _same(path: str, other: str) -> bool:
    """Whether two ways to one file: a folder on the way may be a link."""
    return path.replace("//", "/").rpartition("/")[2] == other.rpartition("/")[2]


def _kept(entries: Sequence[Entry], appended: str) -> dict[str, list[str]]:
    """What an empty server needs on disk: with an append-only file, all that is in that file's folder."""
    if not appended:
        return {}
    folder = appended.rpartition("/")[0]
    kept = [entry for entry in entries if entry.path == folder or entry.path.startswith(f"{folder}/")]
    return {entry.path: _identity(entry, appended) for entry in kept}


def _identity(entry: Entry, appended: str) -> list[str]:
    if entry.kind == "d" or entry.path == appended:
        return [entry.place, entry.kind]
    return [entry.place, entry.kind, str(entry.size), entry.changed, entry.modified]


def _check_files(entries: Sequence[Entry], files: Mapping[str, Any]) -> None:
    """Raises `NeedsRestart` unless nothing is left but what an empty server needs, and the appended file is empty."""
    left = {entry.path: entry for entry in entries[1:]}
    for path, identity in files["kept"].items():
        entry = left.pop(path, None)
        if entry is None or _identity(entry, files["appended"]) != identity:
            raise NeedsRestart("Valkey has rewritten its append-only file")
        if path == files["appended"] and entry.size:
            raise NeedsRestart(f"{path} has something in it")
    if left:
        raise NeedsRestart(f"{next(iter(left))} is still there")
