"""What the processes of one host know together of its lease of a stage."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from pytest_stagegbo import clocks, notes
from pytest_stagegbo.errors import LockTimeout
from pytest_stagegbo.flock import FileLock
from pytest_stagegbo.leases.protocol import Held, Holder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.leases.protocol import Steps

__all__ = ["HostNotes", "Note", "Store"]

T = TypeVar("T")

CONFIRM_SECONDS = 5.0
"""For this host's other processes to be done with the lease."""


class Store(Protocol):
    """Where leases are."""

    def carry_out(self, steps: Steps[T]) -> T: ...

    def serves_nothing(self) -> bool: ...

    def remove_project(self) -> None: ...


class Note(msgspec.Struct):
    """What the processes of a host know of its lease."""

    token: str
    boot: str
    """Of which boot of the machine `until` and `looked` are."""
    term: int = 0
    """Another one after each time that another host may have had the stage."""
    epoch: int = 0
    """0: this host has no lease."""
    until: float = 0.0
    looked: float = 0.0
    since: float = 0.0
    """For people."""
    saved: bool = False


class HostNotes:
    """The note, beside the locks of the stage. It is changed by one thread of one process at a time."""

    def __init__(self, folder: Path, stage: str, seconds: float) -> None:
        self._folder = folder
        self._stage = stage
        self._seconds = seconds
        self._thread = threading.Lock()
        self._file = FileLock(folder / "lease.turn")
        self._holder: Holder | None = None

    @contextlib.contextmanager
    def turn(self, deadline: float = 0.0) -> Iterator[tuple[Holder, Note]]:
        """Be the only one of this host's processes and threads that does something about the lease."""
        patience = max(CONFIRM_SECONDS, deadline - clocks.monotonic())
        if not self._thread.acquire(timeout=patience):
            raise self._stuck()
        try:
            if not self._file.acquire(clocks.monotonic() + patience):
                raise self._stuck()
            try:
                note = self.read()
                if not note.saved:  # the next process has to know this host's token, whatever becomes of this one
                    self.save(note)
                holder = self._holder
                if holder is None or holder.token != note.token:
                    holder = Holder(note.token, self._seconds, clocks.awake_or_not, secrets.randbelow)
                    self._holder = holder
                holder.held = Held(note.epoch, note.until) if note.epoch else None
                yield holder, note
            finally:
                self._file.release()
        finally:
            self._thread.release()

    def _stuck(self) -> LockTimeout:
        return LockTimeout(
            f"the lease of stage {self._stage} is being looked at by a process of this host that stopped meanwhile",
            remedy=f"end it, or let it go on; `fuser {self._file.path}` names it",
        )

    def read(self) -> Note:
        boot = _boot()
        try:
            note = msgspec.json.decode(notes.read(self._path), type=Note)
        except (OSError, msgspec.MsgspecError):
            return Note(secrets.token_hex(16), boot)
        return note if note.boot == boot else Note(secrets.token_hex(16), boot, term=note.term)

    def write(self, holder: Holder, note: Note) -> None:
        note.epoch, note.until = (holder.held.epoch, holder.held.until) if holder.held is not None else (0, 0.0)
        self.save(note)

    def save(self, note: Note) -> None:
        note.saved = True
        temporary = self._path.with_suffix(f".{os.getpid()}")
        notes.write(temporary, msgspec.json.encode(note).decode())
        temporary.replace(self._path)

    @property
    def _path(self) -> Path:
        return self._folder / "lease.note"


@functools.lru_cache(1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
