"""Tells whether production may have changed since a clone was copied from it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Instance

__all__ = ["source_drift"]


def source_drift(source: Instance | None, clone: Instance | None) -> str:
    """Return why the clone may differ from its source. Empty: it is known to be the same.

    Only a source that is stopped, and was when it was copied, is known to be the same: nothing tells what a running
    one wrote. On this side it errs on the side of copying again.
    """
    if source is None or clone is None:
        return ""
    if clone.config.get(marks.ORIGIN) != marks.origin(source):
        return "restarted or changed"
    return "runs, so it may have written" if source.status != "Stopped" else ""
