"""One host's lease of one stage, shared by all its processes.

A lease belongs to a lock folder, so to all processes that the kernel's locks keep apart already. What the host knows of
it is a note in that folder, changed by one process at a time. Every process that has used the stage renews the lease in
turn while it lives, whichever finds that due. When all have ended, the last one gives the lease up. After a kill nobody
does: the next process of this host goes on with the lease, and other hosts take it over when its time is over.

A host keeps its lease between two tests, unless another host waits. Then it gives the lease up as soon as no process
uses the stage, and waits in line itself.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from random import random
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import LeaseLost, LockTimeout, StageGboError
from pytest_stagegbo.flock import FIRST_PAUSE, FairLock, FileLock
from pytest_stagegbo.forked import let_go_in_children
from pytest_stagegbo.leases.about import About, holder_text
from pytest_stagegbo.leases.note import HostNotes
from pytest_stagegbo.leases.protocol import SHARE, LeasesRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from pytest_stagegbo.leases.note import Note, Store
    from pytest_stagegbo.leases.protocol import Entry, Holder, Outcome

__all__ = ["HostLease"]

log = logging.getLogger("stagegbo.lease")

RENEWALS, LOOKS = 4, 12
"""How often, within its time, a lease is renewed, and somebody looks whether another host waits or has taken it."""
YIELD_SECONDS = 10.0  # how long processes that would use the stage wait for those that do, when another host waits
LONGEST_PAUSE = 1.0  # seconds between two looks of a host that waits; less than `protocol.TURN`
TRIES, AGAIN = 5, 0.1  # how often, and seconds between, when several hosts began at the same time
QUEUE_SECONDS = 1.0  # who waits for less draws no ticket


class HostLease:
    """The lease of one stage, as one process of this host uses it. Safe to share between threads.

    Args:
        folder: Of the stage's locks.
        stage: The stage's project.
        seconds: For which a lease counts.
        store: Makes the connection to the daemon.
        resettable: Containers that count as not finished when another host's process died with the stage.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        seconds: float,
        store: Callable[[], Store],
        resettable: Collection[str] = (),
    ) -> None:
        self._folder = folder
        self._stage = stage
        self.seconds = seconds
        self._make_store = store
        self._resettable = resettable
        self._begin()
        let_go_in_children(self)

    def _begin(self) -> None:
        self._entering = threading.RLock()
        self._uses = 0
        self._doing = ""
        """What this process uses the stage for, or has used it for last."""
        self._said = ""
        self._refused = False
        """Whether this client may not have leases."""
        self._term = 0
        self._until = float("-inf")
        self._use = FairLock(self._folder / "lease.use")
        self._member = FileLock(self._folder / "lease.members")
        self._session = FileLock(self._folder / "lease.session")
        self._notes = HostNotes(self._folder, self._stage, self.seconds)
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None

    let_go = _begin
    """In a forked child: threads are gone, and the parent goes on with the lease."""

    @functools.cached_property
    def _store(self) -> Store:
        return self._make_store()

    # -- use

    def enter(
        self, doing: str, deadline: float, waiting: Callable[[str], None] | None = None, *, session: bool = False
    ) -> None:
        """Have the lease until `leave`. May be entered several times; nothing is asked for while it is held already.

        Args:
            doing: What for, shown to those who wait.
            deadline: Of `clocks.monotonic`.
            waiting: Called once with who has it.
            session: It will be held for as long as a session lasts.

        Raises:
            LockTimeout: another host did not give it up in time.
            LeaseLost: this process has used the stage since before another host had it.
            StageGboError: the daemon does not answer.
        """
        with self._entering:
            if self._uses:
                self.check()
                self._uses += 1
                return
            self._share(deadline)
            self._doing = doing
            try:
                if not self._refused:
                    self._have(deadline, waiting)
                if session:
                    self._session.attempt(exclusive=False)
            except BaseException:
                self._use.release()
                raise
            self._uses = 1

    def leave(self) -> None:
        """Give up one use. The lease is kept for the next one."""
        with self._entering:
            if self._uses:
                self._uses -= 1
                if not self._uses:
                    self._session.release()
                    self._use.release()

    def check(self) -> None:
        """Make sure that a process that uses the stage may write to it.

        Raises:
            LeaseLost: another host has it, or may have it.
        """
        if self._uses and clocks.awake_or_not() >= self._until:
            self._confirm()

    def close(self) -> None:
        """This process needs the lease no more. The last process of the host gives it up."""
        with self._entering:
            if self._uses or self._keeper is None:
                return
            self._closing.set()
            self._keeper = None
            with contextlib.suppress(StageGboError, OSError), self._unused() as unused:
                if self._member.attempt() and unused:
                    with self._notes.turn() as (holder, note):
                        self._give_up(holder, note)
                        if self._store.serves_nothing():
                            self._store.carry_out(holder.wipe())
                            self._store.remove_project()
            self._member.release()
            self._closing = threading.Event()

    def wipe(self) -> None:
        """Remove what the daemon has of this stage's leases, unless another host has one. For after the stage's
        removal."""
        with self._entering, self._unused() as unused, self._notes.turn() as (holder, note):
            if unused:
                self._give_up(holder, note)
                self._store.carry_out(holder.wipe())

    def release(self, *, force: bool) -> Entry | None:
        """Give up the lease that nobody of this host uses, or take it from another host. Return what it was; None: the
        stage was free.

        Raises:
            LockTimeout: it is in use, or another host's and not to be taken by force.
        """
        with self._entering, self._unused() as unused, self._notes.turn() as (holder, note):
            self._store.carry_out(holder.look())
            last, own = holder.seen.last, holder.held is not None
            self._notes.write(holder, note)
            if last is None or last.free:
                return None
            if own and not unused:
                raise LockTimeout(
                    f"stage {self._stage} is in use on this host", seen=holder_text(last), remedy="end that process"
                )
            if own:
                self._give_up(holder, note)
            elif force:
                self._store.carry_out(holder.force(self._left(self._resettable).text()))
            else:
                raise LockTimeout(
                    f"stage {self._stage} is leased by another host",
                    seen=holder_text(last),
                    remedy="if that host is gone, `stagegbo release --force` takes the lease from it",
                )
            return last

    def is_own(self, entry: Entry) -> bool:
        """Whether a lease is this host's."""
        return entry.token == self._notes.read().token

    # -- having it

    def _share(self, deadline: float) -> None:
        """Tell this host's processes that the stage is in use. Whoever is about to give the lease up comes first,
        unless an ancestor of this process uses the stage and waits for it."""
        if self._use.acquire(min(clocks.monotonic() + FIRST_PAUSE, deadline), exclusive=False):
            return
        if self._use.own_holder() is not None and self._use.join():
            return
        if not self._use.acquire(deadline, exclusive=False):
            raise LockTimeout(
                f"stage {self._stage} was not free in time: this host is giving it up to another one that waits",
                remedy="run it again",
            )

    def _have(self, deadline: float, waiting: Callable[[str], None] | None) -> None:
        try:
            self._ensure(deadline, waiting)
        except LeasesRefused as error:  # its certificate is restricted to the stage's own project, perhaps
            log.warning("stage %s is used without a lease, so other hosts do not see it: %s", self._stage, error.seen)
            self._refused, self._until = True, float("inf")

    def _ensure(self, deadline: float, waiting: Callable[[str], None] | None) -> None:
        pause, tries = 0.02, TRIES
        while True:
            with self._notes.turn(deadline) as (holder, note):
                outcome: Outcome = "held"
                if not holder.may_write():
                    outcome = self._try(holder, note, queue=deadline - clocks.monotonic() > QUEUE_SECONDS)
                if holder.may_write():
                    break
                who = self._who(holder)
                tries -= outcome == "unknown"
                if clocks.monotonic() >= deadline and (outcome != "unknown" or not tries):
                    with contextlib.suppress(StageGboError):
                        self._store.carry_out(holder.leave_line())
                    raise LockTimeout(
                        f"stage {self._stage} is leased by another host",
                        seen=who,
                        remedy="wait for it, or end it there: a lease ends with its process. If that host is gone, "
                        f"the lease ends {self.seconds:g} s after its last renewal; `stagegbo release --force` "
                        "takes it at once",
                    )
            if waiting is not None:
                waiting(who)
                waiting = None
            left = deadline - clocks.monotonic()
            clocks.sleep(min(pause, left) if left > 0 else random() * AGAIN)
            pause = min(pause * 2, LONGEST_PAUSE)
        self._term, self._until = note.term, note.until
        self._join()

    def _join(self) -> None:
        """Renew the lease from now on, whenever it is due."""
        if self._keeper is None:
            self._member.attempt(exclusive=False)
            self._keeper = threading.Thread(
                target=self._keep, args=(self._closing,), name="stagegbo lease", daemon=True
            )
            self._keeper.start()

    def _try(self, holder: Holder, note: Note, *, queue: bool = False) -> Outcome:
        """Take or renew the lease, and write down what came of it."""
        had = holder.held is not None
        now = clocks.now()
        self._said = self._doing
        about = About.of(self._doing, since=note.since if had else now, until=now + self.seconds)
        try:
            outcome = self._store.carry_out(holder.take(about.text(), queue=queue))
        finally:
            if holder.held is not None and not had:
                note.term += 1
                note.since = now
                self._follow(holder)
            self._notes.write(holder, note)
        return outcome

    def _follow(self, holder: Holder) -> None:
        """Take over what another host knew of the stage's state and this one does not."""
        before = holder.before
        if before is not None and before.token == holder.token:
            return
        (self._folder / "stage.clean").unlink(missing_ok=True)
        left: Collection[str] = ()
        if before is not None:
            left = About.read(before.about).left if before.free and before.about else self._resettable
        for name in left:
            if name in self._resettable:
                (self._folder / f"{name}.unfinished").touch(mode=0o660)

    def _give_up(self, holder: Holder, note: Note) -> None:
        if holder.held is None:
            return
        steps = holder.release(self._left().text())
        note.epoch = 0
        self._notes.save(note)  # before anybody else can have it
        with contextlib.suppress(StageGboError):
            self._store.carry_out(steps)

    def _left(self, names: Collection[str] | None = None) -> About:
        if names is None:
            names = [path.stem for path in sorted(self._folder.glob("*.unfinished"))]
        now = clocks.now()
        return About.of("", since=now, until=now, left=tuple(names))

    def _confirm(self) -> None:
        """Renew a lease whose time seems to be over. It goes on if nobody else had it meanwhile."""
        seen = ""
        try:
            with self._notes.turn() as (holder, note):
                if note.term == self._term and holder.held is not None:
                    if not holder.may_write():
                        self._try(holder, note)
                    if holder.may_write():
                        self._until = note.until
                        return
                seen = self._who(holder)
        except LeaseLost:
            raise
        except StageGboError as error:
            seen = error.text
        raise LeaseLost(
            f"this host has lost its lease of stage {self._stage}, so nothing more is written to it",
            seen=seen,
            remedy="run it again: this host was suspended, or cut off from the daemon, for longer than the lease's "
            f"time (timeouts.lease, {self.seconds:g} s)",
        )

    def _who(self, holder: Holder) -> str:
        last = holder.seen.last
        if last is None or last.token == holder.token:
            return "nobody else has it"
        if last.free:
            return "it is free now, and another host had it or comes first"
        return holder_text(last)

    # -- keeping it

    def _keep(self, closing: threading.Event) -> None:
        while not closing.wait(self.seconds / LOOKS):
            with contextlib.suppress(StageGboError, OSError):  # without an answer the lease ends by itself
                if self._tend() and not closing.is_set():
                    self._yield()

    def _tend(self) -> bool:
        """Renew the lease if that is due, else look at it. Return whether another host waits."""
        note = self._notes.read()
        self._follow_note(note)
        if not note.epoch or clocks.awake_or_not() - note.looked < self.seconds / LOOKS / 2:
            return False
        with self._notes.turn() as (holder, note):
            if holder.held is None:
                return False
            now = clocks.awake_or_not()
            due = now >= holder.held.until - self.seconds * (SHARE - 1 / RENEWALS)
            if not due:
                self._store.carry_out(holder.look())
                note.looked = now
                self._notes.write(holder, note)
            if holder.held is not None and (due or (holder.is_wanted and self._doing != self._said)):
                self._try(holder, note)  # those who wait see what for
            self._follow_note(note)
            return holder.held is not None and holder.is_wanted

    def _follow_note(self, note: Note) -> None:
        if note.term == self._term:
            self._until = note.until if note.epoch else float("-inf")

    def _yield(self) -> None:
        """Give the lease up once no process of this host uses the stage, unless one has it for its session."""
        session = FileLock(self._folder / "lease.session")
        if not session.attempt():
            return
        session.release()
        with self._unused(YIELD_SECONDS) as unused:
            if unused:
                with self._notes.turn() as (holder, note):
                    self._give_up(holder, note)

    @contextlib.contextmanager
    def _unused(self, seconds: float = 0.0) -> Iterator[bool]:
        """Whether no process of this host uses the stage within this time. Then none begins to while the block runs."""
        use = FairLock(self._folder / "lease.use")
        unused = use.acquire(clocks.monotonic() + seconds, exclusive=True)
        try:
            yield unused
        finally:
            use.release()
