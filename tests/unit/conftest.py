"""Sessions of pytest within a test are quick."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """At its end, such a session collects garbage five times: not among all that this one has read by now."""
    gc.freeze()
