"""Reads settings from a TOML file and from the environment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import keys
from pytest_stagegbo.settings.keys import ANY, NAMED, PREFIX, KeyPath, dotted
from pytest_stagegbo.settings.layers import Layer
from pytest_stagegbo.text import nearest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONFIG_VARIABLE", "RESERVED", "anchored", "locate", "read_environment", "read_file"]

FILE = "stagegbo.toml"
PYPROJECT = "pyproject.toml"
CONFIG_VARIABLE = "STAGEGBO_CONFIG"
RESERVED = (CONFIG_VARIABLE, "STAGEGBO_DEBUG", "STAGEGBO_LAB*", "STAGEGBO_ENDPOINT_*")
"""Variables that are no settings; `*` stands for any ending."""

_PATH_KEYS = (
    ("incus", "endpoint"),
    ("incus", "client_cert"),
    ("incus", "client_key"),
    ("incus", "server_cert"),
    ("vault", "unseal_file"),
    ("vault", "token_file"),
)


# Files ----------------------------------------------------------------------------------------------------------


def locate(config: Path | None, start: Path, environ: Mapping[str, str]) -> Path | None:
    """Find the settings file.

    `config` if given, else the one that `$STAGEGBO_CONFIG` names (set but empty: no file at all), else the nearest
    one from `start` upwards: `stagegbo.toml`, or a `pyproject.toml` that has a table `[tool.stagegbo]`.

    Raises:
        SettingsError: A file that was named is missing, or one folder has both.
    """
    if config is not None:
        return _named(start / _home(str(config)), f"--config {config}")
    if CONFIG_VARIABLE in environ:
        name = environ[CONFIG_VARIABLE]
        return _named(start / _home(name), f"${CONFIG_VARIABLE}={name}") if name else None
    folder = start.resolve()
    return next((found for here in (folder, *folder.parents) if (found := _in_folder(here))), None)


def _named(path: Path, asked: str) -> Path:
    if _is_file(path):
        return path
    there = os.path.lexists(path)
    raise SettingsError(
        f"{asked}: " + ("that is no file" if there else "there is no such file"),
        seen=f"looked for {path}" + (": a folder, a device or a link that leads nowhere" if there else ""),
        remedy=f"name an existing TOML file, or name none and let {FILE} or {PYPROJECT} be looked for",
    )


def _in_folder(folder: Path) -> Path | None:
    own, shared = folder / FILE, folder / PYPROJECT
    has_own = _is_file(own)
    if not has_own and os.path.lexists(own):  # the defaults would be another stage, perhaps
        _named(own, FILE)
    if not (_is_file(shared) and "stagegbo" in _tool(_parse(shared, str(shared)))):
        return own if has_own else None
    if has_own:
        raise SettingsError(
            f"two files in one folder claim the settings: {own} and {shared} with [tool.stagegbo]",
            remedy="keep one of them, or name the one to read with $STAGEGBO_CONFIG",
        )
    return shared


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder above that may not be entered
        return False


def read_file(path: Path, start: Path) -> Layer:
    """Read the file at `path` as a layer. Relative paths in it are relative to its folder.

    Raises:
        SettingsError: It cannot be read, or is not TOML.
    """
    shown = _shown(path, start)
    content = _parse(path, shown)
    prefix = ""
    if path.name == PYPROJECT:
        prefix = "tool.stagegbo"
        table = _tool(content).get("stagegbo")
        if not isinstance(table, Mapping):
            raise SettingsError(
                f"{shown} has no table [tool.stagegbo]", remedy=f"add one, or keep the settings in {FILE} and name that"
            )
        content = table
    origins = dict(_positions(content, (), shown, prefix))
    return anchored(Layer(shown, MappingProxyType(dict(content)), MappingProxyType(origins)), path.parent)


def _parse(path: Path, shown: str) -> Mapping[str, Any]:
    if sys.version_info >= (3, 11):  # here, since it takes 4 ms and there may be no file
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

    try:
        text = path.read_bytes().decode("utf-8-sig")  # editors of Windows put a byte order mark in front
        content: Mapping[str, Any] = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(
            f"cannot read {shown}: {error.strerror}", remedy="make it readable, or name another"
        ) from None
    except RecursionError:
        raise SettingsError(
            f"{shown} is nested too deeply for settings", remedy="correct it, or name another"
        ) from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{shown} is not UTF-8: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        # The parser gives no line for what is missing at the end.
        what = str(error).replace("at end of document", f"at line {len(text.splitlines())}, the end of the file")
        raise SettingsError(f"{shown} is not valid TOML: {what}", remedy="correct that line") from None
    return content


def _tool(content: Mapping[str, Any]) -> Mapping[str, Any]:
    tool = content.get("tool")
    return tool if isinstance(tool, Mapping) else {}


def _shown(path: Path, start: Path) -> str:
    """Return the shortest form of a path that is still clear."""
    try:
        return str(path.resolve().relative_to(start.resolve()))
    except ValueError:
        return str(path)


def _positions(table: Mapping[str, Any], path: KeyPath, shown: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Where each key of a file stands, in TOML's own terms: `stagegbo.toml [network] address`."""
    header = ".".join(filter(None, (prefix, dotted(path))))
    for name, value in table.items():
        here = (*path, name)
        if isinstance(value, Mapping):
            yield dotted(here), f"{shown} [{'.'.join(filter(None, (prefix, dotted(here))))}]"
            yield from _positions(value, here, shown, prefix)
        else:
            yield dotted(here), f"{shown} [{header}] {name}" if header else f"{shown} {name}"


def anchored(layer: Layer, folder: Path) -> Layer:
    """Return `layer` with absolute paths. Relative ones start at `folder`, and `~` is the home folder."""
    values = dict(layer.values)
    for table, name in _PATH_KEYS:
        inner = values.get(table)
        value = inner.get(name) if isinstance(inner, Mapping) else None
        # An endpoint is a path only if it looks like one; anything else is for the checks to judge.
        if not isinstance(value, str) or not value or (name == "endpoint" and value[0] not in "~./"):
            continue
        values[table] = {**values[table], name: str(folder.absolute() / _home(value))}
    for key in NAMED:
        if isinstance(tables := values.get(key), Mapping):
            values[key] = {name: _anchored(table, folder) for name, table in tables.items()}
    if isinstance(containers := values.get("containers"), Mapping):
        values["containers"] = {name: _with_hooks(table, folder) for name, table in containers.items()}
    if isinstance(pytest := values.get("pytest"), Mapping) and "deploy" in pytest:
        values["pytest"] = {**pytest, "deploy": _with_files(pytest["deploy"], folder)}
    return dataclasses.replace(layer, values=MappingProxyType(values))  # noqa: TID251 (a dataclass)


def _with_files(words: object, folder: Path) -> object:
    """Words `NAME=FILE`, with the files made absolute."""
    if isinstance(words, str):
        words = _listed(words)
    if not isinstance(words, (list, tuple)):
        return words  # for the conversion to judge
    found: list[object] = []
    for word in words:
        name, equals, file = word.partition("=") if isinstance(word, str) else ("", "", "")
        found.append(f"{name}={folder.absolute() / _home(file)}" if equals and file else word)
    return found


def _listed(text: str) -> object:
    """A list in an environment variable or an ini file."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return [word for part in text.split(",") if (word := part.strip())]


def _anchored(table: object, folder: Path) -> object:
    """A table of credentials or secrets, with the paths among them made absolute."""
    if not isinstance(table, Mapping):
        return table
    return {
        name: str(folder.absolute() / _home(value))
        if name.endswith("_file") and value and isinstance(value, str)
        else value
        for name, value in table.items()
    }


def _with_hooks(table: object, folder: Path) -> object:
    """A container's table, with the paths of its hooks made absolute."""
    if not isinstance(table, Mapping) or "hooks" not in table:
        return table
    paths = table["hooks"]
    if isinstance(paths, str):  # an environment variable
        paths = _listed(paths)
    if not isinstance(paths, list):
        return table  # for the conversion to judge
    found = [str(folder.absolute() / _home(path)) if isinstance(path, str) and path else path for path in paths]
    return {**table, "hooks": found}


def _home(path: str) -> str:
    """`path` with a leading `~` resolved; one that names nobody stays as it is, where `Path.expanduser` would raise."""
    return os.path.expanduser(path)  # noqa: PTH111


# Environment ----------------------------------------------------------------------------------------------------


def read_environment(environ: Mapping[str, str], containers: Iterable[str] = ()) -> Layer:
    """Read the variables `STAGEGBO_*` as a layer.

    Args:
        environ: The variables.
        containers: Names of containers that are known already. A variable's name has only capitals and underscores,
            so these tell what `MY_DB` stands for; a name that is not among them is taken in small letters with `-`.
    """
    names = {keys.env_name((name,)).removeprefix(PREFIX): name for name in containers}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or _is_reserved(variable):
            continue
        path = _path(variable, names)
        if keys.find(path) is None:
            problems.append(f"${variable}: unknown variable{_suggest(variable, path, names.values())}")
            continue
        *tables, name = path
        table = values
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = environ[variable]
        origins[dotted(path)] = f"${variable}"
        if tables[:1] == ["containers"]:
            origins.setdefault(dotted(tuple(tables)), f"${variable}")
    return Layer("environment", MappingProxyType(values), MappingProxyType(origins), tuple(problems))


def _is_reserved(variable: str) -> bool:
    return any(variable == name or (name[-1] == "*" and variable.startswith(name[:-1])) for name in RESERVED)


def _path(variable: str, names: Mapping[str, str]) -> KeyPath:
    first, *rest = variable.removeprefix(PREFIX).split("__")
    if first not in {"CONTAINERS", "CREDENTIALS"} or not rest:
        return tuple(part.lower() for part in (first, *rest))
    container = names.get(rest[0], rest[0].lower().replace("_", "-"))
    if first == "CREDENTIALS":
        return ("credentials", container, *(part.lower() for part in rest[1:]))
    # `STAGEGBO_CONTAINERS__LLM=false` leaves the container out, like `containers.llm = false` in a file.
    return ("containers", container, *(part.lower() for part in rest[1:] or ["enabled"]))


def _suggest(variable: str, path: KeyPath, containers: Iterable[str]) -> str:
    if keys.is_table(path):
        return f"; {dotted(path)} is a table: add two underscores and the name of a key"
    known = [
        keys.env_name(tuple(name if part == ANY else part for part in key))
        for key in keys.all_keys()
        if key[0] not in NAMED  # any name would do there
        for name in (containers if ANY in key else [""])
    ]
    # One underscore instead of two is the usual slip.
    flat = {re.sub("_+", "_", name): name for name in known}
    as_deep = [name for name in known if name.count("__") == variable.count("__")]
    near = flat.get(re.sub("_+", "_", variable)) or nearest(variable, as_deep, cutoff=0.8)
    return f"; did you mean ${near}?" if near else f"; settings have no such key, and {PREFIX}* is kept for them"
