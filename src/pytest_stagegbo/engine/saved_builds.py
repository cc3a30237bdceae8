"""Builds of clones that are about to be replaced, kept on this host until the new clones have them.

A note says what is kept. It is written once its files are whole, and removed once they are deployed again, so that a
run that is killed in between is finished by the next one of the same user.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

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
