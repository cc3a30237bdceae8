"""Prints output for programs: JSON, and variables of a shell."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.text import printable_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_stagegbo.settings.addresses import Endpoint

__all__ = ["print_json", "print_variables"]


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_variables(found: Iterable[Endpoint]) -> None:
    """The variables of endpoints on standard output, a line each, as a shell reads them."""
    from pytest_stagegbo.settings.addresses import endpoint_variables

    for _, name, value in endpoint_variables(found):
        print(f"{name}={shlex.quote(value)}")
