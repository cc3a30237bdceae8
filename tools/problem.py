"""What keeps a release from going out."""

from __future__ import annotations

__all__ = ["Problem"]


class Problem(Exception):
    """A release can't go out like this.

    Args:
        seen: What was found, or what to do.
    """

    def __init__(self, text: str, seen: str = "") -> None:
        super().__init__(text)
        self.seen = seen
