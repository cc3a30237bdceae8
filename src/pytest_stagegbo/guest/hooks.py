"""Reads hooks: files of the user's that run in each new clone. Their contents are part of the clone's fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["Hook", "digest", "read_hooks"]


@dataclass(frozen=True, slots=True)
class Hook:
    """A file of the user's that runs in a new clone."""

    name: str
    content: bytes = field(repr=False)

    @property
    def is_sql(self) -> bool:
        return self.name.endswith(".sql")


def read_hooks(container: ContainerSettings) -> tuple[Hook, ...]:
    """Read the files that `containers.NAME.hooks` names, in that order.

    Raises:
        SettingsError: one can't be read, or is empty.
    """
    found = []
    for path in container.hooks:
        setting, file = f"containers.{container.name}.hooks", Path(path)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SettingsError(
                f"{setting}: {path} can't be read: {error.strerror}",
                remedy="paths are relative to the settings file; without its hooks, a clone is not made",
            ) from None
        if not content.strip():
            raise SettingsError(f"{setting}: {path} is empty", remedy="write it, or take it out of the setting")
        found.append(Hook(file.name, content))
    return tuple(found)


def digest(container: ContainerSettings) -> list[str]:
    """Read the hooks, and return their part of a clone's fingerprint. A clone that was made with other hooks is
    stale."""
    return [part for hook in read_hooks(container) for part in (hook.name, hook.content.hex(), container.database)]
