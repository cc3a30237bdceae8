"""The protocol of leases, against a daemon that carries requests out late, twice or never, and clocks that disagree."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pytest_stagegbo.leases.protocol import (
    SHARE,
    TURN,
    Create,
    Delete,
    DropTicket,
    Entry,
    Free,
    Held,
    Holder,
    Look,
    Request,
    Seen,
    Ticket,
    TicketRequest,
)

if TYPE_CHECKING:
    from collections.abc import Generator

SECONDS = 60.0
EXAMPLES = int(os.environ.get("STAGEGBO_LEASE_EXAMPLES", "100"))
"""Of each machine. Many more were tried; see the tests below for what they found."""


class Daemon:
    """Has entries and tickets by name, as Incus does. Each request is carried out at one moment."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.tickets: dict[int, Ticket] = {}

    def do(self, request: Request) -> Any:
        if isinstance(request, Look):
            entries = tuple(self.entries[each] for each in sorted(self.entries))
            return Seen(entries, tuple(self.tickets[each] for each in sorted(self.tickets)))
        if isinstance(request, Create):
            self.entries.setdefault(request.entry.epoch, request.entry)
        elif isinstance(request, Free):
            if request.entry.epoch in self.entries:  # whosever it is: Incus does not look
                self.entries[request.entry.epoch] = request.entry
        elif isinstance(request, Delete):
            self.entries.pop(request.epoch, None)
        elif isinstance(request, TicketRequest):
            self.tickets.setdefault(request.ticket.number, request.ticket)
        else:
            assert isinstance(request, DropTicket)
            self.tickets.pop(request.number, None)
        return True


def carry_out(daemon: Daemon, steps: Generator[Request, Any, Any]) -> Any:
    """Carry out each request at once; what the steps return."""
    answer: Any = None
    try:
        while True:
            answer = daemon.do(steps.send(answer))
    except StopIteration as end:
        return end.value


class Host:
    """A host with a clock of its own, which runs at its own rate from its own beginning."""

    def __init__(self, name: str, machine: Machine, offset: float, rate: float) -> None:
        self.name = name
        self.machine = machine
        self.offset = offset
        self.rate = rate
        self.holder = self.new_holder()
        self.steps: Generator[Request, Any, Any] | None = None
        self.waits_for: Request | None = None
        """The request that its steps are at."""

    def clock(self) -> float:
        return self.offset + self.machine.now * self.rate

    def new_holder(self) -> Holder:
        return Holder(self.name, SECONDS, self.clock, self.machine.chance)

    def go_on(self, answer: Any) -> None:
        assert self.steps is not None
        try:
            self.waits_for = self.steps.send(answer)
        except StopIteration:
            self.steps = self.waits_for = None


HOSTS = st.integers(0, 2)


def destroyed(holder: Holder) -> Generator[Request, Any, None]:
    """A stage is removed by who has it."""
    yield from holder.release()
    yield from holder.wipe()


class Machine(RuleBasedStateMachine):
    """Three hosts and one daemon. Any request may be under way for any time, be carried out again, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.daemon = Daemon()
        self.under_way: list[Request] = []
        self._chances = itertools.count(1)
        self._order = 1
        self.hosts: list[Host] = []
        self.queue = False

    @initialize(
        offsets=st.lists(st.sampled_from([0.0, 3600.0, -3600.0, 1e9]), min_size=3, max_size=3),
        rates=st.lists(st.sampled_from([1.0, 0.95, 1.05]), min_size=3, max_size=3),
        order=st.sampled_from([1, -1]),
    )
    def begin(self, offsets: list[float], rates: list[float], order: int) -> None:
        self._order = order
        self.hosts = [Host(f"host {n}", self, offsets[n], rates[n]) for n in range(3)]

    def chance(self, below: int) -> int:
        """No number twice, in rising or falling order."""
        return below // 2 + self._order * next(self._chances) * 1000

    @rule(seconds=st.sampled_from([20.0, 40.0, 65.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(n=HOSTS, doing=st.sampled_from(["take", "take", "take", "release", "destroy"]), at_once=st.booleans())
    def host_acts(self, n: int, doing: str, at_once: bool) -> None:
        """Take or renew the lease, give it up, or give it up and delete every entry; at once, or step by step."""
        host = self.hosts[n]
        if host.steps is not None:
            return
        if doing == "destroy" and not host.holder.may_write():
            return
        holder = host.holder
        if doing == "take":
            host.steps = holder.take(queue=self.queue)
        else:
            host.steps = holder.release() if doing == "release" else destroyed(holder)
        host.go_on(None)
        while at_once and host.waits_for is not None:
            host.go_on(self.daemon.do(host.waits_for))

    @rule(order=st.lists(HOSTS, min_size=4, max_size=12))
    def hosts_take_at_the_same_time(self, order: list[int]) -> None:
        """One request each, in this order."""
        for n in order:
            host = self.hosts[n]
            if host.waits_for is not None:
                host.go_on(self.daemon.do(host.waits_for))
            else:
                host.steps = host.holder.take(queue=self.queue)
                host.go_on(None)
            self.one_host_at_most_may_write()

    @rule(n=HOSTS, what=st.sampled_from(["answered", "answered", "answered late", "lost", "repeated"]))
    def request(self, n: int, what: str) -> None:
        """A request is carried out and answered; or what it found is old when it comes; or there is no answer, and it
        is carried out later, or never, and perhaps once more after that."""
        host = self.hosts[n]
        if host.waits_for is None:
            return
        if what in {"lost", "repeated"}:
            if not isinstance(host.waits_for, Look):
                self.under_way += [host.waits_for] * (2 if what == "repeated" else 1)
            host.go_on(None)
            return
        found = self.daemon.do(host.waits_for)
        self.now += 30.0 if what == "answered late" else 0.0
        host.go_on(found)

    @rule(data=st.data())
    @precondition(lambda self: bool(self.under_way))
    def late_request_is_carried_out(self, data: st.DataObject) -> None:
        self.daemon.do(self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1))))

    @rule(n=HOSTS, knows_its_lease=st.booleans())
    def process_is_killed(self, n: int, knows_its_lease: bool) -> None:
        """The next process of that host has its token, and perhaps a note of the lease."""
        host = self.hosts[n]
        if host.waits_for is not None:
            self.under_way.append(host.waits_for)
        held = host.holder.held if knows_its_lease else None
        host.holder, host.steps, host.waits_for = host.new_holder(), None, None
        host.holder.held = held

    @invariant()
    def one_host_at_most_may_write(self) -> None:
        writers = [host.name for host in self.hosts if host.holder.may_write()]
        assert len(writers) <= 1, (writers, self.daemon.entries)


class Queueing(Machine):
    """The same, where all draw tickets."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = True


for each in (Machine, Queueing):
    each.TestCase.settings = hypothesis_settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
TestMachine = Machine.TestCase
TestQueueing = Queueing.TestCase


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


def holder(name: str, clock: Clock) -> Holder:
    return Holder(name, SECONDS, clock, lambda _: 6)


def test_the_first_one_has_it_and_the_second_waits_for_the_whole_time(clock: Clock, daemon: Daemon) -> None:
    first, second = holder("a", clock), holder("b", clock)
    assert carry_out(daemon, first.take()) == "held"
    assert first.held == Held(7, 1000 + SECONDS * SHARE)
    assert carry_out(daemon, second.take()) == "busy"
    clock.now += SECONDS * SHARE
    assert not first.may_write()
    assert carry_out(daemon, second.take()) == "busy"
    clock.now += SECONDS * (1 - SHARE)
    assert carry_out(daemon, second.take()) == "held"
    assert list(daemon.entries) == [8]
    assert carry_out(daemon, first.take()) == "lost"


def test_a_lease_that_is_renewed_is_nobody_elses(clock: Clock, daemon: Daemon) -> None:
    first, second = holder("a", clock), holder("b", clock)
    assert carry_out(daemon, first.take()) == "held"
    for _ in range(20):
        clock.now += SECONDS / 4
        assert carry_out(daemon, second.take()) == "busy"
        assert carry_out(daemon, first.take()) == "held"
        assert first.may_write()
    assert len(daemon.entries) == 1


def test_one_that_nobody_took_meanwhile_goes_on(clock: Clock, daemon: Daemon) -> None:
    """A laptop that slept for hours."""
    first = holder("a", clock)
    assert carry_out(daemon, first.take()) == "held"
    clock.now += 3600 * 8
    assert not first.may_write()
    assert carry_out(daemon, first.take()) == "held"


def test_one_that_is_free_is_taken_at_once(clock: Clock, daemon: Daemon) -> None:
    first, second = holder("a", clock), holder("b", clock)
    carry_out(daemon, first.take())
    carry_out(daemon, first.release())
    assert not first.may_write()
    assert carry_out(daemon, second.take()) == "held"


def test_a_claim_whose_answer_was_lost_is_known_as_ones_own(clock: Clock, daemon: Daemon) -> None:
    first = holder("a", clock)
    steps = first.take()
    daemon.do(steps.send(daemon.do(next(steps))))
    steps.send(None)
    with pytest.raises(StopIteration, match="unknown"):
        steps.send(None)
    assert daemon.entries[7].token == "a"
    assert carry_out(daemon, first.take()) == "held"


def test_who_waits_comes_in_turn(clock: Clock, daemon: Daemon) -> None:
    first, second, third = (holder(name, clock) for name in "abc")
    carry_out(daemon, first.take())
    carry_out(daemon, third.take(queue=True))
    carry_out(daemon, second.take(queue=True))
    assert first.is_wanted is False
    carry_out(daemon, first.look())
    assert first.is_wanted
    carry_out(daemon, first.release())
    assert carry_out(daemon, second.take(queue=True)) == "busy"
    assert carry_out(daemon, first.take(queue=True)) == "busy"
    assert carry_out(daemon, third.take(queue=True)) == "held"
    carry_out(daemon, third.release())
    assert carry_out(daemon, first.take(queue=True)) == "busy"
    assert carry_out(daemon, second.take(queue=True)) == "held"


def test_who_died_in_the_line_loses_its_turn(clock: Clock, daemon: Daemon) -> None:
    first, second, dead = (holder(name, clock) for name in "abc")
    carry_out(daemon, first.take())
    carry_out(daemon, dead.take(queue=True))
    carry_out(daemon, second.take(queue=True))
    carry_out(daemon, first.release())
    assert carry_out(daemon, second.take(queue=True)) == "busy"
    clock.now += TURN
    assert carry_out(daemon, second.take(queue=True)) == "held"
    assert not daemon.tickets


def test_who_gives_up_leaves_the_line(clock: Clock, daemon: Daemon) -> None:
    first, second = holder("a", clock), holder("b", clock)
    carry_out(daemon, first.take())
    carry_out(daemon, second.take(queue=True))
    carry_out(daemon, second.take(queue=True))
    assert len(daemon.tickets) == 1
    carry_out(daemon, second.leave_line())
    assert not daemon.tickets


# -- requests that are carried out late


def until_create(daemon: Daemon, steps: Generator[Request, Any, Any]) -> Request:
    """Carry out the first look; what is to be created then."""
    request = steps.send(daemon.do(next(steps)))
    assert isinstance(request, Create)
    return request


def given_up(daemon: Daemon, steps: Generator[Request, Any, Any]) -> bool:
    """Whether the second look shows that a claim does not count, so that nobody has to wait for its time."""
    request = steps.send(daemon.do(Look()))
    daemon.do(request)
    with pytest.raises(StopIteration, match="unknown"):
        steps.send(True)
    return isinstance(request, Free) and daemon.entries[request.entry.epoch].free


def test_a_claim_that_comes_after_the_stage_was_destroyed_and_taken_does_not_count(
    clock: Clock, daemon: Daemon
) -> None:
    first, late = holder("a", clock), holder("b", clock)
    carry_out(daemon, first.take())
    carry_out(daemon, first.release())
    steps = late.take()
    request = until_create(daemon, steps)
    carry_out(daemon, first.wipe())
    third = Holder("c", SECONDS, clock, lambda _: 1)
    assert carry_out(daemon, third.take()) == "held"
    daemon.do(request)
    assert steps.send(True) == Look()
    assert given_up(daemon, steps)
    assert third.may_write()
    assert not late.may_write()


def test_of_two_that_find_nothing_one_has_it(clock: Clock, daemon: Daemon) -> None:
    first, second = holder("a", clock), Holder("b", SECONDS, clock, lambda _: 3)
    steps = second.take()
    request = until_create(daemon, steps)
    assert carry_out(daemon, first.take()) == "held"
    daemon.do(request)
    assert steps.send(True) == Look()
    assert given_up(daemon, steps)
    assert first.may_write()


def test_a_claim_that_is_late_does_not_count_once_the_entry_before_it_is_gone(clock: Clock, daemon: Daemon) -> None:
    """Otherwise a late deletion of an entry of the same name could hit it."""
    first, late = holder("a", clock), holder("b", clock)
    carry_out(daemon, first.take())
    carry_out(daemon, first.release())
    steps = late.take()
    request = until_create(daemon, steps)
    carry_out(daemon, first.wipe())
    assert not daemon.entries
    daemon.do(request)
    assert steps.send(True) == Look()
    assert given_up(daemon, steps)


def test_a_lease_counts_from_before_the_first_look(clock: Clock, daemon: Daemon) -> None:
    """Others may have seen it since then."""
    first, second = holder("a", clock), holder("b", clock)
    steps = first.take()
    daemon.do(until_create(daemon, steps))
    carry_out(daemon, second.take())
    clock.now += SECONDS - 1
    assert steps.send(True) == Look()
    found = daemon.do(Look())
    with pytest.raises(StopIteration, match="held"):
        steps.send(found)
    assert not first.may_write()
    clock.now += 1
    assert carry_out(daemon, second.take()) == "held"


def test_another_life_of_a_stage_begins_with_another_epoch() -> None:
    clock, daemon, numbers = Clock(), Daemon(), [3, 5]
    first = Holder("a", SECONDS, clock, lambda _: numbers.pop())
    carry_out(daemon, first.take())
    assert list(daemon.entries) == [6]
    carry_out(daemon, destroyed(first))
    carry_out(daemon, first.take())
    assert list(daemon.entries) == [4]
