"""The stage as tests get it: services with addresses, credentials, commands and logs; clients; a child's environment.

Nothing here is asked of the daemon or of Vault before somebody wants it. The client libraries are imported by the
functions of `clients` that need them.
"""

from __future__ import annotations

from pytest_stagegbo.stage.credentials import Credentials
from pytest_stagegbo.stage.secret import Hidden, Secret
from pytest_stagegbo.stage.service import Service
from pytest_stagegbo.stage.stage import Stage

__all__ = ["Credentials", "Hidden", "Secret", "Service", "Stage"]
