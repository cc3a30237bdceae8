"""Making containers of the stage clean again: one way to do it in each module, and `Resetter`, which chooses."""

from __future__ import annotations

from pytest_stagegbo.resets.resetter import Outcome, Resetter

__all__ = ["Outcome", "Resetter"]
