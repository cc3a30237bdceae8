"""A lab: a real Incus of its own, in namespaces of its own, with a General Bots production to copy."""

from pytest_stagegbo.lab.lab import Lab
from pytest_stagegbo.lab.status import LabStatus

__all__ = ["Lab", "LabStatus"]
