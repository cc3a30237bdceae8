"""The configuration of this run: its settings, from options, environment, ini and file, and the lab that it uses."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.plugin.options import OPTIONS, SETTINGS, SWITCHES, destination
from pytest_stagegbo.truth import LAB_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.settings import Settings

__all__ = ["Configuration"]

NO_SETTINGS = ("STAGEGBO_LAB_", "STAGEGBO_ENDPOINT_", "STAGEGBO_DEBUG")
"""How variables begin that say nothing about a stage; a shell may have them for other reasons."""


class Configuration:
    """The settings of a run, read when they are first needed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.known: Settings | None = None
        """What `settings` gave, if it was asked for them."""
        self.lab: Lab | None = None
        """The lab that this run is aimed at; known once the settings have been read."""
        self.header = ""
        """A line about the stage, where options or variables speak of it when pytest begins."""

    def pytest_sessionstart(self) -> None:
        """End pytest before collection if values are wrong, and list all of them. Without any option, read nothing.
        Commands that only print something (`--help`, `--markers`, `--version`) have no session."""
        given = [name for name in (*OPTIONS, *SWITCHES) if self._given(name) is not None]
        names = [name for name in os.environ if name.startswith("STAGEGBO_") and name != LAB_VARIABLE]
        if given or any(not name.startswith(NO_SETTINGS) for name in names):
            from pytest_stagegbo.session.summary import header

            with _usage_errors():
                self.header = header(self._read(lab=None), "the lab" if self._chosen_lab() else "")

    @property
    def settings(self) -> Settings:
        """Return the settings of this run. They are read once; neither root nor a running lab is needed.

        Raises:
            pytest.UsageError: they are malformed.
        """
        if self.known is None:
            with _usage_errors():
                chosen = self._chosen_lab()
                if chosen:
                    from pytest_stagegbo.lab import Lab

                    self.lab = Lab.find(chosen if isinstance(chosen, str) else None)
                self.known = self._read(self.lab)
        return self.known

    def command(self, slot: int) -> str:
        """Return the beginning of a `stagegbo` command line with the options of this run, to be copied from a
        message."""
        words = ["stagegbo"]
        if self.lab is not None:
            words.append("--lab")
            chosen = self._chosen_lab()
            words[:0] = [f"{LAB_VARIABLE}={chosen}"] if isinstance(chosen, str) else []
        from_ini = self._config.getoption(destination("config")) is None
        config = self._given("config")
        if config and not (from_ini and "STAGEGBO_CONFIG" in os.environ):
            file = self._config.rootpath / os.path.expanduser(config)  # noqa: PTH111 - as settings do it
            words += ["--config", os.path.relpath(file, self._config.invocation_params.dir)]
        if self.settings.project != "STAGE-GBO":
            words += ["--project", self.settings.project]
        return shlex.join([*words, *(["--slot", str(slot)] if slot else [])])

    def _given(self, name: str) -> Any:
        option = self._config.getoption(destination(name))
        return self._config.getini(destination(name)) if option is None else option

    def _sources(self) -> tuple[dict[str, Any], dict[str, Any]]:
        options = {name: self._config.getoption(destination(name)) for name in SETTINGS}
        return options, {name: self._config.getini(destination(name)) for name in SETTINGS}

    def _read(self, lab: Lab | None) -> Settings:
        from pytest_stagegbo.session.options import read_settings

        return read_settings(self._config.rootpath, *self._sources(), SETTINGS, lab=lab)

    def _chosen_lab(self) -> bool | str:
        from pytest_stagegbo.session.options import chosen_lab

        return chosen_lab(*self._sources())


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn errors of settings into usage errors, which end pytest."""
    problem = ""
    try:
        yield
    except StageGboError as error:
        problem = str(error)
    if problem:
        raise pytest.UsageError(problem)
