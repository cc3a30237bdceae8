"""Prints output for programs: JSON."""

from __future__ import annotations

import json
from typing import Any

from pytest_stagegbo.text import printable_json

__all__ = ["print_json"]


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))
