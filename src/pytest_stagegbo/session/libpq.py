"""Watches where PostgreSQL clients connect to. libpq uses sockets of its own, which Python's audit hooks don't see.

All of psycopg 3 (connections, async ones, pools) asks its class `PGconn` to connect, in C code, too, and so may a test.
psycopg2 asks the function `_connect` of its module. Both may be imported by a test, long after the first one began, so
their imports are watched.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    Look = Callable[[str, int], None]

__all__ = ["unwatch", "watch"]

DEFAULT_PORT = 5432

_replaced: list[tuple[Any, str, Any]] = []
"""What was replaced: where, its name, and what it was."""


def watch(look: Look) -> None:
    """Call `look` with each host and port before a client connects to it. `look` raises an error to refuse."""
    for name, guard in _GUARDS.items():
        module = sys.modules.get(name)
        if module is not None:
            guard(module, look)
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(look))


def unwatch() -> None:
    """Restore the clients as they were before `watch`."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterImport)]
    while _replaced:
        owner, name, original = _replaced.pop()
        _set(owner, name, original)


def _guard_psycopg(module: ModuleType, look: Look) -> None:
    """Class methods that connect, and methods that connect once more."""

    def looking(original: Any) -> Any:
        def connect(cls: type, conninfo: bytes) -> Any:
            _look_at(_of_psycopg(module, conninfo), look)
            return original.__get__(None, cls)(conninfo)

        return classmethod(connect)

    def looking_again(original: Any) -> Any:
        def reset(self: Any) -> Any:
            _look_at({"host": _text(self.host), "hostaddr": _text(self.hostaddr), "port": _text(self.port)}, look)
            return original.__get__(self, type(self))()

        return reset

    for name in ("connect", "connect_start", "ping"):
        _replace(module.PGconn, name, looking)
    for name in ("reset", "reset_start"):
        _replace(module.PGconn, name, looking_again)


def _guard_psycopg2(module: ModuleType, look: Look) -> None:
    def looking(original: Any) -> Any:
        def connect(dsn: str, *args: Any, **options: Any) -> Any:
            _look_at(_of_psycopg2(module, dsn), look)
            return original(dsn, *args, **options)

        return connect

    _replace(module, "_connect", looking)


_GUARDS: Mapping[str, Callable[[ModuleType, Look], None]] = {"psycopg.pq": _guard_psycopg, "psycopg2": _guard_psycopg2}


def _replace(owner: Any, name: str, looking: Callable[[Any], Any]) -> None:
    if any(each[:2] == (owner, name) for each in _replaced):
        return
    original = vars(owner).get(name)
    if original is not None:
        _replaced.append((owner, name, original))
        _set(owner, name, looking(original))


def _set(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, also of a class that C code made: Python says that such a one can't be changed."""
    try:
        setattr(owner, name, value)
    except TypeError:
        (attributes,) = (each for each in gc.get_referents(vars(owner)) if isinstance(each, dict))
        attributes[name] = value
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))


def _look_at(options: Mapping[str, str], look: Look) -> None:
    """Hosts and ports of a connection, which may have several."""
    hosts = (options.get("hostaddr") or options.get("host") or "").split(",")
    ports = (options.get("port") or "").split(",")
    numbers = [int(port) if port.isdigit() else DEFAULT_PORT for port in ports]
    if len(numbers) != len(hosts):
        numbers = numbers[:1] * len(hosts)
    for host, port in zip(hosts, numbers, strict=True):
        look(host, port)


def _of_psycopg(module: ModuleType, conninfo: bytes) -> dict[str, str]:
    """A connection string as libpq reads it; what it leaves out is as libpq's environment."""
    found = {}
    from psycopg import OperationalError

    with contextlib.suppress(OperationalError):  # a string that libpq can't read, so it refuses to connect as well
        for options in (module.Conninfo.get_defaults(), module.Conninfo.parse(conninfo)):
            for option in options:
                if option.val:
                    found[_text(option.keyword)] = _text(option.val)
    return found


def _of_psycopg2(module: ModuleType, dsn: str) -> dict[str, str]:
    found = {key: os.environ.get(f"PG{key.upper()}", "") for key in ("host", "hostaddr", "port")}
    with contextlib.suppress(module.ProgrammingError):  # libpq refuses it as well
        found.update(sys.modules["psycopg2.extensions"].parse_dsn(dsn or ""))
    return found


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


class _AfterImport(MetaPathFinder):
    """Guards a client once it was imported, in whichever way it is found."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._searching = False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        del path, target
        if fullname not in _GUARDS or self._searching:
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
            _GUARDS[spec.name](module, self._look)

        with contextlib.suppress(AttributeError):  # a loader without room for attributes is none of a plain file
            loader.exec_module = exec_module  # type: ignore[method-assign]
