"""What clones are copied from where that is not production: a slot's clones come from the golden copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["CloneSource"]


class CloneSource(Protocol):
    """Where clones are copied from instead of production."""

    @property
    def project(self) -> str:
        """The project that the instances to copy are in, by the names of the containers."""

    def held(self) -> AbstractContextManager[None]:
        """See that they are fit to be copied, and keep them so while the block runs."""
