"""How hosts that share nothing but a daemon agree on who has a stage. Pure: clock and chance come from outside.

A lease is a named object of the daemon, an entry, whose name ends with a number, its epoch. To create an entry is the
only step that two hosts can't both succeed with, so nothing else decides:

- Whoever wants the stage looks at the entries, creates the one with the next epoch, and looks again. The lease counts
  only if the second look shows that entry, the one before it, and none that the first look had not shown. What the
  daemon answered to the creation does not matter, so a lost answer does no harm, and neither does a request that is
  carried out much later.
- To renew a lease is to do the same again. An entry never changes but for `free`, which its holder sets in the end.
- A host may write for a part (`SHARE`) of the lease's time, by its own clock, from before the first look. Others may
  create the next epoch when they have seen an entry unchanged for the whole time, by their own clocks. What the clocks
  show does not matter, only that they run equally fast within that share.
- Entries are deleted in the order of their epochs, and the last one only with the stage itself. The first entry of a
  stage has a random epoch. So a request from an earlier life of the stage hits no entry of a later one.

Tickets are for fairness only. Who finds the stage taken draws the next number, and the lowest number has the first try.
A ticket that does not use its turn within `TURN` seconds is removed by the next one in line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from pytest_stagegbo.errors import ServerRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import TypeVar

    T = TypeVar("T")
    Steps = Generator["Request", Any, T]
    """Yields requests. Each is answered with what it found, `Look` with `Seen`, or with None if the answer was lost."""

__all__ = [
    "SHARE",
    "TURN",
    "Create",
    "Delete",
    "DropTicket",
    "Entry",
    "Free",
    "Held",
    "Holder",
    "LeasesRefused",
    "Look",
    "Outcome",
    "Request",
    "Seen",
    "Ticket",
    "TicketRequest",
]

SHARE = 0.8
"""Part of a lease's time for which its holder believes in it."""
TURN = 3.0
"""Seconds for which the first in line may leave a stage untaken."""
FIRST_EPOCHS = 10**9
"""The first epoch of a stage is below this."""

Outcome = Literal["held", "busy", "lost", "unknown"]
"""`unknown`: it can't be told, or several began at the same time, and none has it. What was believed before still holds
until its time is over."""


class LeasesRefused(ServerRefused):
    """This client may use the stage, and not what has its leases."""


class Entry(Struct, frozen=True):
    """One lease of a stage, as the daemon has it."""

    epoch: int
    token: str
    """Of the host that created it."""
    seconds: float
    """For which it counts, unless it is followed by another."""
    free: bool = False
    """Whether its holder has given it up."""
    about: str = ""
    """For people."""


class Ticket(Struct, frozen=True):
    """A place in the line for a stage."""

    number: int
    token: str


class Seen(Struct, frozen=True):
    """What a look has found."""

    entries: tuple[Entry, ...] = ()
    """By epoch."""
    tickets: tuple[Ticket, ...] = ()
    """By number."""

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None


class Look(Struct, frozen=True):
    """Read all entries and tickets of the stage, as they are at one moment."""


class Create(Struct, frozen=True):
    """Create an entry, unless there is one of that epoch."""

    entry: Entry


class Free(Struct, frozen=True):
    """Mark an entry as given up, if it is there."""

    entry: Entry


class Delete(Struct, frozen=True):
    """Delete an entry. Answered with True once it is not there."""

    epoch: int


class TicketRequest(Struct, frozen=True):
    """Create a ticket, unless there is one of that number."""

    ticket: Ticket


class DropTicket(Struct, frozen=True):
    """Delete a ticket, if it is there."""

    number: int


Request = Look | Create | Free | Delete | TicketRequest | DropTicket


class Held(Struct, frozen=True):
    """A lease as its host knows it."""

    epoch: int
    until: float
    """By the host's own clock. Later it may be another's."""


class Holder:
    """One host's knowledge of the lease of one stage.

    Args:
        token: Identifies the host; random.
        seconds: For which its leases count.
        clock: Seconds, steadily rising, also while the machine sleeps.
        chance: A random number below its argument.
    """

    def __init__(self, token: str, seconds: float, clock: Callable[[], float], chance: Callable[[int], int]) -> None:
        self.token = token
        self.seconds = seconds
        self.held: Held | None = None
        """The lease that was confirmed last; None: there is none, or it is lost."""
        self.seen = Seen()
        """What the last look found."""
        self.before: Entry | None = None
        """The entry that the last `take` followed, or found in its way."""
        self._clock = clock
        self._chance = chance
        self._since: dict[object, float] = {}
        """By what was seen, since when it has been so without a break."""

    def may_write(self) -> bool:
        """Whether nobody else can have the lease at this moment."""
        return self.held is not None and self._clock() < self.held.until

    def take(self, about: str = "", *, queue: bool = False) -> Steps[Outcome]:
        """Try once to get the lease, or to renew the one that is held.

        Args:
            queue: Draw a ticket if it can't be had.
        """
        began = self._clock()
        seen: Seen | None = yield Look()
        if seen is None:
            return "unknown"
        self._note(seen)
        last, held = seen.last, self.held
        self.before = last
        if held is not None and not self._continues(held, last):
            self.held = held = None
            return "lost"
        if held is None and not (yield from self._has_turn(seen)):
            if queue and not self._own_tickets(seen):
                number = seen.tickets[-1].number + 1 if seen.tickets else 1
                yield TicketRequest(Ticket(number, self.token))
            return "busy"
        epoch = last.epoch + 1 if last is not None else 1 + self._chance(FIRST_EPOCHS)
        yield Create(Entry(epoch, self.token, self.seconds, about=about))
        after: Seen | None = yield Look()
        if after is None:
            return "unknown"
        self._note(after)
        if not self._counts(epoch, seen, after):
            own = self.held
            if own is not None and not self._continues(own, after.last):
                self.held = own = None
                return "lost"
            if own is None and any((each.epoch, each.token) == (epoch, self.token) for each in after.entries):
                yield Free(Entry(epoch, self.token, self.seconds, free=True))  # nobody has to wait for its time
                return "unknown"
            return "busy" if own is None else "unknown"
        self.held = Held(epoch, began + self.seconds * SHARE)
        yield from self._tidy(after, epoch)
        return "held"

    def release(self, about: str = "") -> Steps[None]:
        """Give the lease up. Nothing is believed from here on."""
        held, self.held = self.held, None
        if held is not None:
            yield Free(Entry(held.epoch, self.token, self.seconds, free=True, about=about))

    def force(self, about: str = "") -> Steps[None]:
        """Take the lease from whoever has it, and leave it free. One that lives finds out when it looks next."""
        seen: Seen | None = yield Look()
        if seen is not None and seen.last is not None and not seen.last.free:
            epoch = seen.last.epoch + 1
            yield Create(Entry(epoch, self.token, self.seconds, free=True, about=about))
            after: Seen | None = yield Look()
            if after is not None and any(entry.epoch >= epoch for entry in after.entries):
                yield from _delete(entry for entry in after.entries if entry.epoch < epoch)

    def wipe(self) -> Steps[None]:
        """Delete all entries, unless another host has the stage. For after the stage's removal."""
        seen: Seen | None = yield Look()
        if seen is not None and all(entry.free or entry.token == self.token for entry in seen.entries):
            yield from _delete(seen.entries)

    def leave_line(self) -> Steps[None]:
        """Give up waiting."""
        for ticket in self._own_tickets(self.seen):
            yield DropTicket(ticket.number)

    def look(self) -> Steps[Outcome]:
        """See whether the lease that is held is still one's own, without renewing it."""
        seen: Seen | None = yield Look()
        if seen is None:
            return "unknown"
        self._note(seen)
        if self.held is not None and not self._continues(self.held, seen.last):
            self.held = None
            return "lost"
        return "held" if self.held is not None else "busy"

    @property
    def is_wanted(self) -> bool:
        """Whether another host waited for the stage when it was looked at last."""
        return any(ticket.token != self.token for ticket in self.seen.tickets)

    # -- what was seen

    def _continues(self, held: Held, last: Entry | None) -> bool:
        """Whether nobody has had the stage since. Entries below one's own are of hosts that saw it and gave up."""
        return last is not None and last.token == self.token and last.epoch >= held.epoch and not last.free

    def _counts(self, epoch: int, before: Seen, after: Seen) -> bool:
        own = any(entry.epoch == epoch and entry.token == self.token for entry in after.entries)
        known = {(entry.epoch, entry.token) for entry in before.entries}
        there = {(entry.epoch, entry.token) for entry in after.entries}
        strangers = {each for each in there - known if each[1] != self.token}
        last = before.last
        return own and not strangers and (last is None or (last.epoch, last.token) in there)

    def _has_turn(self, seen: Seen) -> Steps[bool]:
        """Whether no other host can have the stage, and none that waits comes first."""
        now = self._clock()
        for entry in seen.entries:
            if entry.token != self.token and not entry.free:
                time = entry.seconds or self.seconds
                if now - self._since[entry.epoch, entry.token] < time:
                    return False
        own = [ticket.number for ticket in self._own_tickets(seen)]
        ahead = [each for each in seen.tickets if each.token != self.token and not (own and each.number > min(own))]
        if not ahead:
            return True
        first = ahead[0]
        if now - self._since.setdefault(("turn", seen.last, first), now) < TURN:
            return False
        yield DropTicket(first.number)
        return len(ahead) == 1

    def _own_tickets(self, seen: Seen) -> list[Ticket]:
        return [ticket for ticket in seen.tickets if ticket.token == self.token]

    def _note(self, seen: Seen) -> None:
        self.seen = seen
        now = self._clock()
        keys: list[object] = [(entry.epoch, entry.token) for entry in seen.entries]
        if seen.tickets:
            keys += [("turn", seen.last, ticket) for ticket in seen.tickets]
        known = self._since
        self._since = {key: known[key] for key in keys if key in known}
        for entry in seen.entries:
            self._since.setdefault((entry.epoch, entry.token), now)

    def _tidy(self, seen: Seen, epoch: int) -> Steps[None]:
        yield from _delete(entry for entry in seen.entries if entry.epoch < epoch)
        for ticket in self._own_tickets(seen):
            yield DropTicket(ticket.number)


def _delete(entries: Iterable[Entry]) -> Steps[None]:
    """Delete entries in the order of their epochs. One that can't be deleted keeps those after it."""
    for entry in entries:
        if (yield Delete(entry.epoch)) is None:
            return
