"""Waits until services answer, as long as that is still possible."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import NotReady, StageGboError
from pytest_stagegbo.services import ask as ask_service
from pytest_stagegbo.services.keys import HOW_TO_GIVE_KEYS
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_stagegbo.services.answer import Answer
    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["wait_ready"]

FIRST_PAUSE = 0.01
GROWTH = 1.5
LONGEST_PAUSE = 0.1
LONGEST_PAUSE_STARTING = 0.25
"""Between questions to a service that says it is starting: PostgreSQL writes a line to its log for each."""
FIRST_PATIENCE = 0.25
"""For one answer. Short at first: a question that was lost while the network came up is only repeated by the kernel
after a second. Doubles with each silence, for a service that is there and slow."""
LONGEST_PATIENCE = 2.0
FIRST_LOOK = 0.25
LOOK_EVERY = 1.0
"""At whether the container still runs."""


class Ask(Protocol):
    def __call__(self, probe: ProbeSettings, host: str, timeout: float, /) -> Answer: ...


def wait_ready(
    container: str,
    host: str,
    probes: Sequence[ProbeSettings],
    *,
    timeout: float,
    still_alive: Callable[[], str | None],
    diagnostics: Callable[[], str],
    opened: Callable[[ProbeSettings, Answer], Answer] = lambda _, answer: answer,
    ask: Ask = ask_service,
    clock: Callable[[], float] = clocks.monotonic,
    sleep: Callable[[float], None] = clocks.sleep,
) -> Mapping[ProbeSettings, Answer]:
    """Ask until every probe is answered `ready`, and return the answers.

    Args:
        container: Its name, for errors.
        host: Its address.
        timeout: Seconds, for all probes together. Each is asked once at least.
        still_alive: Says `None`, or why there is nothing left to wait for (`the container stopped`). Called about
            once a second.
        diagnostics: Tells the state of the container's units and their last log lines. Called once, for an error;
            secrets that have a known shape are masked here.
        opened: Opens a sealed Vault, and says what it answers then. Called as soon as Vault answers, whatever else is
            waited for: another service of the same container may need what Vault holds. One that stays sealed is not
            waited for, since waiting does not open it.

    Raises:
        NotReady: Time is up, or `still_alive` gave a reason.
    """
    began = clock()
    ends = began + timeout
    next_look = began + FIRST_LOOK
    answers: dict[ProbeSettings, Answer] = {}
    patience = dict.fromkeys(probes, FIRST_PATIENCE)
    waiting = list(patience)
    pause = FIRST_PAUSE
    gone: str | None = None
    while True:
        for probe in tuple(waiting):
            left = max(ends - clock(), FIRST_PATIENCE)
            answer = answers[probe] = ask(probe, host, min(patience[probe], left))
            if answer.state == "sealed":
                answer = answers[probe] = opened(probe, answer)
            if answer.ready or answer.state == "sealed":
                waiting.remove(probe)
            elif answer.state == "unreachable":
                patience[probe] = min(patience[probe] * 2, LONGEST_PATIENCE)
        if not waiting:
            return MappingProxyType({probe: answers[probe] for probe in probes})
        now = clock()
        if now >= next_look or now >= ends:
            gone = still_alive()
            next_look = clock() + LOOK_EVERY
        if gone or clock() >= ends:
            break
        sleep(min(pause, ends - clock()) if ends > clock() else 0)
        starting = all(answers[probe].state == "starting" for probe in waiting)
        pause = min(pause * GROWTH, LONGEST_PAUSE_STARTING if starting else LONGEST_PAUSE)
    failing = {probe: answers[probe] for probe in waiting}
    sealed = any(answer.state == "sealed" for answer in answers.values())
    raise _not_ready(container, host, failing, clock() - began, gone, diagnostics, sealed)


def _not_ready(
    container: str,
    host: str,
    failing: Mapping[ProbeSettings, Answer],
    waited: float,
    gone: str | None,
    diagnostics: Callable[[], str],
    sealed: bool,
) -> NotReady:
    names = " and ".join(f"{probe.protocol} at {host}:{probe.port}{probe.path}" for probe in failing)
    message = f"{container}: {names} was not ready after {waited:.1f} s"
    if gone:
        message += f", and waiting longer does not help: {mask(gone)}"
    seen = [f"{probe.protocol} {probe.port}: {answer}" for probe, answer in failing.items()]
    try:
        seen.append(diagnostics())
    except Exception as error:  # whatever keeps the evidence away must not hide what it was wanted for
        why = error.text if isinstance(error, StageGboError) else error
        seen.append(f"(state and log lines could not be read: {why})")
    if sealed:
        seen.append(f"Vault in {container} is sealed, and what else it runs may need it")
    remedy = HOW_TO_GIVE_KEYS if sealed and not gone else _remedy(container, failing, gone)
    return NotReady(message, seen=mask("\n".join(line for line in seen if line)), remedy=remedy)


def _remedy(container: str, failing: Mapping[ProbeSettings, Answer], gone: str | None) -> str:
    if gone:
        return f"read why {container} ended in the lines above; the source may have the same fault"
    states = {answer.state for answer in failing.values()}
    if "wrong" in states:
        return f"check protocol, port, path and tls of {container}'s probes against what listens there"
    if states == {"starting"}:
        return "it is starting: raise the ready time-out, or see in the lines above what takes it so long"
    if "refused" in states:
        return (
            f"see in the lines above why nothing listens there, and check {container}'s units and probes; "
            "a service that listens on 127.0.0.1 or on production's address only can't be reached either"
        )
    return f"check that {container} has its address on the stage's network and that no firewall is in between"
