"""A layer: the raw values from one source (a file, the environment, the command line), before they are checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.settings.keys import KeyPath, dotted

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Layer"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Raw values from one source.

    A value of `None` means "not given", so that unset options need not be picked out. Every other value counts,
    falsy ones (`False`, `0`, `""`, `[]`) like any.
    """

    origin: str
    """The source in words that a reader finds it by: `stagegbo.toml`, `environment`, `command line`, `ini`."""
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Nested like the file: `{"network": {"address": "10.0.7.1/24"}}`."""
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Where single keys stand, by dotted key: `{"project": "--project"}`."""
    problems: tuple[str, ...] = ()
    """What was wrong with the source itself, each with where it stands. Reported with everything else."""

    @classmethod
    def from_dotted(cls, origin: str, values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Layer:
        """Make a layer from dotted keys: `{"network.address": "10.0.7.1/24", "project": None}`."""
        nested: dict[str, Any] = {}
        for key, value in values.items():
            *tables, name = key.split(".")
            table = nested
            for part in tables:
                table = table.setdefault(part, {})
            table[name] = value
        return cls(origin, nested, origins or {})

    def where(self, path: KeyPath) -> str:
        """Return the place where the value at `path` is written, for people."""
        return self.origins.get(dotted(path)) or f"{self.origin} {dotted(path)}"
