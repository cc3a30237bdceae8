"""What is placed inside a stopped clone so that it is safe before anything in it runs."""

from __future__ import annotations

from pytest_stagegbo.guest.files import FOLDER, STAMP, GuestFile, guest_files, machine_id

__all__ = ["FOLDER", "STAMP", "GuestFile", "guest_files", "machine_id"]
