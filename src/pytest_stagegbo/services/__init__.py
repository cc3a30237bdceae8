"""Asks services in their own protocols whether they are ready, unseals Vault, and masks secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lazy import names_of

if TYPE_CHECKING:
    from pytest_stagegbo.services.answer import Answer, Probe, State
    from pytest_stagegbo.services.probing import PROBES, ask
else:
    __getattr__ = names_of(
        __name__,
        {
            "answer": ("Answer", "Probe", "State"),
            "probing": ("PROBES", "ask"),
        },
    )

__all__ = [
    "PROBES",
    "Answer",
    "Probe",
    "State",
    "ask",
]
