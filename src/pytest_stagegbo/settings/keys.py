"""Lists every key that can be set, as the model defines them, and the environment variable of each.

A path is a key split at its dots: `("network", "address")` for `network.address`. Users choose the names of containers
and credentials, so :data:`ANY` stands for the name in the list of keys.
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_type_hints

from msgspec import NODEFAULT, Struct, structs

from pytest_stagegbo.settings.model import ContainerSettings, Settings
from pytest_stagegbo.text import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "ANY",
    "DEPLOY",
    "NAMED",
    "PREFIX",
    "Key",
    "KeyPath",
    "all_keys",
    "dotted",
    "env_name",
    "find",
    "is_table",
    "suggest",
]

KeyPath = tuple[str, ...]

PREFIX = "STAGEGBO_"
ANY = "*"
DEPLOY = ("containers", ANY, "deploy")
"""A table in which keys' names are for whoever sets them to choose, too."""
NAMED = frozenset({"credentials", "secrets"})
"""Tables of tables whose names, and whose keys' names, are for whoever sets them to choose."""


class Key(Struct, frozen=True):
    """One thing that can be set."""

    path: KeyPath
    type: Any
    """The field's type in the model."""
    default: object
    """:data:`msgspec.NODEFAULT` where there is none: the address of a container of one's own."""
    owner: type
    """The class of the model that has the field."""


@cache
def all_keys() -> Mapping[KeyPath, Key]:
    """Every key by its path, in the model's order."""
    return MappingProxyType({key.path: key for key in _walk(Settings, ())})


def _walk(owner: type[Any], path: KeyPath) -> Iterable[Key]:
    hints = get_type_hints(owner)
    if owner is ContainerSettings:
        yield Key((*path, "enabled"), bool, True, owner)
    for field in structs.fields(owner):
        here = (*path, field.name)
        if here == ("containers",):
            yield from _walk(ContainerSettings, (*here, ANY))
        elif here[0] in NAMED:
            yield Key((*here, ANY, ANY), str, NODEFAULT, owner)
        elif here == DEPLOY:
            yield Key((*here, ANY), str, NODEFAULT, owner)
        elif hasattr(hints[field.name], "__struct_fields__"):
            yield from _walk(hints[field.name], here)
        elif here not in {("containers", ANY, "name"), ("containers", ANY, "held")}:  # the table's, and no setting
            yield Key(here, hints[field.name], field.default, owner)


@cache
def _tables() -> frozenset[KeyPath]:
    return frozenset(path[:length] for path in all_keys() for length in range(len(path)))


def find(path: KeyPath) -> Key | None:
    """The key at `path`, which may name any container; none when nothing of that name can be set."""
    return all_keys().get(_generic(path))


def is_table(path: KeyPath) -> bool:
    """Whether `path` holds keys rather than a value."""
    return _generic(path) in _tables()


def _generic(path: KeyPath) -> KeyPath:
    if path[:1] == ("containers",) and len(path) > 1:
        inside = (*DEPLOY[2:], ANY) if path[2:3] == DEPLOY[2:] and len(path) == 4 else path[2:]
        return ("containers", ANY, *inside)
    return (path[0], *[ANY] * (len(path) - 1)) if path[:1] and path[0] in NAMED else path


def dotted(path: KeyPath) -> str:
    return ".".join(path)


def env_name(path: KeyPath) -> str:
    """The environment variable that sets the key at `path`: `__` goes one table deeper, `-` becomes `_`."""
    return PREFIX + "__".join(part.upper().replace("-", "_") for part in path)


def suggest(path: KeyPath) -> str:
    """Return a clause that suggests a known key for the unknown `path`, or an empty text if none is similar."""
    *table, name = path
    siblings = [key[len(table)] for key in (*all_keys(), *_tables()) if _is_below(key, tuple(table))]
    if near := nearest(name, siblings):
        return f"; did you mean {near}?"
    elsewhere = [dotted(key) for key in all_keys() if key[-1] == name and ANY not in key]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return ""


def _is_below(key: KeyPath, table: KeyPath) -> bool:
    return len(key) > len(table) and key[: len(table)] == _generic(table) and key[len(table)] != ANY
