"""The answer of a service that was asked whether it is ready, and the type of the functions that ask."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.settings.model import ProbeSettings

__all__ = ["Answer", "NoAnswer", "Probe", "State", "answering", "excerpt"]

State = Literal["ready", "starting", "sealed", "refused", "unreachable", "wrong"]


class Answer(Struct, frozen=True):
    """The answer of one service at one moment."""

    state: State
    """
    - `ready`: it does its work.
    - `starting`: it speaks its protocol and says that it can't work yet (or any more).
    - `sealed`: Vault, waiting for its unseal keys.
    - `refused`: the machine is there, and nothing listens on the port.
    - `unreachable`: silence, no route, or a connection that broke off.
    - `wrong`: something answered, and not what this service says when it is well: another protocol,
      TLS where none is spoken, a status that no start-up has.
    """
    text: str
    """What was seen, for people: `57P03 the database system is starting up`. One line, without secrets."""

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def __str__(self) -> str:
        return f"{self.state}: {self.text}"


class NoAnswer(Exception):
    """Raised when a conversation ended before the service answered in its protocol. It stays inside this package."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


class Probe(Protocol):
    """Asks one service once. Ends within `timeout` seconds, and never raises for what a network does."""

    def __call__(self, probe: ProbeSettings, host: str, timeout: float, /) -> Answer: ...


def answering(ask: Callable[[ProbeSettings, str, float], Answer]) -> Probe:
    """Make a function that may raise `NoAnswer` into a `Probe`."""

    @wraps(ask)
    def probe(settings: ProbeSettings, host: str, timeout: float, /) -> Answer:
        try:
            return ask(settings, host, timeout)
        except NoAnswer as nothing:
            return nothing.answer

    return probe


def excerpt(data: bytes, limit: int = 200) -> str:
    """`data` as one printable line of at most `limit` characters."""
    text = " ".join(data[: limit * 4].decode("utf-8", "replace").split())
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
