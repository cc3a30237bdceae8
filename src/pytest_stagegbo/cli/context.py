"""Turns a parsed command line into settings and an engine."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.errors import SettingsError, StageMissing
from pytest_stagegbo.settings import Layer, load
from pytest_stagegbo.settings.checks import MOST_SLOTS
from pytest_stagegbo.truth import LAB_VARIABLE, wanted_lab

if TYPE_CHECKING:
    import argparse

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Loaded, Settings
    from pytest_stagegbo.slots.fleet import Fleet

__all__ = ["Context", "open_context"]

log = logging.getLogger("stagegbo.settings")

OPTIONS = {
    "endpoint": "incus.endpoint",
    "project": "project",
    "source_project": "source_project",
    "network": "network.name",
    "vault_keys": "vault.unseal_file",
    "slots": "slots.count",
    "deploy": "pytest.deploy",
}


class Context(Struct):
    """The settings, the lab and the slot of one command. It connects when it is first asked for an engine."""

    loaded: Loaded
    """Settings of the slot that the command line names."""
    lab: Lab | None
    stage: Settings
    """Settings of slot 0."""
    slot: int = 0
    _connection: Connection | None = None

    def connection(self) -> Connection:
        """The command's connection, which all its engines share. pylxd is imported here, and not before."""
        if self._connection is None:
            from pytest_stagegbo.incus.connection import Connection

            self._connection = Connection(self.stage.incus)
        return self._connection

    def engine(self, progress: Progress | None = None) -> StageEngine:
        """Return the engine of the stage."""
        from pytest_stagegbo.engine.stage import StageEngine

        if self.slot:
            fleet = self.fleet(progress)
            fleet.refuse_others([self.slot])
            there = sorted(number for number in fleet.members() if number >= 0)
            if self.slot not in there:
                raise StageMissing(
                    f"{self.stage.project} has no slot {self.slot}",
                    seen="slots: " + ", ".join(map(str, there)),
                    remedy=f"name another, or make so many: `stagegbo provision --slots {self.slot + 1}`",
                )
            return fleet.engine(self.slot)
        if self.stage.storage.own:
            return self.fleet(progress).engine(0)
        return StageEngine(self.loaded.settings, self.connection(), progress=progress)

    def fleet(self, progress: Progress | None = None) -> Fleet:
        """Return the stage with all its slots."""
        from pytest_stagegbo.slots.fleet import Fleet

        return Fleet(self.stage, self.connection(), progress=progress)


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
    log.info("settings of %s: stage %s", loaded.file or "defaults and environment", loaded.settings.project)
    slot = _slot(arguments)
    if not slot:
        return Context(loaded, lab, loaded.settings)
    from pytest_stagegbo.slots.layout import slot_settings

    of_slot = dataclasses.replace(loaded, settings=slot_settings(loaded.settings, slot))  # noqa: TID251 (a dataclass)
    return Context(of_slot, lab, loaded.settings, slot)


def _slot(arguments: argparse.Namespace) -> int:
    given = getattr(arguments, "slot", None)
    text = "0" if given is None else given
    if not (re.fullmatch("[0-9]{1,6}", text) and int(text) < MOST_SLOTS):
        raise SettingsError(f"--slot: {text!r} is not a number from 0 to {MOST_SLOTS - 1}")
    if int(text) and arguments.command in {"init", "provision", "destroy"}:
        raise SettingsError(
            f"{arguments.command} is for all slots", remedy=f"leave --slot out; {arguments.command} --help"
        )
    return int(text)


def _lab(arguments: argparse.Namespace) -> Lab | None:
    wanted = wanted_lab(os.environ.get(LAB_VARIABLE, ""), f"${LAB_VARIABLE}")
    if not (arguments.lab or wanted):
        return None
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.lab.command import require_root

    require_root()
    return Lab.find(wanted if isinstance(wanted, str) else None)
