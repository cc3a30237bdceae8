"""Modules that are imported only when something of them is asked for: this package's own, and those of others.

`from pytest_stagegbo.services.masking import mask` runs `services/__init__.py` first. If that imported what the package
offers, each of its modules would cost as much as all: a command imports a third of this project's.
"""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["imported_when_used", "names_of"]


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


class _Later(ModuleType):
    """Stands for a module, which is imported when one of its names is asked for."""

    def __getattr__(self, name: str) -> Any:
        _give_way(self)
        return getattr(import_module(self.__name__), name)


def _give_way(module: _Later) -> None:
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]


@contextlib.contextmanager
def imported_when_used(*names: str) -> Iterator[None]:
    """Have what is imported in the block import these modules only when it uses them.

    Whoever imports them afterwards gets the modules themselves, as usual.
    """
    standing_in = [_Later(name) for name in names if name not in sys.modules]
    sys.modules.update({module.__name__: module for module in standing_in})
    try:
        yield
    finally:
        for module in standing_in:
            _give_way(module)
