"""Whether a clone of a remote daemon is starting, or only out of reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from pytest_stagegbo.errors import ServerRefused
from pytest_stagegbo.facts.reach import LOST_AFTER, Reach, how_to_reach, listening
from pytest_stagegbo.incus import CommandResult
from pytest_stagegbo.services.answer import Answer, State
from pytest_stagegbo.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.settings import ProbeSettings

SETTINGS = Settings()
CACHE = SETTINGS.containers["cache"]
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
OPEN = "   0: 00000000:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000   100 0 1 1 0 100 0 0 10 0\n"
OPEN_6 = (
    "   0: 00000000000000000000000000000000:18EB 00000000000000000000000000000000:0000 0A 00000000:00000000 "
    "00:00000000 00000000   100 0 1 1 0 100 0 0 10 0\n"
)
LOOPBACK = OPEN.replace("00000000:18EB", "0100007F:18EB")
LOOPBACK_6 = OPEN_6.replace("00000000000000000000000000000000:18EB", "00000000000000000000000001000000:18EB")
CONNECTED = OPEN.replace(" 0A ", " 01 ")


@pytest.mark.parametrize(
    ("table", "ports"),
    [
        pytest.param(HEAD, set(), id="nothing"),
        pytest.param(HEAD + OPEN, {6379}, id="everywhere"),
        pytest.param(HEAD + OPEN_6, {6379}, id="everywhere-ipv6"),
        pytest.param(HEAD + OPEN.replace("00000000:18EB", "0D03000A:18EB"), {6379}, id="one-address"),
        pytest.param(HEAD + LOOPBACK, set(), id="loopback"),
        pytest.param(HEAD + LOOPBACK_6, set(), id="loopback-ipv6"),
        pytest.param(HEAD + CONNECTED, set(), id="a-connection"),
        pytest.param("cat: /proc/net/tcp6: No such file or directory\n", set(), id="no-ipv6"),
    ],
)
def test_what_listens_is_read_off_the_kernel_s_tables(table: str, ports: set[int]) -> None:
    assert listening(table) == ports


@dataclass
class World:
    """A clone, the way to it and the time."""

    table: str = HEAD + OPEN
    state: State = "unreachable"
    now: float = 0.0
    refuses: bool = False
    executed: list[tuple[str, ...]] = field(default_factory=list)

    def execute(self, name: str, command: Sequence[str], *, timeout: float) -> CommandResult:
        assert (name, timeout) == ("cache", 10)
        self.executed.append(tuple(command))
        if self.refuses:
            raise ServerRefused("Instance is not running")
        return CommandResult(0, self.table, "")

    def ask(self, probe: ProbeSettings, host: str, timeout: float) -> Answer:
        assert (probe.port, host) == (6379, "10.0.3.13")
        assert timeout < LOST_AFTER
        return Answer(self.state, "")

    def reach(self) -> Reach:
        return Reach(cast("Writer", self), CACHE, ask=self.ask, clock=lambda: self.now)


@pytest.mark.parametrize("state", ["unreachable", "refused"])
def test_what_listens_and_is_not_reached_for_long_enough_is_lost(state: State) -> None:
    world = World(state=state)
    reach = world.reach()
    assert reach.look() is None
    world.now = LOST_AFTER
    assert reach.look() == "it listens on 6379, and this machine has no way there"
    assert reach.lost


def test_a_way_that_comes_and_goes_is_counted_from_zero() -> None:
    world = World()
    reach = world.reach()
    reach.look()
    world.now, world.state = LOST_AFTER, "starting"
    assert reach.look() is None
    world.state = "unreachable"
    assert reach.look() is None
    assert not reach.lost


@pytest.mark.parametrize("state", ["ready", "starting", "sealed", "wrong"])
def test_what_answers_is_not_looked_into(state: State) -> None:
    world = World(state=state)
    assert world.reach().look() is None
    assert world.executed == []


@pytest.mark.parametrize("table", [HEAD, HEAD + LOOPBACK], ids=["nothing", "loopback"])
def test_what_does_not_listen_may_yet_come(table: str) -> None:
    world = World(table=table)
    reach = world.reach()
    reach.look()
    world.now = 100
    assert reach.look() is None


def test_a_container_that_can_t_be_asked_may_yet_come() -> None:
    assert World(refuses=True).reach().look() is None


@pytest.mark.parametrize(
    ("endpoint", "host"), [("https://incus.example:8443", "incus.example"), ("https://[fd00::1]:8443", "fd00::1")]
)
def test_the_way_leads_through_the_daemon_s_host(endpoint: str, host: str) -> None:
    text = how_to_reach(SETTINGS, CACHE, endpoint)
    assert f"`sshuttle -r {host} 10.0.3.0/24`" in text
    assert f"ssh -N -L 10.0.3.13:6379:10.0.3.13:6379 {host}`" in text
