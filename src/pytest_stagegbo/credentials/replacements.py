"""What the stage's Vault is to hold instead of production's secrets.

The new values are secrets as well: they are in no frame that raises, and no `repr` shows them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from msgspec import Struct

from pytest_stagegbo.credentials.kv import Failure
from pytest_stagegbo.credentials.lookup import resolve
from pytest_stagegbo.errors import StageGboError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.credentials.kv import KeyValue
    from pytest_stagegbo.settings import Settings

__all__ = ["Replaced", "Replacements", "read_replacements"]

TRIES = 3
"""At a secret that somebody else writes at the same time."""
CONFLICT = 400
"""Vault's status for a write that is based on another version than the newest."""


class Replaced(Struct, frozen=True):
    """What was done about one secret."""

    written: bool
    """False: it held the new values already."""
    destroyed: int
    """Older versions that were destroyed."""


class Replacements:
    """New values by path and field. Not picklable.

    Args:
        values: By path (`secret/gbo/mail`), then by field.
        environ: Where the token's variable is looked up later.
    """

    __slots__ = ("_values", "environ")

    def __init__(self, values: Mapping[str, Mapping[str, str]], environ: Mapping[str, str] = os.environ) -> None:
        self._values = values
        self.environ = environ

    def __repr__(self) -> str:
        return f"Replacements({', '.join(self._values)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("replacements are secrets and are not pickled")

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._values)

    def apply(self, store: KeyValue, path: str) -> Replaced | Failure | str:
        """Replace one secret's fields and destroy its older versions, which hold production's values.

        Fields that are not named stay. What is as it should be is not written again.

        Args:
            store: The KV store that the path begins with.

        Returns:
            What was done; Vault's refusal; or in words why there is nothing to replace.
        """
        name, values = path.strip("/").partition("/")[2], self._values[path]
        written: bool | Failure | str = "it was changed by somebody else each time"
        for _ in range(TRIES):
            written = _write(store, name, values)
            if not isinstance(written, Failure) or written.status != CONFLICT:
                break
        if not isinstance(written, bool):
            return written
        destroyed = _destroy_older(store, name)
        return destroyed if isinstance(destroyed, (Failure, str)) else Replaced(written, destroyed)


def _write(store: KeyValue, name: str, values: Mapping[str, str]) -> bool | Failure | str:
    found = store.newest(name)
    if isinstance(found, Failure):
        return found
    if found is None:
        return "there is no such secret"
    data, version = found
    missing = [field for field in values if field not in data]
    if missing:
        return f"it has no field {', '.join(missing)}; it has {', '.join(sorted(data))}"
    if all(data[field] == value for field, value in values.items()):
        return False
    failure = store.write(name, {**data, **values}, version)
    return True if failure is None else failure


def _destroy_older(store: KeyValue, name: str) -> int | Failure | str:
    for first in (True, False):
        versions = store.versions(name)
        if isinstance(versions, Failure):
            return versions
        older = [version for version, destroyed in versions.items() if version < max(versions) and not destroyed]
        if first:
            count = len(older)
        if not older:
            return count
        failure = store.destroy(name, older) if first else None
        if failure is not None:
            return failure
    return f"versions {', '.join(map(str, older))} are still there after they were destroyed"


def read_replacements(settings: Settings, environ: Mapping[str, str] = os.environ) -> Replacements:
    """What the settings give under `secrets`, variables and files read.

    Raises:
        SettingsError: one of them can't be had.
    """
    values: dict[str, dict[str, str]] = {}
    for path, fields in settings.secrets.items():
        values[path] = {}
        for key, value in fields.items():
            found = resolve(f"secrets.{path}.{key}", key, value, environ)
            if isinstance(found, StageGboError):
                values.clear()
                raise found
            values[path][found[0]] = found[1]
    return Replacements(values, environ)
