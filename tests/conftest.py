"""Tests see none of the settings of the person who runs them."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHOUT = "-p no:asyncio -p no:syrupy"
"""Options for sessions within tests, which would load plugins that only a few tests use. The first one warns."""


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Variables that choose the lab stay: the lab tests need to know which one is meant."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("STAGEGBO_") and not name.startswith("STAGEGBO_LAB"):
                patch.delenv(name)
        patch.setenv("PYTEST_ADDOPTS", WITHOUT)
        yield


@pytest.fixture(autouse=True)
def _few_plugins(request: pytest.FixtureRequest) -> None:
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")  # which takes the variable away
        request.getfixturevalue("monkeypatch").setenv("PYTEST_ADDOPTS", WITHOUT)


def pytest_collection_finish() -> None:
    """Sessions of pytest within a test collect garbage five times: not among all that this one has read by now."""
    gc.freeze()
