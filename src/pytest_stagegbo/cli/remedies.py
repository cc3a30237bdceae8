"""Commands that an error names, aimed at what its own run was aimed at, so that they can be copied."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["aimed"]

AIMS = ("config", "endpoint", "project", "source_project", "network", "slot")
"""Options that say which stage a command is about. What the environment says is the same for the next command."""
_COMMAND = re.compile(r"`stagegbo (?!lab\b|--)")


def aimed(text: str, arguments: argparse.Namespace) -> str:
    """The text with the options of this run in each command of `stagegbo` that it names; `lab` needs none of them."""
    words = ["--lab"] if getattr(arguments, "lab", False) else []
    for name in AIMS:
        value = getattr(arguments, name, None)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    command = shlex.join(["stagegbo", *words])
    return _COMMAND.sub(lambda _: f"`{command} ", text)
