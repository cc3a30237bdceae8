"""Clones that are frozen while a quiet test runs, and their going on, whatever becomes of the test's process.

Locks say who wants a container frozen and who uses it (`locks.py`, quiet holders): the kernel releases those of a
process that dies. What it has frozen stays so, with a note beside the locks, and goes on before somebody else uses it:
whoever takes a container's lock calls `thaw`. So a run of quiet tests freezes a container once, and lets it go on once.
"""

from __future__ import annotations

import contextlib
import json
import os
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks, notes
from pytest_stagegbo.errors import (
    LockTimeout,
    MissingRequirement,
    NotHeld,
    OperationFailed,
    ServerRefused,
    StageGboError,
)
from pytest_stagegbo.flock import FileLock
from pytest_stagegbo.incus.freezegroup import freeze_group
from pytest_stagegbo.locks import AWAKE
from pytest_stagegbo.processes import born
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance, Writer

__all__ = ["Freezer"]

LOOK_AGAIN = 1.0
"""Seconds for which it is believed that a frozen container still is: somebody may let it go on, or restart it."""
BRIEFLY = 0.05
"""Seconds to wait for others at a container's lock before it is left to them to let it go on."""
WANTED, FROZEN = "wanted", "frozen"


class Freezer:
    """Freezes and thaws clones of one stage, for a quiet test one after the other over all processes: at once they can
    take a second. The disk guard does not wait for that."""

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine
        self._looked: dict[str, float] = {}
        """By container, when it was seen frozen."""
        self._inits: dict[str, int] = {}

    def freeze(self, names: Iterable[str], doing: str) -> None:
        """Freeze clones. The caller holds their locks as a quiet one. What does not run is left alone.

        Raises:
            StageGboError: a clone goes on.
        """
        with self._one_at_a_time():
            for name in sorted(names):
                if not self._is_frozen(name):
                    self._freeze(name, doing)

    def prepare(self, names: Iterable[str]) -> None:
        """Find out what `freeze_now` needs, while the daemon has time.

        Raises:
            StageGboError: the daemon does not say.
        """
        for name in names:
            if name not in self._inits:
                self._inits[name] = self._engine.reader.init(self._engine.settings.project, name)

    def freeze_now(self, names: Iterable[str], doing: str) -> tuple[str, ...]:
        """Freeze clones in the kernel, where this process may. Takes milliseconds, waits for nobody and never raises.

        Returns:
            Those for `let_go`. The caller has the daemon freeze them next, which does not know of it yet. Should this
            process end before, whoever uses them next lets them go on.
        """
        held = []
        for name in names:
            with contextlib.suppress(StageGboError, OSError):
                if not self._has_note(name):
                    self._write(name, WANTED, doing)
                    held.append(name)
                self._freeze_group(name)
        return tuple(held)

    def let_go(self, names: Iterable[str]) -> None:
        """Forget that clones are frozen: the daemon knows, or has stopped them, or they go on."""
        for name in names:
            self._forget(name)

    def thaw(self, names: Collection[str] | None = None) -> None:
        """Let clones go on that a test has frozen; None: all of them. The caller holds locks that keep quiet tests away
        from them.

        Raises:
            StageGboError: a clone stays frozen.
        """
        left = [name for name in (self._engine.settings.containers if names is None else names) if self._has_note(name)]
        if left:
            from pytest_stagegbo.apply.removal import patiently  # most processes find nothing frozen

            with self._one_at_a_time():
                for name in left:
                    patiently(lambda name=name: self._thaw(name), self._engine.settings.timeouts.operation)  # type: ignore[misc]

    def release(self, names: Iterable[str]) -> None:
        """Let clones go on that this process had frozen, unless others use them or want them frozen: those do it
        then."""
        for name in sorted(names):
            if self._has_note(name):
                lock = self._engine.lock(BRIEFLY)
                with contextlib.suppress(LockTimeout):
                    lock.acquire("letting it go on", shared=(name,), exclusive=(), keep_note=True)
                    lock.release()

    def wake(self, name: str) -> None:
        """Have a clone go on, once the quiet tests have ended that have it frozen.

        Raises:
            NotHeld: this process's own test has it frozen.
            LockTimeout: such tests did not end in time.
        """
        if not self._has_note(name):
            return
        lock = self._engine.lock()
        try:
            with lock.hold(f"using {name}", self._engine.waiting, shared=(name,), exclusive=(), keep_note=True):
                pass
        except LockTimeout as error:
            if self._read(name).get("pid") != os.getpid():
                raise
            raise NotHeld(
                f"{name} is frozen while this test runs, which is quiet and does not ask for it",
                seen=error.seen,
                remedy=f"name it in the test: the fixture stage_{name}, or stage_gbo",
            ) from None

    @contextlib.contextmanager
    def none(self) -> Iterator[None]:
        """No clone is frozen while the block runs. Quiet tests are waited for, and wait."""
        with self._engine.lock().hold("verify", self._engine.waiting, shared=(AWAKE,), exclusive=(), keep_note=True):
            yield

    def frozen(self) -> dict[str, str]:
        """By clone that was frozen for a test, which test, and of which process."""
        try:
            found = {name: self._read(name) for name in self._engine.settings.containers if self._has_note(name)}
        except MissingRequirement:  # without locks, no test has frozen anything
            return {}
        return {name: _text(note) for name, note in found.items()}

    # -- one clone

    def _is_frozen(self, name: str) -> bool:
        """Whether it is frozen for a test already."""
        note = self._read(name) if self._has_note(name) else {}
        if note.get("state") != FROZEN:
            return False
        if clocks.monotonic() - self._looked.get(name, float("-inf")) < LOOK_AGAIN:
            return True
        clone = self._clone(name)
        if clone is None or clone.status != "Frozen":
            return False
        self._looked[name] = clocks.monotonic()
        return True

    def _freeze(self, name: str, doing: str) -> None:
        writer = self._engine.clone_writer()
        if name not in self._inits and not self._engine.clone(name).is_running:
            return
        self._write(name, WANTED, doing)
        try:
            self._freeze_group(name)
            self._set_frozen(writer, name)
        except (OperationFailed, ServerRefused):
            clone = self._clone(name)
            if clone is not None and clone.is_running:
                raise
            self._forget(name)  # it does not run, or somebody has paused it
            return
        self._write(name, FROZEN, doing)
        self._looked[name] = clocks.monotonic()

    def _set_frozen(self, writer: Writer, name: str) -> None:
        from pytest_stagegbo.apply.removal import patiently

        patiently(lambda: writer.set_state(name, "freeze"), self._engine.settings.timeouts.operation)

    def _freeze_group(self, name: str) -> None:
        project, host = self._engine.settings.project, self._engine.reader.host()
        for _ in range(2):  # it may have been started again since
            if name not in self._inits:
                self._inits[name] = self._engine.reader.init(project, name)
            if freeze_group(host, project, name, self._inits[name]):
                return
            del self._inits[name]

    def _thaw(self, name: str) -> None:
        if not self._has_note(name):
            return
        writer = self._writer()
        if self._read(name).get("state") != FROZEN:  # its process died: the kernel may know of it, and not the daemon
            with contextlib.suppress(OperationFailed, ServerRefused):
                self._set_frozen(writer, name)
        try:
            writer.set_state(name, "unfreeze")
        except (OperationFailed, ServerRefused):
            clone = self._clone(name)
            if clone is not None and clone.status == "Frozen":
                raise
        self._forget(name)

    def _writer(self) -> Writer:
        """Also where production is not to be seen: a stage can be removed then, too."""
        try:
            return self._engine.clone_writer()
        except StageGboError:
            return self._engine.writer(self._engine.facts(need_source=False))

    def _clone(self, name: str) -> Instance | None:
        return self._engine.reader.instance(self._engine.settings.project, name)

    # -- notes

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with FileLock(self._folder / "freezing.flock"):
            yield

    @cached_property
    def _folder(self) -> Path:
        return self._engine.lock().folder

    @cached_property
    def _place(self) -> str:
        return str(self._folder)

    def _note(self, name: str) -> Path:
        return self._folder / f"{name}.frozen"

    def _has_note(self, name: str) -> bool:
        return os.path.exists(f"{self._place}/{name}.frozen")  # noqa: PTH110 (quicker, and done at each lock)

    def _write(self, name: str, state: str, doing: str) -> None:
        pid = os.getpid()
        text = json.dumps({"state": state, "pid": pid, "born": born(pid), "doing": doing})
        temporary = self._note(name).with_suffix(f".{pid}")
        notes.write(temporary, text)
        temporary.replace(self._note(name))

    def _read(self, name: str) -> dict[str, object]:
        try:
            found = json.loads(notes.read(self._note(name)))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _forget(self, name: str) -> None:
        self._note(name).unlink(missing_ok=True)
        self._looked.pop(name, None)


def _text(note: dict[str, object]) -> str:
    pid = note.get("pid")
    if not isinstance(pid, int):
        return "a test"
    ended = "" if born(pid) == note.get("born") else ", which has ended"
    return printable(f"process {pid}{ended} ({note.get('doing')})")
