"""The stage as tests get it: services with addresses, commands and logs; clients; a child's environment.

Nothing here asks the daemon or Vault before somebody wants it. The functions of `clients` import their libraries.
Credentials are in `credentials/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lazy import names_of

if TYPE_CHECKING:
    from pytest_stagegbo.stage.service import Service
    from pytest_stagegbo.stage.stage import Stage
else:
    __getattr__ = names_of(
        __name__,
        {
            "service": ("Service",),
            "stage": ("Stage",),
        },
    )

__all__ = [
    "Service",
    "Stage",
]
