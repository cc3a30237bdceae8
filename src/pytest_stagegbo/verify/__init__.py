"""Proves a stage's isolation: checks try each promise for real, and the certificate says what each of them saw."""

from __future__ import annotations

from pytest_stagegbo.verify.certificate import AT_REST, Certificate, chosen, listen, verify
from pytest_stagegbo.verify.finding import Check, Finding

__all__ = ["AT_REST", "Certificate", "Check", "Finding", "chosen", "listen", "verify"]
