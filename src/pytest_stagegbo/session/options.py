"""From what pytest was given to settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.settings import Layer, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.settings import Settings

__all__ = ["read_settings"]

FALSE = {"", "0", "false", "no", "off"}


def read_settings(
    root: Path,
    options: Mapping[str, Any],
    ini: Mapping[str, Any],
    names: Mapping[str, str],
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings of a pytest run: options over environment over ini over file. Joins the lab's network if asked to.

    Args:
        root: pytest's root folder, from which the settings file is looked for.
        options, ini: What was given, by option without its prefix; None where nothing was.
        names: The setting that each option is; empty for those that are none (`config`, `lab`).

    Raises:
        SettingsError: with every problem.
        LabError, MissingRequirement: the lab is asked for and is not up.
    """
    command_line = _settings(options, names)
    origins = {"disk_floor_share": "--stage-disk-min"} | {names[name]: f"--stage-{name}" for name in names}
    from_ini = _settings(ini, names)
    ini_origins = {setting: origin[2:].replace("-", "_") for setting, origin in origins.items()}
    layers = [Layer.from_dotted("command line", command_line, {key: origins[key] for key in command_line})]
    lab = _first(options["lab"], environ.get("STAGEGBO_LAB"), ini["lab"])
    if lab is not None and str(lab).lower() not in FALSE:
        layers.insert(0, _join_lab(str(lab)))
    config = _first(options["config"], environ.get("STAGEGBO_CONFIG"), ini["config"])
    extra = [Layer.from_dotted("pytest's ini", from_ini, {key: ini_origins[key] for key in from_ini})]
    return load(Path(config) if config else None, root, environ, options=layers, extra=extra).settings


def _settings(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """By setting. A floor that is asked for is the whole floor: the share of the pool no longer adds to it."""
    found = {names[name]: value for name, value in given.items() if names[name] and value is not None}
    return {**found, "disk_floor_share": 0} if "disk_floor" in found else found


def _first(*values: Any) -> Any:
    """The first that was given; falsy ones count."""
    return next((value for value in values if value is not None), None)


def _join_lab(version: str) -> Layer:
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.lab.command import require_root

    require_root()
    lab = Lab.find(version if version in {"6.0", "7.0"} else None)
    lab.join_network()
    return Layer.from_dotted("the lab", {"incus.endpoint": str(lab.socket), "vault.unseal_file": str(lab.vault_init)})
