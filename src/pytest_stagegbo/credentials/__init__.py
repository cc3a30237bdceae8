"""The services' credentials: where they are looked up, how they are kept out of sight, and how Vault's are replaced.

Nothing is read before somebody wants it. The stage that tests get, and its clients, are in `stage/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lazy import names_of

if TYPE_CHECKING:
    from pytest_stagegbo.credentials.lookup import Credentials
    from pytest_stagegbo.credentials.secret import Hidden, Secret
else:
    __getattr__ = names_of(__name__, {"lookup": ("Credentials",), "secret": ("Hidden", "Secret")})

__all__ = ["Credentials", "Hidden", "Secret"]
