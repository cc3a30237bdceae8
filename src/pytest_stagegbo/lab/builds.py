"""Other builds of the lab's stand-in for BotServer, to deploy into a stage: with migrations, and with faults."""

from __future__ import annotations

import importlib.resources
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MIGRATION", "build"]

MIGRATION = {"2-moods": "ALTER TABLE bots ADD COLUMN mood text; UPDATE bots SET mood = 'calm'"}
"""One that can't be done twice, and none of the tables of which is there in production."""


def build(version: str, migrations: Mapping[str, str] | None = None, *, end: str = "", size: int = 0) -> bytes:
    """The file of a build.

    Args:
        migrations: SQL by name.
        end: `crash` or `hang`: what it does at its start, once it has migrated.
        size: Bytes that the file has at least.
    """
    source = importlib.resources.files("pytest_stagegbo.lab.standin").joinpath("botserver.py").read_text()
    begin = "BUILD: dict[str, Any] = "
    lines = source.splitlines(keepends=True)
    values = json.dumps({"version": version, "migrations": dict(migrations or {}), "end": end})
    (number,) = (number for number, line in enumerate(lines) if line.startswith(begin))
    lines[number] = f"{begin}{values}\n"
    content = "".join(lines).encode()
    missing = size - len(content)
    return content + (b"#" * (missing - 1) + b"\n" if missing > 0 else b"")
