"""What is placed inside a stopped clone so that it is safe before anything in it runs."""

from __future__ import annotations

from pytest_stagegbo.guest.files import FOLDER, RELEASE, STAMP, GuestFile, guest_files, holds_services, machine_id

__all__ = ["FOLDER", "RELEASE", "STAMP", "GuestFile", "guest_files", "holds_services", "machine_id"]
