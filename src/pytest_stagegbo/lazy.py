"""Packages that import the module of a name only when the name is asked for.

`from pytest_stagegbo.services.masking import mask` runs `services/__init__.py` first. If that imported what the package
offers, each of its modules would cost as much as all: a command imports a third of this project's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["names_of"]


def names_of(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of a package that offers names of its modules.

    Args:
        modules: By module, the names.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return found
