"""Where the daemon is to be found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.settings import IncusSettings

__all__ = ["find_endpoint"]

SOCKET_PLACES = ("/var/lib/incus/unix.socket", "/run/incus/unix.socket")


def find_endpoint(settings: IncusSettings, environ: Mapping[str, str] = os.environ) -> str:
    """The endpoint to use: the setting, then `$INCUS_SOCKET`, `$INCUS_DIR`, then the usual places.

    Raises:
        ServerUnreachable: nothing is there; names every place looked at.
    """
    if settings.endpoint:
        return settings.endpoint
    places: list[str] = []
    if environ.get("INCUS_SOCKET"):
        places.append(environ["INCUS_SOCKET"])
    if environ.get("INCUS_DIR"):
        places.append(str(Path(environ["INCUS_DIR"]) / "unix.socket"))
    places.extend(SOCKET_PLACES)
    for place in places:
        if _is_there(place):
            return place
    raise ServerUnreachable(
        "no Incus daemon was found",
        seen="no socket at " + ", ".join(places),
        remedy="install Incus, or name its socket or address with the setting incus.endpoint. To try things without "
        "Incus: `stagegbo lab up`, then add --lab to stagegbo, or --stage-lab to pytest",
    )


def _is_there(place: str) -> bool:
    try:
        return Path(place).exists()
    except PermissionError:
        return True  # there, and the connection will say why it can't be used
