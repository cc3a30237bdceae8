"""What a forked child of this process must not keep.

A child has copies of all file descriptors. While it lives, a lock of the kernel's that this process held stays held
after this process was killed, and the daemon does not see that a socket's owner is gone. `exec` closes them (PEP 446);
a child that goes on in Python closes them here. A child that C code forks runs none of this.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Held", "let_go_in_children"]


class Held(Protocol):
    def let_go(self) -> None:
        """Close the descriptors, in a forked child, without a word to anybody: the parent goes on using its own."""


_held: weakref.WeakSet[Held] = weakref.WeakSet()


def let_go_in_children(held: Held) -> None:
    """Have `held.let_go()` called in each child that is forked from now on, as long as the object lives."""
    _held.add(held)


def _in_child() -> None:
    for held in list(_held):
        held.let_go()


os.register_at_fork(after_in_child=_in_child)
