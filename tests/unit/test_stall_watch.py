"""What takes too long is said once; what does not costs no thread of its own."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from pytest_stagegbo.resets import stall_watch
from pytest_stagegbo.resets.stall_watch import StallWatch

if TYPE_CHECKING:
    import pytest

ENDS = 10.0


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stagegbo stall watch"]


def test_what_takes_too_long_is_said_once_and_the_next_thing_by_itself() -> None:
    said: SimpleQueue[str] = SimpleQueue()
    watch = StallWatch(0.02, said.put)
    with watch.watching("first"):
        assert said.get(timeout=ENDS) == "first"
    with watch.watching("second"):
        assert said.get(timeout=ENDS) == "second"
    assert said.empty()


def test_what_ends_in_time_is_not_said_and_shares_one_thread() -> None:
    said: SimpleQueue[int] = SimpleQueue()
    watch = StallWatch(ENDS, said.put)
    before = len(watchers())
    for number in range(100):
        with watch.watching(number):
            pass
    assert len(watchers()) == before + 1
    assert said.empty()


def test_the_thread_ends_by_itself_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall_watch, "KEPT", 0.0)
    said: SimpleQueue[str] = SimpleQueue()
    watch = StallWatch(0.02, said.put)
    for _ in range(2):
        with watch.watching("slow"):
            assert said.get(timeout=ENDS) == "slow"
            (thread,) = [each for each in watchers() if each is watch._thread]
        thread.join(ENDS)
        assert not thread.is_alive()
