"""Reads all sources of settings, in their order of precedence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_stagegbo.settings.build import Loaded, resolve
from pytest_stagegbo.settings.model import default_containers
from pytest_stagegbo.settings.opened import as_opened
from pytest_stagegbo.settings.sources import anchored, locate, read_environment, read_file

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.settings.layers import Layer

__all__ = ["load"]


def load(
    config: Path | None,
    start: Path,
    environ: Mapping[str, str],
    options: Sequence[Layer] = (),
    extra: Sequence[Layer] = (),
) -> Loaded:
    """Return the settings of this run.

    From the lowest precedence to the highest: defaults, the file, `extra`, the environment, `options`. Within
    `extra` and `options` the last layer is the highest.

    Args:
        config: The file that `--config` names. None: `$STAGEGBO_CONFIG`, then the nearest file from `start` upwards.
        start: The folder to look for files from, and the one that relative paths in options are relative to.
        environ: Environment variables.
        options: What was asked for on the command line. What an option implies (`--lab`: a socket and a file of
            unseal keys) is a layer of its own before that of the options themselves, so that they overrule it.
        extra: Between the file and the environment: pytest's ini options.

    Raises:
        SettingsError: Anything is wrong. The message lists every problem with where it stands.
    """
    file = locate(config, start, environ)
    below = [read_file(file, start)] if file else []
    below += [anchored(layer, start) for layer in extra]
    environment = anchored(read_environment(environ, _container_names(below)), start)
    loaded = resolve([*below, environment, *(anchored(layer, start) for layer in options)])
    return dataclasses.replace(loaded, settings=as_opened(loaded.settings), file=file)  # noqa: TID251 (a dataclass)


def _container_names(layers: Sequence[Layer]) -> list[str]:
    tables = (layer.values.get("containers") for layer in layers)
    return [*default_containers(), *(name for table in tables if isinstance(table, Mapping) for name in table)]
