"""What a test changed in its containers since they were clean: rows, keys, objects, files.

What belongs here: the records, how they are read, and what a log or a listing means. Not when they are read or where
they are shown: that is pytest's side (`plugin/changes.py`) and the stage's (`Stage.changes`).

Nothing is noted for it while tests pass but what resets know anyway. It is read on the connections and shells that
resets keep open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lazy import names_of

if TYPE_CHECKING:
    from pytest_stagegbo.changes.reading import read_changes
    from pytest_stagegbo.changes.records import Changes
else:
    __getattr__ = names_of(__name__, {"reading": ("read_changes",), "records": ("Changes",)})

__all__ = ["Changes", "read_changes"]
