"""The leases of this process, one for each stage, and their end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_stagegbo.leases.host import HostLease

__all__ = ["close_all", "host_lease"]

_making = threading.Lock()
_leases: dict[Path, HostLease] = {}


def host_lease(folder: Path, make: Callable[[], HostLease]) -> HostLease:
    """Return this process's lease of the stage whose locks are in `folder`."""
    with _making:
        if folder not in _leases:
            _leases[folder] = make()
        return _leases[folder]


def close_all() -> None:
    """Give up what this process has, at its end."""
    for lease in list(_leases.values()):
        lease.close()
