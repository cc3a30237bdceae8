"""What these tests share. The fixtures whose names begin with `stage_` come from the plugin."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

DEADLINE = 60
"""Seconds for what BotServer does when it gets to it: it polls drive every 10 s."""


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """`eventually(look)` gives what `look` gives, once that is anything. Never sleep for as long as it should take."""

    def wait(look: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE
        while not (found := look()):
            assert time.monotonic() < deadline, f"nothing within {DEADLINE} s"  # the report shows BotServer's log
            time.sleep(0.1)  # between two looks: BotServer has no event for it
        return found

    return wait


@pytest.fixture
def bot(stage_psycopg: psycopg.Connection[tuple[Any, ...]]) -> Iterator[str]:
    """The name of a bot that no other test knows.

    Tables are production's copy and are never reset, so a test that commits rows gives them a name of its own,
    and takes them away again. So tests may run at the same time, with `pytest -n`.
    """
    name = f"bot-{uuid.uuid4().hex[:8]}"
    yield name
    stage_psycopg.rollback()  # a test that failed in the middle of a transaction
    stage_psycopg.execute("DELETE FROM bot_configuration WHERE bot = %s", [name])
    stage_psycopg.execute("DELETE FROM message_history WHERE content LIKE %s", [f"{name}: %"])
    stage_psycopg.commit()
