"""From a parsed command line to settings and an engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.settings import Layer, load

if TYPE_CHECKING:
    import argparse

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Loaded
    from pytest_stagegbo.slots.fleet import Fleet

__all__ = ["Context", "open_context"]

OPTIONS = {
    "endpoint": "incus.endpoint",
    "project": "project",
    "source_project": "source_project",
    "network": "network.name",
    "vault_keys": "vault.unseal_file",
    "slots": "slots.count",
}


@dataclass(frozen=True, slots=True)
class Context:
    """What a command works with."""

    loaded: Loaded
    lab: Lab | None

    def engine(self, progress: Progress | None = None) -> StageEngine:
        """Connect. pylxd is imported here, and not before."""
        from pytest_stagegbo.engine.stage import StageEngine
        from pytest_stagegbo.incus.connection import Connection

        return StageEngine(self.loaded.settings, Connection(self.loaded.settings.incus), progress=progress)

    def fleet(self, progress: Progress | None = None) -> Fleet:
        """The stage with all its slots. Connects."""
        from pytest_stagegbo.incus.connection import Connection
        from pytest_stagegbo.slots.fleet import Fleet

        return Fleet(self.loaded.settings, Connection(self.loaded.settings.incus), progress=progress)


def open_context(arguments: argparse.Namespace) -> Context:
    """Load the settings; with --lab (or $STAGEGBO_LAB) join the lab's network, before any thread is started.

    Raises:
        SettingsError: the settings are malformed.
        LabError, MissingRequirement: the lab is not up, or this is not root.
    """
    lab = _lab(arguments)
    given = {
        setting: getattr(arguments, name)
        for name, setting in OPTIONS.items()
        if getattr(arguments, name, None) is not None
    }
    origins = {setting: "--" + name.replace("_", "-") for name, setting in OPTIONS.items()}
    layers = [Layer.from_dotted("command line", given, {key: origins[key] for key in given})]
    if lab is not None:
        values = {"incus.endpoint": str(lab.socket), "vault.unseal_file": str(lab.vault_init)}
        layers.insert(0, Layer.from_dotted("--lab", values))
        lab.join_network()
    config = Path(arguments.config) if arguments.config else None
    loaded = load(config, Path.cwd(), os.environ, options=layers)
    return Context(loaded, lab)


def _lab(arguments: argparse.Namespace) -> Lab | None:
    wanted = os.environ.get("STAGEGBO_LAB", "")
    if not arguments.lab and wanted in {"", "0", "false", "no"}:
        return None
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.lab.command import require_root

    require_root()
    return Lab.find(wanted if wanted in {"6.0", "7.0"} else None)
