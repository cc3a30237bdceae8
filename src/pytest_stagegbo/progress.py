"""How long-running work tells whoever watches what it is doing. Drawing it is the edges' business."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Protocol

from pytest_stagegbo import clocks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Progress", "Relay", "Silent", "expect", "reset_done", "task"]


log = logging.getLogger("stagegbo.provision")


class Progress(Protocol):
    """Receives what long-running work does. Methods may be called from several threads at once."""

    def begin(self, key: str, text: str) -> None:
        """Work named `key` (unique among what is under way) starts; `text` describes it to a person."""

    def end(self, key: str, error: BaseException | None = None) -> None:
        """Work named `key` is over, with the error that ended it if one did."""

    def note(self, text: str) -> None:
        """Something worth a line of its own, a warning for example."""


class Silent:
    """A `Progress` that shows nothing."""

    def begin(self, key: str, text: str) -> None: ...

    def end(self, key: str, error: BaseException | None = None) -> None: ...

    def note(self, text: str) -> None: ...


class Relay:
    """Hands on what it receives to `target`, which shows it for as long as somebody watches, and to `recorder`."""

    def __init__(self) -> None:
        self.target: Progress = Silent()
        self.recorder: Progress = Silent()

    def expect(self, count: int) -> None:
        expect(self.target, count)

    def begin(self, key: str, text: str) -> None:
        self.target.begin(key, text)
        self.recorder.begin(key, text)

    def end(self, key: str, error: BaseException | None = None) -> None:
        self.target.end(key, error)
        self.recorder.end(key, error)

    def note(self, text: str) -> None:
        self.target.note(text)
        self.recorder.note(text)

    def reset_done(self, project: str, container: str, way: str, began: float, ended: float, reason: str) -> None:
        reset_done(self.recorder, project, container, way, began, ended, reason)


def expect(progress: Progress, count: int) -> None:
    """Tell who can show it that so many pieces of work are to come."""
    counting = getattr(progress, "expect", None)
    if counting is not None:
        counting(count)


def reset_done(
    progress: Progress, project: str, container: str, way: str, began: float, ended: float, reason: str = ""
) -> None:
    """Tell who records it how a container was made clean, and when, by `clocks.monotonic`.

    Args:
        way: As `resets.outcome.Outcome.way`; `failed`.
        reason: Why the quickest way was not enough; of a failed reset, the error.
    """
    recording = getattr(progress, "reset_done", None)
    if recording is not None:
        recording(project, container, way, began, ended, reason)


@contextlib.contextmanager
def task(progress: Progress, key: str, text: str) -> Iterator[None]:
    """Report `begin` now and `end` when the block is left, with its error if it raised one."""
    progress.begin(key, text)
    began = clocks.monotonic()
    try:
        yield
    except BaseException as error:
        log.info("%s: failed after %.2f s", text, clocks.monotonic() - began)
        progress.end(key, error)
        raise
    log.info("%s: %.2f s", text, clocks.monotonic() - began)
    progress.end(key)
