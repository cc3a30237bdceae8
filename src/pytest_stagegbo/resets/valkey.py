"""Conversations with a clone's Valkey, for resets and for those who read what it holds."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.services.resp import Refused, Resp, fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.services.resp import Value

__all__ = ["check_answers", "connected", "counts_of", "key_counts", "keys_in"]

SECONDS = 5.0
"""For a whole conversation."""
LISTED_AT_ONCE = 1000
"""Keys that one answer names."""


@contextlib.contextmanager
def connected(
    target: ResetTarget, *commands: tuple[str, ...], seconds: float = SECONDS
) -> Iterator[tuple[Resp, list[Value]]]:
    """A connection, and the answers to commands: sent together with the password, they need no time of their own."""
    probe, secret = target.probe, target.secret()
    words = [str(word) for word in (secret.user, secret.password) if word] if secret.password else []
    with Resp(target.host, probe.port, seconds, tls=probe.tls) as valkey:
        answers = valkey.ask(*([("AUTH", *words)] if words else []), *commands)
        answer = answers.pop(0) if words else None
        if isinstance(answer, Refused) and "without any password" not in str(answer):
            target.forget()
            raise NeedsRestart(f"Valkey does not let in: {answer.code}")
        yield valkey, answers


def check_answers(answers: Sequence[Value]) -> None:
    """Raise `NeedsRestart` if the server has refused anything."""
    flat = [each for answer in answers for each in (answer if isinstance(answer, list) else [answer])]
    refused = next((each for each in flat if isinstance(each, Refused)), None)
    if refused is not None:
        raise NeedsRestart(f"Valkey refused: {refused.code}")


def key_counts(answer: Value) -> dict[int, int]:
    """By database, how many keys it has, from the answer to `INFO keyspace`. Raises `NeedsRestart`: the server refuses
    to say."""
    check_answers([answer])
    return counts_of(fields(answer))


def counts_of(said: Mapping[str, str]) -> dict[int, int]:
    """The same from the fields of any section of `INFO` that has it."""
    found = {int(name[2:]): text for name, text in said.items() if _is_database(name)}
    return {number: int(text.partition("=")[2].partition(",")[0]) for number, text in found.items()}


def keys_in(valkey: Resp, database: int) -> Iterator[list[bytes]]:
    """The names of a database's keys, some at a time; a name may come twice. Raises `NeedsRestart`: the server refuses
    to list them."""
    check_answers(valkey.ask(("SELECT", database)))
    cursor = "0"
    while True:
        (answer,) = valkey.ask(("SCAN", cursor, "COUNT", LISTED_AT_ONCE))
        check_answers([answer])
        if not (isinstance(answer, list) and len(answer) == 2):
            raise NeedsRestart("Valkey lists its keys in a way that is not known")
        place, names = answer
        yield [name for name in names if isinstance(name, bytes)] if isinstance(names, list) else []
        cursor = place.decode() if isinstance(place, bytes) else "0"
        if cursor == "0":
            return


def _is_database(name: str) -> bool:
    return name[:2] == "db" and name[2:].isdigit()
