"""Clone a General Bots production on Incus into an isolated stage, and test against it.

`Stage` and `Service` are what fixtures give, for annotations. They are imported when they are asked for: pytest imports
this package at its start wherever it is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_stagegbo.stage import Service, Stage

    __version__: str

__all__ = ["Service", "Stage", "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("pytest-stagegbo")
    if name in __all__:
        from pytest_stagegbo import stage

        return getattr(stage, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
