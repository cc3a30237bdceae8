"""Reads the settings: which keys exist, where their values come from, and which value wins.

:func:`load` reads every source; :func:`build` is its pure core. `docs/settings.md` lists every key.
"""

from __future__ import annotations

from pytest_stagegbo.settings.build import Loaded, build
from pytest_stagegbo.settings.layers import Layer
from pytest_stagegbo.settings.load import load
from pytest_stagegbo.settings.model import (
    ContainerSettings,
    IncusSettings,
    LimitSettings,
    NetworkSettings,
    ProbeSettings,
    PytestSettings,
    Settings,
    SlotSettings,
    StorageSettings,
    TimeoutSettings,
    VaultSettings,
)
from pytest_stagegbo.settings.size import format_size, parse_size

__all__ = [
    "ContainerSettings",
    "IncusSettings",
    "Layer",
    "LimitSettings",
    "Loaded",
    "NetworkSettings",
    "ProbeSettings",
    "PytestSettings",
    "Settings",
    "SlotSettings",
    "StorageSettings",
    "TimeoutSettings",
    "VaultSettings",
    "build",
    "format_size",
    "load",
    "parse_size",
]
