"""A host's part in leases, with a daemon in this process: what its processes share, and what others have left."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from test_leases_protocol import Daemon, carry_out

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import LeaseLost, LockTimeout, ServerUnreachable
from pytest_stagegbo.leases.host import HostLease
from pytest_stagegbo.leases.protocol import LeasesRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_stagegbo.leases.protocol import Steps

SECONDS = 60.0


class Store:
    """A connection to the daemon, which may be cut."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.cut = False
        self.refuses = False
        self.for_nothing = False
        self.removed = 0
        self.tries = 0

    def carry_out(self, steps: Steps[Any]) -> Any:
        self.tries += 1
        if self.cut:
            raise ServerUnreachable("nobody answers")
        if self.refuses:
            raise LeasesRefused("Incus refused", status=403, seen="User does not have permission for project")
        return carry_out(self.daemon, steps)

    def serves_nothing(self) -> bool:
        return self.for_nothing

    def remove_project(self) -> None:
        self.removed += 1


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`later(100)`: so many seconds have passed, as the machine's clock that counts sleep shows."""
    passed = [0.0]
    real = clocks.awake_or_not
    monkeypatch.setattr(clocks, "awake_or_not", lambda: real() + passed[0])

    def move(seconds: float) -> None:
        passed[0] += seconds

    return move


@pytest.fixture
def process(daemon: Daemon, tmp_path: Path) -> Iterator[Callable[..., HostLease]]:
    """`process("a")`: another process of host a."""
    made: list[HostLease] = []

    def make(host: str, store: Store | None = None) -> HostLease:
        folder = tmp_path / host
        folder.mkdir(exist_ok=True)
        made.append(HostLease(folder, "STAGE-GBO", SECONDS, lambda: store or Store(daemon), ("cache", "drive")))
        return made[-1]

    yield make
    for each in made:
        each.leave()
        each.close()


def enter(lease: HostLease, seconds: float = 0.0) -> None:
    lease.enter("a test", clocks.monotonic() + seconds)


def test_processes_of_one_host_share_a_lease_and_the_last_gives_it_up(
    process: Callable[..., HostLease], daemon: Daemon
) -> None:
    first, second, other = process("a"), process("a"), process("b")
    enter(first)
    enter(second)
    assert len(daemon.entries) == 1
    first.leave()
    first.close()
    with pytest.raises(LockTimeout, match="leased by another host") as refused:
        enter(other)
    assert f"process {os.getpid()} (a test)" in refused.value.seen
    second.leave()
    second.close()
    enter(other)


def test_tests_of_a_session_ask_for_nothing(process: Callable[..., HostLease], daemon: Daemon) -> None:
    store = Store(daemon)
    lease = process("a", store)
    enter(lease)
    asked = store.tries
    for _ in range(100):
        lease.leave()
        enter(lease)
        lease.check()
    assert store.tries == asked


def test_a_lost_lease_is_refused_until_all_uses_have_ended(
    process: Callable[..., HostLease], later: Callable[[float], None]
) -> None:
    first, second = process("a"), process("b")
    enter(first)
    enter(first)
    with pytest.raises(LockTimeout):
        enter(second)
    later(SECONDS + 1)
    enter(second)
    for _ in range(2):
        with pytest.raises(LeaseLost, match="has lost its lease of stage STAGE-GBO"):
            first.check()
    with pytest.raises(LeaseLost):
        enter(first)
    second.leave()
    second.close()
    first.leave()
    with pytest.raises(LeaseLost):
        first.check()
    first.leave()
    enter(first)
    first.check()


def test_one_that_lost_the_daemon_is_refused_before_anybody_else_can_have_the_stage(
    process: Callable[..., HostLease], daemon: Daemon, later: Callable[[float], None]
) -> None:
    store = Store(daemon)
    first, second = process("a", store), process("b")
    enter(first)
    with pytest.raises(LockTimeout):
        enter(second)
    store.cut = True
    later(SECONDS * 0.7)
    first.check()
    later(SECONDS * 0.15)
    with pytest.raises(LeaseLost, match="nobody answers"):
        first.check()
    with pytest.raises(LockTimeout):
        enter(second)
    store.cut = False
    first.check()


def test_the_next_process_of_a_host_goes_on_after_a_kill(process: Callable[..., HostLease], daemon: Daemon) -> None:
    killed = process("a")
    enter(killed)
    killed._use.release()  # as the kernel does
    enter(process("a"))
    assert len({entry.token for entry in daemon.entries.values()}) == 1


def test_what_another_host_left_is_known(
    process: Callable[..., HostLease], tmp_path: Path, later: Callable[[float], None]
) -> None:
    """A note that the stage is clean is void, and so is a container whose reset failed there."""
    first, second = process("a"), process("b")
    notes = {host: tmp_path / host for host in "ab"}
    enter(first)
    (notes["a"] / "cache.unfinished").touch()
    (notes["a"] / "stage.clean").touch()
    first.leave()
    first.close()
    (notes["b"] / "stage.clean").touch()
    enter(second)
    assert not (notes["b"] / "stage.clean").exists()
    assert [each.name for each in notes["b"].glob("*.unfinished")] == ["cache.unfinished"]
    # and its lease runs out
    with pytest.raises(LockTimeout):
        enter(first)
    assert (notes["a"] / "stage.clean").exists()
    later(SECONDS + 1)
    enter(first)
    assert not (notes["a"] / "stage.clean").exists()
    assert {each.stem for each in notes["a"].glob("*.unfinished")} == {"cache", "drive"}


def test_a_host_that_goes_on_keeps_its_notes(process: Callable[..., HostLease], tmp_path: Path) -> None:
    for _ in range(2):
        lease = process("a")
        enter(lease)
        lease.leave()
        lease.close()
        (tmp_path / "a" / "stage.clean").touch()
    enter(process("a"))
    assert (tmp_path / "a" / "stage.clean").exists()


def test_a_removed_stage_leaves_no_lease(process: Callable[..., HostLease], daemon: Daemon) -> None:
    lease, beside = process("a"), process("a")
    enter(lease)
    enter(beside)
    lease.leave()
    lease.wipe()
    beside.check()
    assert daemon.entries
    beside.leave()
    lease.wipe()
    assert not daemon.entries


def test_a_forked_child_keeps_nothing_of_its_parents(process: Callable[..., HostLease]) -> None:
    lease = process("a")
    enter(lease)
    child = os.fork()
    if not child:
        lease.check()
        lease.leave()
        os._exit(0 if lease._keeper is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    lease.check()
    with pytest.raises(LockTimeout):
        enter(process("b"))


def test_threads_enter_at_once(process: Callable[..., HostLease], daemon: Daemon) -> None:
    lease = process("a")
    threads = [threading.Thread(target=enter, args=(lease, 5.0)) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(daemon.entries) == 1
    for _ in threads:
        lease.leave()
    lease.close()
    enter(process("b"))


def test_who_may_not_have_leases_uses_the_stage_without_one_and_says_so_once(
    process: Callable[..., HostLease],
    daemon: Daemon,
    later: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its certificate is restricted to the stage's project."""
    store = Store(daemon)
    store.refuses = True
    lease = process("a", store)
    for _ in range(2):
        enter(lease)
        later(10 * SECONDS)
        lease.check()
        lease.leave()
    assert store.tries == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "without a lease" in caplog.text
    assert not daemon.entries


@pytest.mark.parametrize("for_nothing", [True, False])
def test_what_was_made_for_a_stage_that_did_not_come_to_be_is_removed(
    process: Callable[..., HostLease], daemon: Daemon, for_nothing: bool
) -> None:
    store = Store(daemon)
    store.for_nothing = for_nothing
    lease = process("a", store)
    enter(lease)
    lease.leave()
    lease.close()
    assert (store.removed, len(daemon.entries)) == ((1, 0) if for_nothing else (0, 1))
