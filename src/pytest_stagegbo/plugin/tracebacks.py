"""Shortens tracebacks of tests that use the stage: they end in the test's own code, not in this package's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["shorten"]

PACKAGE = "pytest_stagegbo"
HELPERS = frozenset({"contextlib"})
"""Modules of Python's whose frames lie between those of this package."""
MACHINERY = ("_pytest", "pluggy")
"""What calls a fixture; pytest hides it itself."""
EDGE = f"{PACKAGE}.plugin.fixtures"


def _hidden(found: pytest.ExceptionInfo[BaseException] | None) -> bool:
    """Whether pytest leaves a frame of this package out. Not for `pytest.fail(pytrace=False)`, which shows no frame
    anyway: pytest would add a line about hidden frames to the message."""
    return getattr(found and found.value, "pytrace", True)


def shorten(found: pytest.ExceptionInfo[BaseException]) -> None:
    """Take this package's frames out of a traceback; the first one stays where nobody else's is left.

    Those of other errors that led to this one are hidden by the mark that pytest looks for in a module.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE and name != EDGE:
            vars(module).setdefault("__tracebackhide__", _hidden)
    entries = list(found.traceback)
    names = [str(entry.frame.f_globals.get("__name__", "")) for entry in entries]
    own = [name.partition(".")[0] == PACKAGE for name in names]
    noise = [mine or (name in HELPERS and any(own[:place])) for place, (mine, name) in enumerate(zip(own, names))]  # noqa: B905
    kept = [place for place, each in enumerate(noise) if not each]
    if not any(names[place].partition(".")[0] not in MACHINERY for place in kept) and True in own:
        kept = sorted([*kept, own.index(True)])
    found.traceback = type(found.traceback)([entries[place] for place in kept])
