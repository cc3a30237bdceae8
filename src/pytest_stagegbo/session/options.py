"""Makes settings from pytest's options, environment and ini. It needs no root and does not join the lab's network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.settings import Layer, load
from pytest_stagegbo.truth import LAB_VARIABLE, wanted_lab

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.settings import Settings

__all__ = ["chosen_lab", "read_settings"]


def read_settings(
    root: Path,
    options: Mapping[str, Any],
    ini: Mapping[str, Any],
    names: Mapping[str, str],
    environ: Mapping[str, str] = os.environ,
    *,
    lab: Lab | None = None,
) -> Settings:
    """Read the settings of a pytest run. Options win over the environment, the environment over ini, ini over the file.

    Args:
        root: pytest's root folder, from which the settings file is looked for.
        options, ini: What was given, by option without its prefix; None where nothing was.
        names: The setting that each option is; empty for those that are none (`config`, `lab`).
        lab: The lab that the run is aimed at.

    Raises:
        SettingsError: with every problem.
    """
    command_line = _settings(options, names)
    origins = {"disk_floor_share": "--stage-disk-min"} | {names[name]: f"--stage-{name}" for name in names}
    from_ini = _settings(ini, names)
    ini_origins = {setting: origin[2:].replace("-", "_") for setting, origin in origins.items()}
    layers = [Layer.from_dotted("command line", command_line, {key: origins[key] for key in command_line})]
    if lab is not None:
        aim = {"incus.endpoint": str(lab.socket), "vault.unseal_file": str(lab.vault_init)}
        layers.insert(0, Layer.from_dotted("the lab", aim))
    config = _first(options["config"], environ.get("STAGEGBO_CONFIG"), ini["config"])
    extra = [Layer.from_dotted("pytest's ini", from_ini, {key: ini_origins[key] for key in from_ini})]
    return load(Path(config) if config else None, root, environ, options=layers, extra=extra).settings


def chosen_lab(
    options: Mapping[str, Any], ini: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> bool | str:
    """Return the lab that the run uses, or None. The option wins over the environment, and the environment over ini.

    Raises:
        SettingsError: a value says neither yes nor no.
    """
    sources = {
        "--stage-lab": options["lab"],
        f"${LAB_VARIABLE}": environ.get(LAB_VARIABLE),
        "stage_lab": ini["lab"],
    }
    said = [wanted_lab(str(value), origin) for origin, value in sources.items() if value is not None]
    return said[0] if said else False


def _settings(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return values by setting. If `disk_floor` is given, it is the whole floor: `disk_floor_share` no longer
    counts."""
    found = {names[name]: value for name, value in given.items() if names[name] and value is not None}
    return {**found, "disk_floor_share": 0} if "disk_floor" in found else found


def _first(*values: Any) -> Any:
    """Return the first value that is not None; `False`, 0 and empty texts count as given."""
    return next((value for value in values if value is not None), None)
