"""Adds the options of this run to commands that a message names, so that they can be copied."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["aimed"]

AIMS = ("config", "endpoint", "project", "source_project", "network", "slot")
"""Options that say which stage a command is about. What the environment says is the same for the next command."""
FOR_ALL_SLOTS = frozenset({"provision", "destroy"})
_COMMAND = re.compile(r"`stagegbo (?!lab\b|--)(\w+)")


def aimed(text: str, arguments: argparse.Namespace) -> str:
    """Return the text with this run's options added to each `stagegbo` command in it. Those of the lab need none."""

    def command(found: re.Match[str]) -> str:
        words = ["stagegbo", *(["--lab"] if getattr(arguments, "lab", False) else [])]
        for name in AIMS:
            value = getattr(arguments, name, None)
            if value is not None and not (name == "slot" and found[1] in FOR_ALL_SLOTS):
                words += [f"--{name.replace('_', '-')}", str(value)]
        return f"`{shlex.join([*words, found[1]])}"

    return _COMMAND.sub(command, text)
