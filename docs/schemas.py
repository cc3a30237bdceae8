"""Writes docs/schemas, JSON schemas of what `--json` prints: from `cli/shapes.py` and its neighbours.

python docs/schemas.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

import pytest_stagegbo.cli.capsule_shapes
import pytest_stagegbo.cli.init_shapes  # noqa: F401 (both have more of them)
from pytest_stagegbo.cli.shapes import Report

__all__ = ["FOLDER", "schemas"]

FOLDER = Path(__file__).parent / "schemas"


def schemas() -> dict[str, dict[str, Any]]:
    """By shape (`status`, of `stagegbo.status/1`), its schema. It says nothing of keys that a later release may add."""
    found = {}
    for shape in Report.__subclasses__():
        name = str(shape.__struct_config__.tag)
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
        found[name.removeprefix("stagegbo.").partition("/")[0]] = {**schema, **msgspec.json.schema(shape)}
    return found


def main() -> None:
    for old in FOLDER.glob("*.json"):
        old.unlink()
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (FOLDER / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    main()
