"""When a clone's units can still come up, when one is started, and what is said when there is no hope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_stagegbo.apply.unit_watch import PATIENCE, STUCK_AFTER, UnitWatch
from pytest_stagegbo.errors import ServerRefused
from pytest_stagegbo.incus import CommandResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.settings import ContainerSettings

CACHE = cast("ContainerSettings", type("Container", (), {"name": "cache", "units": ("valkey",)}))


def block(active: str, *, load: str = "loaded", result: str = "success", kind: str = "simple") -> str:
    return f"Type={kind}\nResult={result}\nId=valkey.service\nLoadState={load}\nActiveState={active}\n"


class Clone:
    """Answers of a clone's systemd, one for each look, and what was started in it."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.looks = 0
        self.started: list[str] = []

    def execute(self, name: str, command: Sequence[str], *, timeout: float) -> CommandResult:
        assert (name, command[0], timeout) == ("cache", "sh", PATIENCE)
        if "systemctl start" in command[2]:
            self.started.append(command[2])
            return CommandResult(0, "", "")
        answer = self.answers[min(self.looks, len(self.answers) - 1)]
        self.looks += 1
        if isinstance(answer, Exception):
            raise answer
        return CommandResult(0, answer, "")


def watch(clone: Clone, *, running: bool, seconds: int) -> tuple[str | None, int, str]:
    """What is said, when, and what is to be done, with one look a second."""
    now = 0.0
    units = UnitWatch(cast("Writer", cast("Any", clone)), CACHE, running=running, clock=lambda: now)
    for second in range(seconds):
        now = float(second)
        if reason := units.look():
            return reason, second, units.remedy
    return None, seconds, units.remedy


def test_nothing_is_asked_while_a_service_has_time_to_come_up() -> None:
    clone = Clone("state starting\n" + block("inactive"))
    watch(clone, running=False, seconds=5)
    assert clone.looks == 0


@pytest.mark.parametrize("running", [True, False])
def test_a_stopped_unit_is_started_once(running: bool) -> None:
    clone = Clone("state running\n" + block("inactive"), "state running\n" + block("active"))
    assert watch(clone, running=running, seconds=60)[0] is None
    assert len(clone.started) == 1
    assert "valkey.service" in clone.started[0]


def test_one_that_ends_again_is_not_waited_for() -> None:
    reason, second, remedy = watch(Clone("state running\n" + block("inactive")), running=True, seconds=60)
    assert reason == "valkey.service ended by itself after it was started"
    assert second < 5
    assert "read why" in remedy


def test_a_failed_unit_ends_the_wait() -> None:
    clone = Clone("state starting\n" + block("failed", result="exit-code"))
    reason, second, _ = watch(clone, running=False, seconds=60)
    assert reason == "valkey.service failed (exit-code)"
    assert second <= 6
    assert clone.started == []


def test_one_that_failed_before_is_tried_once() -> None:
    clone = Clone("state degraded\n" + block("failed", result="signal"))
    assert watch(clone, running=True, seconds=60)[0] == "valkey.service failed (signal)"
    assert len(clone.started) == 1


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("state starting\n" + block("inactive"), id="a boot that has not come so far"),
        pytest.param("state running\n" + block("inactive", kind="oneshot"), id="a oneshot that is done"),
        pytest.param("state running\n" + block("inactive", load="not-found"), id="a unit that is not there"),
        pytest.param("state running\njob waiting valkey.service\n" + block("inactive"), id="a job"),
        pytest.param("state running\n" + block("activating"), id="one that starts"),
        pytest.param(ServerRefused("not running"), id="no answer"),
    ],
)
def test_hope_remains(said: str | Exception) -> None:
    clone = Clone(said)
    assert watch(clone, running=True, seconds=60)[0] is None
    assert clone.started == []


def test_a_unit_that_waits_for_another_ends_the_wait() -> None:
    jobs = "job waiting valkey.service\njob running systemd-networkd-wait-online.service\n"
    reason, second, remedy = watch(Clone(f"state starting\n{jobs}{block('inactive')}"), running=False, seconds=120)
    assert reason is not None
    assert reason.startswith("valkey.service waits for systemd-networkd-wait-online.service")
    assert second <= 5 + STUCK_AFTER + 3
    assert "containers.cache.units" in remedy


def test_a_boot_that_goes_on_is_waited_for() -> None:
    answers = [
        f"state starting\njob waiting valkey.service\njob running step-{number // 5}.service\n{block('inactive')}"
        for number in range(60)
    ]
    assert watch(Clone(*answers), running=False, seconds=110)[0] is None
