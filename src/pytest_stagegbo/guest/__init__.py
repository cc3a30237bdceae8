"""Writes the scripts and units that run inside clones, as pure functions. Other rooms run them."""

from __future__ import annotations

from pytest_stagegbo.guest.files import STAMP, SYSTEM_LOGS, GuestFile, boot_file, shown_stamp
from pytest_stagegbo.guest.place import PLACE, identity, variable
from pytest_stagegbo.guest.units import (
    CONFINED,
    boot_environment,
    boot_folder,
    boot_folder_of,
    confinement,
    holds_services,
    release,
)

__all__ = [
    "CONFINED",
    "PLACE",
    "STAMP",
    "SYSTEM_LOGS",
    "GuestFile",
    "boot_environment",
    "boot_file",
    "boot_folder",
    "boot_folder_of",
    "confinement",
    "holds_services",
    "identity",
    "release",
    "shown_stamp",
    "variable",
]
