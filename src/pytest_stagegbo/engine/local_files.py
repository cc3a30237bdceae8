"""Files of this host that are deployed: found, measured and described."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.engine.build_runner import PIECE
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.plan.builds import Artefact, Local, target
from pytest_stagegbo.processes import user_at_host

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["artefact", "digest", "has", "wanted"]


def wanted(container: ContainerSettings, files: Mapping[str, Path]) -> list[Local]:
    """The files to deploy, by artefact, measured.

    Raises:
        SettingsError: one can't be read or is empty, or two go to one path.
    """
    found: list[Local] = []
    for name, file in files.items():
        path = target(container, name)
        if path in [local.path for local in found]:
            raise SettingsError(f"{path} is named twice", remedy="give one file for each path")
        try:
            size, sha256 = digest(file)
        except OSError as error:
            raise SettingsError(
                f"{name}: {file} can't be read", seen=str(error), remedy="give the path of the file that was built"
            ) from None
        if not size:
            raise SettingsError(f"{name}: {file} is empty", remedy="build it again")
        found.append(Local(name, path, file, size, sha256))
    return found


def digest(file: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
    sha256, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            sha256.update(piece)
            size += len(piece)
    return size, sha256.hexdigest()


def has(file: Path, sha256: str) -> bool:
    """Whether a file is there with this content."""
    try:
        return digest(file)[1] == sha256
    except OSError:
        return False


def artefact(local: Local, real: str) -> Artefact:
    """What a clone's mark says of a file that is deployed now, by this user."""
    return Artefact(
        name=local.name,
        path=local.path,
        real=real,
        sha256=local.sha256,
        size=local.size,
        since=datetime.fromtimestamp(clocks.now(), timezone.utc).isoformat(timespec="seconds"),
        by=user_at_host(),
        source=str(local.file),
    )
