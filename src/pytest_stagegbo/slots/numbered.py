"""Shows the progress of one of several slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.progress import expect, reset_done

if TYPE_CHECKING:
    from pytest_stagegbo.progress import Progress

__all__ = ["Numbered"]


class Numbered:
    """A `Progress` that adds the slot's number to the names of its steps."""

    def __init__(self, progress: Progress, number: int) -> None:
        self._progress = progress
        self._prefix = f"slot {number}: "

    def expect(self, count: int) -> None:
        expect(self._progress, count)

    def begin(self, key: str, text: str) -> None:
        self._progress.begin(self._prefix + key, self._prefix + text)

    def end(self, key: str, error: BaseException | None = None) -> None:
        self._progress.end(self._prefix + key, error)

    def note(self, text: str) -> None:
        self._progress.note(self._prefix + text)

    def reset_done(self, project: str, container: str, way: str, began: float, ended: float, reason: str) -> None:
        reset_done(self._progress, project, container, way, began, ended, reason)
