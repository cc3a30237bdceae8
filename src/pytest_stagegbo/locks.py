"""Who may use and change a stage at this moment, over all processes and users of the host.

A stage has a lock for itself and one for each of its containers. Those who use share them; who changes one keeps
it to itself. Each is two files: the kernel's `flock` on the one is held shared or exclusively, and the other, a
filelock, is a gate that everybody passes on the way in and a would-be exclusive holder keeps shut while the present
holders leave, so that a stream of users can't starve it. Both go with their process, however it dies.

filelock's own ReadWriteLock was measured at 0.7 ms a lock, a test takes seven, and its files can't be shared
between users; hence `flock` here.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_stagegbo.errors import LockTimeout, MissingRequirement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["STAGE", "StageLock", "lock_folder"]


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

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.05
"""Seconds between two tries for a lock that somebody holds. flock(2) itself knows no time limit."""


class _Lock:
    """One lock, of this process, shared or exclusive."""

    def __init__(self, path: Path) -> None:
        self._gate = FileLock(path.with_suffix(".gate"), mode=0o660, is_singleton=False, thread_local=False)
        self._path = path
        self._file: int | None = None

    def acquire(self, deadline: float, *, exclusive: bool) -> bool:
        """Whether it was had before the deadline (of the monotonic clock)."""
        try:
            self._gate.acquire(timeout=max(0.0, deadline - time.monotonic()), poll_interval=LONGEST_PAUSE / 2)
        except Timeout:
            return False
        try:
            file = self._open()
            kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            pause = FIRST_PAUSE
            while True:
                try:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        return False
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._gate.release()

    def release(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _open(self) -> int:
        """The file, opened once: opening and closing it would cost more than locking it."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            with contextlib.suppress(PermissionError):  # another user made it, and did this
                os.fchmod(self._file, 0o660)  # whatever this process's umask took away
        return self._file

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


class StageLock:
    """The right to use or change one stage of one daemon. An object is for one thread and one hold at a time.

    Args:
        endpoint: Of the daemon.
        server: Fingerprint of the daemon.
        project: Name of the stage's project.
        timeout: Seconds to wait for other holders, in all.
    """

    def __init__(self, endpoint: str, server: str, project: str, timeout: float) -> None:
        name = hashlib.sha256(f"{server} {project}".encode()).hexdigest()[:16]
        self.folder = lock_folder(endpoint) / name
        self._project = project
        self._timeout = timeout
        self._locks: dict[str, _Lock] = {}
        self._card = self.folder / f"{os.getpid()}-{next(_numbers)}.holder"

    @contextlib.contextmanager
    def hold(
        self,
        doing: str,
        waiting: Callable[[str], None] | None = None,
        *,
        shared: Iterable[str] = (),
        exclusive: Iterable[str] = (STAGE,),
    ) -> Iterator[None]:
        """Hold locks while the block runs; see `acquire`."""
        self.acquire(doing, waiting, shared=shared, exclusive=exclusive)
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
        keep_note: bool = False,
    ) -> None:
        """Take locks, in one order for everybody, so that no two can wait for each other.

        Args:
            doing: What for, shown to those who wait.
            waiting: Called once with the holders' description when not all locks are free at once.
            shared: Names of containers (or `STAGE`) to use.
            exclusive: Names of containers (or `STAGE`) to keep to oneself; wins over `shared`.
            keep_note: Leave the note that the stage is clean, which goes otherwise when a container is to be used.

        Raises:
            LockTimeout: the holders did not let go in time; names them.
        """
        mine = set(exclusive)
        names = sorted(mine | set(shared))
        deadline = time.monotonic() + self._timeout
        held: list[_Lock] = []
        try:
            self.make_folder()
            for name in names:
                lock = self._locks.get(name) or _Lock(self.folder / f"{name or 'stage'}.lock")
                self._locks[name] = lock
                patience = time.monotonic() + FIRST_PAUSE if waiting is not None else deadline
                got = lock.acquire(min(patience, deadline), exclusive=name in mine)
                if not got and waiting is not None and time.monotonic() < deadline:
                    waiting(self.holder())
                    waiting = None
                    got = lock.acquire(deadline, exclusive=name in mine)
                if not got:
                    what = f"stage {self._project}" + (f", container {name}," if name else "")
                    raise LockTimeout(
                        f"{what} was not free within {self._timeout:.0f} s",
                        seen=f"held by {self.holder()}",
                        remedy="wait for it or end it: a lock goes with its process",
                    )
                held.append(lock)
            if not keep_note and any(name and not name.startswith(".") for name in names):
                self.soil()
            self._write(doing, names, mine)
        except BaseException as error:
            for lock in reversed(held):
                lock.release()
            if isinstance(error, OSError) and error.filename is not None:  # not one of `waiting`'s
                raise _unusable(self.folder, error) from None
            raise

    def release(self) -> None:
        """Let go of everything that `acquire` took."""
        with contextlib.suppress(OSError):
            self._card.unlink()
        for lock in reversed(self._locks.values()):
            lock.release()

    def holder(self) -> str:
        """Who holds locks of this stage, as far as can be told."""
        return "; ".join(self.holders()) or "a process that has just begun"

    def holders(self) -> list[str]:
        """Each process that holds locks of this stage, as far as can be told."""
        found = []
        for card in sorted(self.folder.glob("*.holder")):
            try:
                entry = json.loads(card.read_text())
                if _born(entry["pid"]) != entry["born"]:
                    card.unlink()  # of a process that was killed; its locks went with it
                    continue
                since = time.strftime("%H:%M:%S", time.localtime(entry["since"]))
                found.append(f"process {entry['pid']} ({entry['doing']}) since {since}")
            except (OSError, ValueError, KeyError):
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
            temporary.write_text(identity)
            temporary.replace(self._clean)

    def clean_note(self) -> str:
        """What `note_clean` was given, if nobody has used the stage since; else empty."""
        try:
            return self._clean.read_text()
        except OSError:
            return ""

    def soil(self) -> None:
        """From now on the stage does not count as clean."""
        self._clean.unlink(missing_ok=True)

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
            "since": time.time(),
            "shared": [name or "stage" for name in names if name not in exclusive],
            "exclusive": [name or "stage" for name in names if name in exclusive],
        }
        with contextlib.suppress(OSError):  # it is only for people; the locks themselves are the kernel's
            self._card.write_text(json.dumps(entry))


@functools.lru_cache(1)  # this process's, mostly
def _own_birth(pid: int) -> str:
    return _born(pid)


def _born(pid: int) -> str:
    """When a process began, in clock ticks since the boot (proc(5), starttime): tells it from a later one with its
    number. Empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


_numbers = itertools.count()
