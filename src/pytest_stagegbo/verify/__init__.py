"""The certificate of a stage's isolation: checks that are run for real, each with what was seen."""

from __future__ import annotations

from pytest_stagegbo.verify.certificate import AT_REST, Certificate, chosen, listen, verify
from pytest_stagegbo.verify.finding import Check, Finding

__all__ = ["AT_REST", "Certificate", "Check", "Finding", "chosen", "listen", "verify"]
