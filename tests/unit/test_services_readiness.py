"""Waiting for services: how long, how often, and what an end without success tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.errors import NotReady
from pytest_stagegbo.services.answer import Answer, State
from pytest_stagegbo.services.readiness import wait_ready
from pytest_stagegbo.settings.model import ProbeSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DATABASE = ProbeSettings("postgresql", 5432)
VAULT = ProbeSettings("vault", 8200)


class World:
    """A clock that moves when somebody sleeps or waits for an answer, and services that live by it."""

    def __init__(self, states: dict[ProbeSettings, Callable[[float], State]], takes: float = 0.0) -> None:
        self.now = 1000.0
        self.states = states
        self.takes = takes
        self.asked: list[tuple[float, ProbeSettings, float]] = []
        self.looked: list[float] = []
        self.dies_at = float("inf")

    @property
    def passed(self) -> float:
        return self.now - 1000

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += max(seconds, 0.0001)

    def ask(self, probe: ProbeSettings, host: str, timeout: float, /) -> Answer:
        assert host == "10.0.3.11"
        self.asked.append((self.passed, probe, timeout))
        state = self.states[probe](self.passed)
        self.now += timeout if state == "unreachable" else self.takes
        return Answer(state, f"saw {state}")

    def still_alive(self) -> str | None:
        self.looked.append(self.passed)
        return "the container stopped" if self.passed >= self.dies_at else None

    def wait(
        self,
        *probes: ProbeSettings,
        timeout: float = 10,
        opened: Callable[[ProbeSettings, Answer], Answer] = lambda _, answer: answer,
        diagnostics: Callable[[], str] = lambda: "postgresql.service failed\nFATAL: no space left",
    ) -> dict[ProbeSettings, Answer]:
        return dict(
            wait_ready(
                "tables",
                "10.0.3.11",
                probes,
                timeout=timeout,
                still_alive=self.still_alive,
                diagnostics=diagnostics,
                opened=opened,
                ask=self.ask,
                clock=self.clock,
                sleep=self.sleep,
            )
        )


def always(state: State) -> Callable[[float], State]:
    return after(0, then=state)


def after(seconds: float, before: State = "refused", then: State = "ready") -> Callable[[float], State]:
    return lambda now: then if now >= seconds else before


def test_a_service_that_is_ready_costs_one_question_and_no_look_at_the_container() -> None:
    world = World({DATABASE: always("ready")})
    assert world.wait(DATABASE) == {DATABASE: Answer("ready", "saw ready")}
    assert (world.passed, len(world.asked), world.looked) == (0, 1, [])


@pytest.mark.parametrize("ready_at", [0.02, 0.3, 2.0, 9.9])
def test_readiness_is_noticed_within_a_tenth_of_a_second(ready_at: float) -> None:
    world = World({DATABASE: after(ready_at)})
    world.wait(DATABASE)
    assert ready_at <= world.passed <= ready_at + 0.1


def test_a_server_that_is_starting_is_asked_four_times_a_second_at_most() -> None:
    """PostgreSQL writes a line to its log for every question that comes too early."""
    world = World({DATABASE: after(8, before="starting")})
    world.wait(DATABASE)
    assert len(world.asked) < 8 * 4 + 10


def test_all_probes_must_be_ready_and_those_that_are_are_left_alone() -> None:
    world = World({DATABASE: after(1), VAULT: always("ready")})
    assert {answer.state for answer in world.wait(DATABASE, VAULT).values()} == {"ready"}
    assert [probe for _, probe, _ in world.asked].count(VAULT) == 1


def test_no_probes_are_ready_at_once() -> None:
    assert World({}).wait() == {}


def test_a_sealed_vault_is_an_answer_and_not_waited_for() -> None:
    world = World({VAULT: after(0.5, then="sealed")})
    assert world.wait(VAULT)[VAULT].state == "sealed"
    assert world.passed < 1


def test_vault_is_opened_while_a_service_beside_it_is_waited_for() -> None:
    """Which may need what Vault holds, so that it would never answer."""
    opened_at: list[float] = []
    world = World({VAULT: after(1, then="sealed"), DATABASE: lambda _: "ready" if opened_at else "refused"})

    def opened(probe: ProbeSettings, answer: Answer) -> Answer:
        assert (probe, answer.state) == (VAULT, "sealed")
        opened_at.append(world.passed)
        return Answer("ready", "opened")

    assert {answer.state for answer in world.wait(DATABASE, VAULT, opened=opened).values()} == {"ready"}
    assert len(opened_at) == 1


def test_a_sealed_vault_is_said_where_a_service_beside_it_does_not_answer() -> None:
    with pytest.raises(NotReady, match="unseal_file") as caught:
        World({VAULT: always("sealed"), DATABASE: always("refused")}).wait(DATABASE, VAULT)
    assert "Vault in tables is sealed" in caught.value.seen


def test_silence_is_cut_short_at_first_and_given_more_time_later() -> None:
    """A packet that was lost while the network came up must not cost a second; a slow server must get its chance."""
    world = World({DATABASE: after(5, before="unreachable")})
    world.wait(DATABASE)
    patience = [timeout for _, _, timeout in world.asked]
    assert patience[:4] == [0.25, 0.5, 1.0, 2.0]
    assert max(patience) == 2.0


def test_a_container_that_stopped_ends_the_wait_within_a_second() -> None:
    world = World({DATABASE: always("refused")})
    world.dies_at = 3.0
    with pytest.raises(NotReady) as caught:
        world.wait(DATABASE, timeout=120)
    assert world.passed < 4.2
    assert "does not help: the container stopped" in str(caught.value)
    assert "FATAL: no space left" in caught.value.seen


def test_a_container_that_is_dead_from_the_start_is_noticed_at_once() -> None:
    world = World({DATABASE: always("unreachable")})
    world.dies_at = 0
    with pytest.raises(NotReady, match="the container stopped"):
        world.wait(DATABASE, timeout=120)
    assert world.passed < 0.5


def test_the_container_is_looked_at_about_once_a_second() -> None:
    world = World({DATABASE: after(9)})
    world.wait(DATABASE)
    assert 8 <= len(world.looked) <= 10


def test_a_time_out_tells_everything_that_is_known() -> None:
    world = World({DATABASE: always("starting"), VAULT: always("ready")})
    with pytest.raises(NotReady) as caught:
        world.wait(DATABASE, VAULT, timeout=5)
    error = caught.value
    assert error.message == "tables: postgresql at 10.0.3.11:5432 was not ready after 5.0 s"
    assert error.seen.splitlines() == [
        "postgresql 5432: starting: saw starting",
        "postgresql.service failed",
        "FATAL: no space left",
    ]
    assert "time-out" in error.remedy
    assert 5 <= world.passed <= 5.3


@pytest.mark.parametrize(
    ("states", "remedy"),
    [
        (("wrong", "refused"), "check protocol, port, path and tls"),
        (("refused",), "127.0.0.1"),
        (("unreachable",), "firewall"),
        (("starting",), "raise the ready time-out"),
    ],
)
def test_the_remedy_fits_what_was_seen(states: Sequence[State], remedy: str) -> None:
    probes = [ProbeSettings("http", number) for number in range(1, len(states) + 1)]
    world = World({probe: always(state) for probe, state in zip(probes, states, strict=True)})
    with pytest.raises(NotReady) as caught:
        world.wait(*probes, timeout=1)
    assert remedy in caught.value.remedy


def test_each_probe_is_asked_once_even_without_any_time() -> None:
    assert World({DATABASE: always("ready")}).wait(DATABASE, timeout=0)[DATABASE].ready


def test_secrets_in_log_lines_do_not_reach_the_error() -> None:
    with pytest.raises(NotReady) as caught:
        World({DATABASE: always("refused")}).wait(
            DATABASE,
            timeout=1,
            diagnostics=lambda: "connecting to postgres://gbuser:hunter2hunter2@10.0.3.11/botserver",
        )
    assert "hunter2" not in str(caught.value)


def test_evidence_that_cannot_be_had_does_not_hide_the_error() -> None:
    def diagnostics() -> str:
        raise RuntimeError("the daemon went away")

    with pytest.raises(NotReady, match="the daemon went away") as caught:
        World({DATABASE: always("refused")}).wait(DATABASE, timeout=1, diagnostics=diagnostics)
    assert "saw refused" in caught.value.seen
