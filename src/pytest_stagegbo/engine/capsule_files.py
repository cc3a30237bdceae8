"""A capsule written to a folder of this host: what it is, the report and the logs, and its data if that is wanted."""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import CommandFailed, SettingsError
from pytest_stagegbo.guest.capsules import folders_of
from pytest_stagegbo.progress import task
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plan.capsules import Capsule

__all__ = ["write_data", "write_texts"]

PATIENCE = 60.0
"""Seconds without any progress in a copy."""


def write_texts(folder: Path, about: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Write what a capsule is, and its texts, to a new folder, which only this user may read.

    Raises:
        SettingsError: the folder is there, or can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise SettingsError(
            f"{folder} can't be made: {error.strerror}", remedy="name a folder that is not there yet"
        ) from None
    _write(folder / "capsule.json", json.dumps(about, indent=2, ensure_ascii=False).encode() + b"\n")
    for name, text in texts.items():
        _write(folder / f"{name}.txt", mask(text).encode("utf-8", "backslashreplace"))


def write_data(folder: Path, engine: StageEngine, capsule: Capsule) -> None:
    """Write a tar archive for each container of an opened capsule."""
    writer = engine.clone_writer()
    for name in capsule.about.containers:
        container = engine.settings.containers.get(name)
        if container is None:
            engine.progress.note(f"{name}: its data is left out, since the settings have no such container any more")
            continue
        folders = " ".join(shlex.quote(path.lstrip("/")) for path in folders_of(container))
        script = f"cd / && tar --ignore-failed-read --xattrs --numeric-owner --sort=name -cf - -- {folders}"
        with task(engine.progress, f"export:{name}", f"{name}: data of capsule {capsule.key}"):
            measured = engine.execute(name, ["sh", "-c", f"({script}) 2>/dev/null | wc -c"]).stdout.strip()
            size = int(measured) if measured.isdecimal() else 0
            if not size:  # an archive of nothing has bytes, too
                raise CommandFailed(
                    f"{name}: tar prints nothing",
                    remedy=f"look inside: `stagegbo --project {engine.settings.project} exec {name} -- tar --version`",
                )
            descriptor = os.open(folder / f"{name}.tar", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                for piece in writer.output(name, f"{script} 2>/dev/null", size, patience=PATIENCE):
                    file.write(piece)


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
