"""The stage as tests get it: services with addresses, credentials, commands and logs; clients; a child's environment.

Nothing here is asked of the daemon or of Vault before somebody wants it. The client libraries are imported by the
functions of `clients` that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lazy import names_of

if TYPE_CHECKING:
    from pytest_stagegbo.stage.credentials import Credentials
    from pytest_stagegbo.stage.secret import Hidden, Secret
    from pytest_stagegbo.stage.service import Service
    from pytest_stagegbo.stage.stage import Stage
else:
    __getattr__ = names_of(
        __name__,
        {
            "credentials": ("Credentials",),
            "secret": ("Hidden", "Secret"),
            "service": ("Service",),
            "stage": ("Stage",),
        },
    )

__all__ = [
    "Credentials",
    "Hidden",
    "Secret",
    "Service",
    "Stage",
]
