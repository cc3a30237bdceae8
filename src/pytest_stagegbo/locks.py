"""Who may use and change a stage at this moment, over all processes and users of the host.

A stage has a lock for itself and one for each of its containers. Those who use share them; who changes one keeps
it to itself. Locks go with their process, however it dies. A process that would wait for a lock of its own parent,
which waits for it, is an error at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks, notes
from pytest_stagegbo.errors import LockTimeout, MissingRequirement
from pytest_stagegbo.flock import FIRST_PAUSE, FairLock, FileLock
from pytest_stagegbo.processes import born, describe, lock_holders
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from pytest_stagegbo.leases.host import HostLease
    from pytest_stagegbo.leases.protocol import Entry

__all__ = ["AWAKE", "SLOT", "STAGE", "FileLock", "StageLock", "lock_folder"]


PARENTS = (Path("/run/lock"), Path("/tmp"))
"""Where the folder of locks may be: in the first that is open to everybody, so that all users take the same one."""


def lock_folder(endpoint: str) -> Path:
    """The folder of this host's locks, made when missing: shared by everybody who may use the daemon's socket.

    Not sticky and of the socket's group: in a sticky folder the kernel (fs.protected_regular) keeps a second user
    from opening the first one's lock. Each user has one of their own for daemons on other hosts, which other hosts'
    users can't see anyway.

    Raises:
        MissingRequirement: it can't be made, or was put there by somebody who may not use the socket.
    """
    parent = next((parent for parent in PARENTS if _is_open_to_all(parent)), PARENTS[-1])
    remote = endpoint.startswith("https://")
    folder = parent / (f"stagegbo-{os.geteuid()}" if remote else "stagegbo")
    try:
        folder.mkdir(mode=0o770, exist_ok=True)
        group = None if remote else _group(endpoint)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or (found.st_uid not in {0, os.geteuid()} and found.st_gid != group):
            raise PermissionError(f"a {stat.filemode(found.st_mode)[0]!r} of user {found.st_uid}, group {found.st_gid}")
        if found.st_uid == os.geteuid():
            if group is not None:
                with contextlib.suppress(OSError):
                    os.chown(folder, -1, group)
            folder.chmod(0o2770)
    except OSError as error:
        raise _unusable(folder, error) from None
    return folder


def _group(endpoint: str) -> int | None:
    try:
        return Path(endpoint).stat().st_gid
    except OSError:
        return None


def _is_open_to_all(folder: Path) -> bool:
    try:
        return bool(folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def _unusable(folder: Path, error: OSError) -> MissingRequirement:
    return MissingRequirement(
        f"the lock folder {folder} can't be used", seen=str(error), remedy="remove it, or make it writable"
    )


STAGE = ""
"""Name of the lock of the stage as a whole among its containers' names. Sorts first."""

AWAKE = ".awake"
"""Name of the lock that those share who look at all containers, whoever uses these: none is frozen meanwhile."""

SLOT = ".lease"
"""Name of the lock of a process that has a slot to itself."""

UNKNOWN = "a process that has just begun, or that this user can't see"


class StageLock:
    """The right to use or change one stage of one daemon. An object is for one thread and one hold at a time.

    Args:
        endpoint: Of the daemon.
        server: Fingerprint of the daemon.
        project: Name of the stage's project.
        timeout: Seconds to wait for other holders, in all.
        thaw: Lets containers go on that a quiet test has frozen, before anybody uses them; None: all of them.
        lease: Gives this host's lease of the stage, by the folder of its locks. It is had before any lock is.
    """

    def __init__(
        self,
        endpoint: str,
        server: str,
        project: str,
        timeout: float,
        thaw: Callable[[Collection[str] | None], None] | None = None,
        lease: Callable[[Path], HostLease | None] = lambda _: None,
    ) -> None:
        name = hashlib.sha256(f"{server} {project}".encode()).hexdigest()[:16]
        self.folder = lock_folder(endpoint) / name
        self._project = project
        self._timeout = timeout
        self._thaw = thaw
        self._locks: dict[str, FairLock] = {}
        self._number = next(_numbers)
        self._lease = lease(self.folder)
        self._entered = False

    @contextlib.contextmanager
    def hold(
        self,
        doing: str,
        waiting: Callable[[str], None] | None = None,
        *,
        shared: Iterable[str] = (),
        exclusive: Iterable[str] = (STAGE,),
        keep_note: bool = False,
    ) -> Iterator[None]:
        """Hold locks while the block runs; see `acquire`."""
        self.acquire(doing, waiting, shared=shared, exclusive=exclusive, keep_note=keep_note)
        try:
            yield
        finally:
            self.release()

    def acquire(
        self,
        doing: str,
        waiting: Callable[[str], None] | None = None,
        *,
        shared: Iterable[str] = (),
        exclusive: Iterable[str] = (STAGE,),
        quiet: Iterable[str] = (),
        keep_note: bool = False,
    ) -> None:
        """Take locks, in one order for everybody, so that no two can wait for each other.

        Args:
            doing: What for, shown to those who wait.
            waiting: Called once with the holders' description when not all locks are free at once.
            shared: Names of containers (or `STAGE`) to use.
            exclusive: Names of containers (or `STAGE`) to keep to oneself; wins over `shared`.
            quiet: Names of containers that nobody may use; others may want that of them at the same time.
            keep_note: Leave the note that the stage is clean, which goes otherwise when a container is to be used.

        Raises:
            LockTimeout: the holders did not let go in time; names them.
        """
        mine, silent = set(exclusive), set(quiet)
        used = mine | set(shared)
        names = sorted(used | silent)
        deadline = clocks.monotonic() + self._timeout
        held: list[FairLock] = []
        try:
            self.make_folder()
            if self._lease is not None and not self._entered:
                self._lease.enter(doing, deadline, waiting, session=SLOT in mine)
                self._entered = True
            for name in names:
                lock = self._locks.get(name) or FairLock(self.folder / f"{name or 'stage'}.lock")
                self._locks[name] = lock
                kind = {"exclusive": name in mine, "quiet": name not in used}
                got = lock.acquire(min(clocks.monotonic() + FIRST_PAUSE, deadline), **kind)
                if not got:
                    got = self._got_beside_own(lock, name, exclusive=name in mine or name not in used)
                if not got and clocks.monotonic() < deadline:
                    if waiting is not None:
                        waiting(self.holder())
                        waiting = None
                    got = lock.acquire(deadline, **kind)
                if not got:
                    raise self._not_free(lock, name)
                held.append(lock)
            if self._thaw is not None:
                self._thaw(None if STAGE in mine or AWAKE in used else used)
            if not keep_note and any(name and not name.startswith(".") for name in names):
                self.mark_dirty()
            self._write(doing, names, mine)
        except BaseException as error:
            for lock in reversed(held):
                lock.release()
            self._leave_lease()
            if isinstance(error, OSError) and error.filename is not None:  # not one of `waiting`'s
                raise _unusable(self.folder, error) from None
            raise

    def _got_beside_own(self, lock: FairLock, name: str, *, exclusive: bool) -> bool:
        """Whether a lock was had that this process's own ancestor, or this very thread, shares.

        Raises:
            LockTimeout: they have it in a way that excludes this one, and will not let go while they wait for it.
        """
        own = lock.own_holder()
        if own is None:
            return False
        if not exclusive and lock.join():  # past those who wait for that ancestor to leave
            return True
        who = "this process itself" if own == os.getpid() else "the process that started this one, or one above it"
        raise LockTimeout(
            f"{self._what(name)} is held by {who}, so waiting for it would never end",
            seen=f"held by {self._cards().get(own) or describe(own)}",
            remedy="in a test call `stage.reset(...)`, with @pytest.mark.stage_reset(...), instead of the command; "
            "run commands that change the stage, and sessions of pytest, outside of tests that use it",
        )

    def _not_free(self, lock: FairLock, name: str) -> LockTimeout:
        cards, pids = self._cards(), lock.holders()
        heirs = [describe(pid) for pid in pids if pid not in cards]
        named = [text for pid, text in cards.items() if not pids or pid in pids]
        remedy = "wait for it or end it: a lock goes with its process"
        if heirs:
            remedy += "; a process without a task has its copy of the lock from one that ended, and is safe to end"
        return LockTimeout(
            f"{self._what(name)} was not free within {self._timeout:.0f} s",
            seen="held by " + ("; ".join([*named, *heirs]) or UNKNOWN),
            remedy=remedy,
        )

    def _what(self, name: str) -> str:
        if name == AWAKE:
            return f"stage {self._project}, of which a quiet test has containers frozen,"
        return f"stage {self._project}" + (f", container {name}," if name else "")

    def leave(self, names: Iterable[str]) -> None:
        """Let go of some of what `acquire` took."""
        for name in names:
            if name in self._locks:
                self._locks[name].release()

    def for_any_thread(self) -> None:
        """What was acquired in this thread is released in another one."""
        for lock in self._locks.values():
            lock.for_any_thread()

    def release(self) -> None:
        """Let go of everything that `acquire` took."""
        with contextlib.suppress(OSError):
            self._card.unlink()
        for lock in reversed(self._locks.values()):
            lock.release()
        self._leave_lease()

    def _leave_lease(self) -> None:
        if self._entered and self._lease is not None:
            self._entered = False
            self._lease.leave()

    def is_own_lease(self, entry: Entry) -> bool:
        """Whether a lease of this stage is this host's."""
        return self._lease is not None and self._lease.is_own(entry)

    def holder(self) -> str:
        """Who holds locks of this stage, as far as can be told."""
        return "; ".join(self.holders()) or "; ".join(map(describe, self._heirs())) or UNKNOWN

    def holders(self) -> list[str]:
        """Each process that said what it holds locks of this stage for, and lives."""
        return list(self._cards().values())

    def _heirs(self) -> list[int]:
        """Processes that hold locks of this stage and never said so: children of those that did."""
        found = [pid for path in sorted(self.folder.glob("*.lock")) for pid in lock_holders(path)]
        return [pid for pid in dict.fromkeys(found) if pid != os.getpid()]

    def _cards(self) -> dict[int, str]:
        """By process, what it holds locks for."""
        found: dict[int, str] = {}
        for card in sorted(self.folder.glob("*.holder")):
            try:
                entry = json.loads(notes.read(card))
                pid = int(entry["pid"])
                if born(pid) != entry["born"]:
                    card.unlink()  # of a process that was killed; its locks went with it
                    continue
                since = time.strftime("%H:%M:%S", time.localtime(entry["since"]))
                text = printable(f"process {pid} ({entry['doing']}) since {since}")
                found[pid] = f"{found[pid]}; {text}" if pid in found else text
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    @contextlib.contextmanager
    def changing(self, names: Iterable[str]) -> Iterator[None]:
        """Note that containers are neither as they were nor as they will be; a block that does not end well leaves
        the note, however its process ends. For who keeps them to itself."""
        notes = [self._note(name) for name in names]
        for note in notes:
            note.touch(mode=0o660)
        yield
        for note in notes:
            note.unlink(missing_ok=True)

    def unfinished(self, names: Iterable[str]) -> frozenset[str]:
        """Which of these containers somebody began to change and did not finish. True for who holds their locks."""
        return frozenset(name for name in names if self._note(name).exists())

    def note_clean(self, identity: str) -> None:
        """Note that the whole stage was proven clean, and which it is. For who keeps all containers to itself."""
        temporary = self._clean.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):  # without a note it is cleaned once more
            notes.write(temporary, identity)
            temporary.replace(self._clean)

    def clean_note(self) -> str:
        """What `note_clean` was given, if nobody has used the stage since; else empty."""
        try:
            return notes.read(self._clean)
        except OSError:
            return ""

    def mark_dirty(self) -> None:
        """From now on the stage does not count as clean."""
        self._clean.unlink(missing_ok=True)

    @property
    def _card(self) -> Path:
        return self.folder / f"{os.getpid()}-{self._number}.holder"

    @property
    def _clean(self) -> Path:
        return self.folder / "stage.clean"

    def _note(self, name: str) -> Path:
        return self.folder / f"{name}.unfinished"

    def make_folder(self) -> None:
        """Make the folder of this stage's locks, when it is missing."""
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o770)
            self.folder.chmod(0o2770)

    def _write(self, doing: str, names: list[str], exclusive: set[str]) -> None:
        entry = {
            "pid": os.getpid(),
            "born": _own_birth(os.getpid()),
            "doing": doing,
            "since": clocks.now(),
            "shared": [name or "stage" for name in names if name not in exclusive],
            "exclusive": [name or "stage" for name in names if name in exclusive],
        }
        with contextlib.suppress(OSError):  # it is only for people; the locks themselves are the kernel's
            notes.write(self._card, json.dumps(entry))


@functools.lru_cache(1)  # this process's, mostly
def _own_birth(pid: int) -> str:
    return born(pid)


_numbers = itertools.count()
