"""Prints the reference of all keys, from the model and its docstrings.

`python -m pytest_stagegbo.settings.reference` prints it as Markdown, the way it stands in `docs/settings.md`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from msgspec import NODEFAULT, structs

from pytest_stagegbo.settings import container, keys, model
from pytest_stagegbo.settings.convert import type_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Row", "reference", "render"]

_ENABLED = "`false` leaves the container out; `containers.<name> = false` says the same."


@dataclass(frozen=True, slots=True)
class Row:
    """One key of the reference."""

    key: str
    env: str
    """Name of the environment variable; empty for what is set as a part of another key."""
    type: str
    default: str
    """As one would write it in a file; empty where there is none."""
    text: str
    """What it is for."""


def reference() -> list[Row]:
    """Every key, in the model's order."""
    return list(_rows())


def render() -> str:
    """The reference in Markdown: all keys, then what the default containers are made of."""
    rows = reference()
    of_containers = [row for row in rows if row.key.startswith("containers.")]
    general = [row for row in rows if row not in of_containers]
    return "\n\n".join(
        (
            _table(
                ["key, and environment variable", "value", "default", "meaning"],
                [[f"`{row.key}`<br>`{row.env}`", row.type, _code(row.default), row.text] for row in general],
            ),
            "A container's table `[containers.<name>]` has these keys. The environment variable of a key is "
            "`STAGEGBO_CONTAINERS__<NAME>__`, followed by the key in capitals.",
            _table(
                ["key", "value", "default", "meaning"],
                [
                    [f"`{row.key.removeprefix('containers.<name>.')}`", row.type, _code(row.default), row.text]
                    for row in of_containers
                ],
            ),
            "These containers are the default:",
            _table(["container", "address", "on production", "units", "wiped", "probes", "needs"], _defaults()),
        )
    )


def _rows() -> Iterator[Row]:
    for path, key in keys.all_keys().items():
        named = tuple("<name>" if part == keys.ANY else part for part in path)
        text = _ENABLED if path[-1] == "enabled" else _docstrings()[key.owner.__name__].get(path[-1], "")
        if path[:3] == keys.DEPLOY:
            named = (*path[:1], "<name>", "deploy", "<artefact>")
            text = _docstrings()[key.owner.__name__]["deploy"]
        if path[0] in keys.NAMED:
            named = (path[0], "<name>", "<key>")
            text = _docstrings()[key.owner.__name__][path[0]]
        # Defaults of single containers have a table of their own.
        default = "" if path[-1] in {"address", "production_address"} and keys.ANY in path else _toml(key.default)
        yield Row(keys.dotted(named), keys.env_name(named), type_word(key.type), default, text)
        if path[-1] == "probes":
            hints = get_type_hints(model.ProbeSettings)
            for field in structs.fields(model.ProbeSettings):
                part = f"{keys.dotted(named)}[].{field.name}"
                text = _docstrings()["ProbeSettings"].get(field.name, "")
                yield Row(part, "", type_word(hints[field.name]), _toml(field.default), text)


def _toml(value: object) -> str:
    if value is NODEFAULT:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'


@cache
def _docstrings() -> Mapping[str, Mapping[str, str]]:
    """The text under each field of the model, by class and field."""
    classes = [node for each in (model, container) for node in ast.parse(inspect.getsource(each)).body]
    return {node.name: dict(_documented(node.body)) for node in classes if isinstance(node, ast.ClassDef)}


def _documented(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in itertools.pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                yield name, " ".join(words.split())


def _defaults() -> Iterator[list[str]]:
    for name, each in model.default_containers().items():
        yield [
            f"`{name}`",
            str(each.address),
            str(each.production_address),
            _codes(each.units),
            _codes(each.wipe),
            _codes(f"{probe.protocol} {probe.port}{probe.path and ' ' + probe.path}" for probe in each.probes),
            ", ".join(each.needs),
        ]


def _codes(words: Iterable[str]) -> str:
    return ", ".join(map(_code, words))


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    print(render())
