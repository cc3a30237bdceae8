"""psycopg connects with libpq's own sockets, of which Python hears nothing: what it tells libpq is looked at instead.

All of psycopg 3 (connections, async ones, pools) makes its connections with `psycopg.generators.connect`, and has
looked names up by then. psycopg may be imported by a test, long after the first one began, so its import is watched.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["unwatch", "watch"]

MODULE = "psycopg.generators"
DEFAULT_PORT = 5432

_original: Callable[..., Any] | None = None


def watch(look: Callable[[str, int], None]) -> None:
    """Have `look` called with each address and port that psycopg is about to connect to; it raises to refuse."""
    module = sys.modules.get(MODULE)
    if module is not None:
        _wrap(module, look)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(look))


def unwatch() -> None:
    """psycopg is as it was."""
    global _original
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterImport)]
    module = sys.modules.get(MODULE)
    if module is not None and _original is not None:
        module.connect = _original  # type: ignore[attr-defined]
    _original = None


def _wrap(module: ModuleType, look: Callable[[str, int], None]) -> None:
    global _original
    original = getattr(module, "connect", None)
    if _original is not None or original is None:
        return
    _original = original

    def connect(conninfo: str, *args: Any, **options: Any) -> Any:
        for host, port in _addresses(conninfo):
            look(host, port)
        return original(conninfo, *args, **options)

    module.connect = connect  # type: ignore[attr-defined]


def _addresses(conninfo: str) -> list[tuple[str, int]]:
    """Hosts and ports of a connection string, which may name several; what it leaves out is as libpq's environment."""
    from psycopg import pq

    found = {}
    for options in (pq.Conninfo.get_defaults(), pq.Conninfo.parse(conninfo.encode())):
        for option in options:
            if option.val:
                found[option.keyword] = option.val.decode("utf-8", "replace")
    hosts = (found.get(b"hostaddr") or found.get(b"host") or "").split(",")
    ports = (found.get(b"port") or "").split(",")
    numbers = [int(port) if port.isdigit() else DEFAULT_PORT for port in ports]
    if len(numbers) != len(hosts):
        numbers = numbers[:1] * len(hosts)
    return list(zip(hosts, numbers, strict=True))


class _AfterImport(MetaPathFinder):
    """Wraps the module once it was imported, in whichever way it is found."""

    def __init__(self, look: Callable[[str, int], None]) -> None:
        self._look = look
        self._searching = False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        del path, target
        if fullname != MODULE or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            self._intercept(spec)
        return spec

    def _intercept(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        assert loader is not None
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _wrap(module, self._look)

        with contextlib.suppress(AttributeError):  # a loader without room for attributes is none of a plain file
            loader.exec_module = exec_module  # type: ignore[method-assign]
