"""Output for programs."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["print_json"]


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
