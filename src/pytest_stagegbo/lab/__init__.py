"""A lab: a real Incus of its own, in namespaces of its own, with a General Bots production to copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lazy import names_of

if TYPE_CHECKING:
    from pytest_stagegbo.lab.lab import Lab
    from pytest_stagegbo.lab.status import LabStatus
else:
    __getattr__ = names_of(
        __name__,
        {
            "lab": ("Lab",),
            "status": ("LabStatus",),
        },
    )

__all__ = [
    "Lab",
    "LabStatus",
]
