"""Requests that are sent again: the daemon refused them only since something else went while it looked at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pytest_stagegbo.errors import ServerRefused
from pytest_stagegbo.incus import dialect

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TRIES", "retried"]

TRIES = 5
T = TypeVar("T")


def retried(send: Callable[[], T]) -> T:
    """Return what `send` returns. It is called up to `TRIES` times while others delete what the daemon goes through.

    Raises:
        ServerRefused: the last refusal, or one for another reason.
    """
    left = TRIES
    while True:
        left -= 1
        try:
            return send()
        except ServerRefused as error:
            if not left or not (dialect.lost_an_interface(error) or dialect.lost_another_acl(error)):
                raise
