"""Builds of clones that are about to be replaced, kept on this host until the new clones have them.

A note says what is kept. It is written once its files are whole, and removed once they are deployed again, so that a
run that is killed in between is finished by the next one of the same user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import StageMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Instance, Reader
    from pytest_stagegbo.plan.builds import Artefact

__all__ = ["SavedBuilds"]


class SavedBuilds:
    """The builds that are kept for the new clones of one stage.

    Args:
        stage: A name that no other stage has.
    """

    def __init__(self, stage: str, environ: Mapping[str, str] = os.environ) -> None:
        cache = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
        self.folder = Path(cache) / "pytest-stagegbo" / "builds" / stage
        self._note = self.folder / "builds.json"

    @property
    def exist(self) -> bool:
        """Whether any are noted."""
        return self._note.exists()

    def read(self) -> dict[str, str]:
        """The marks of the clones that had builds, by container."""
        try:
            found: Any = json.loads(self._note.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(name): str(text) for name, text in found.items()} if isinstance(found, dict) else {}

    def file(self, digest: str) -> Path:
        """Where the file with this SHA-256 is kept, or is to be."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.folder / digest

    def has(self, artefact: Artefact) -> bool:
        """Whether the artefact's file is kept, whole."""
        from pytest_stagegbo.engine import local_files

        return local_files.has(self.file(artefact.sha256), artefact.sha256)

    def fetch(self, reader: Reader, clone: Instance, artefact: Artefact) -> None:
        """Keep an artefact's file, read from the clone that has it.

        Raises:
            StageMissing: the clone has another file there.
        """
        file = self.file(artefact.sha256)
        temporary = file.with_suffix(".part")
        sha256 = hashlib.sha256()
        with temporary.open("wb") as stream:
            for piece in reader.file_pieces(clone.project, clone.name, artefact.real):
                sha256.update(piece)
                stream.write(piece)
        if sha256.hexdigest() != artefact.sha256:
            temporary.unlink()
            raise StageMissing(
                f"{artefact.path} in {clone.name} is not the file that was deployed, so it can't be given to the new "
                "clone",
                seen=f"SHA-256 {sha256.hexdigest()}, deployed was {artefact.sha256}",
                remedy=f"run `stagegbo deploy {clone.name} --undo`, or deploy again; then provision",
            )
        temporary.replace(file)

    def add(self, marks: Mapping[str, str]) -> None:
        """Note builds whose files are kept."""
        self._write({**self.read(), **marks})

    def remove(self, name: str) -> None:
        """Forget a container's build. Files that nobody needs any more go with the last one."""
        left = {key: text for key, text in self.read().items() if key != name}
        if left:
            self._write(left)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, marks: Mapping[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._note.with_suffix(f".{os.getpid()}")
        with contextlib.closing(temporary.open("w", encoding="utf-8")) as file:
            json.dump(dict(marks), file)
        temporary.replace(self._note)
