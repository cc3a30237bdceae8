"""What is placed inside a stopped clone so that it is safe before anything in it runs."""

from __future__ import annotations

from pytest_stagegbo.guest.files import RELEASE, STAMP, GuestFile, guest_files, holds_services, machine_id
from pytest_stagegbo.guest.place import PLACE, identity, variable

__all__ = [
    "PLACE",
    "RELEASE",
    "STAMP",
    "GuestFile",
    "guest_files",
    "holds_services",
    "identity",
    "machine_id",
    "variable",
]
