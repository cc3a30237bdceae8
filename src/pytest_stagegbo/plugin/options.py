"""The plugin's options. pytest loads this wherever the package is installed, so nothing heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["OPTIONS", "SETTINGS", "SWITCHES", "add_options", "destination"]

OPTIONS = {
    "project": ("project", "NAME", "Incus project of the stage (default STAGE-GBO)"),
    "provision": ("pytest.provision", "auto|never|recreate", "provision what is missing; fail; or copy again (auto)"),
    "reset": ("pytest.reset", "NAMES", "containers to reset before each test that uses them: cache,drive,system, all"),
    "deploy": (
        "pytest.deploy",
        "NAME=FILE",
        "a build that the stage runs in these tests: botserver=target/release/botserver; may be given again",
    ),
    "slots": ("slots.count", "N|auto", "stages beside each other, one for each worker; auto: as many as fit (1)"),
    "lock-timeout": ("timeouts.lock", "SECONDS", "how long to wait for others who use the stage"),
    "disk-min": ("disk_floor", "SIZE", "the session stops before pool or host have less free (5GB)"),
    "production-access": (
        "pytest.production_access",
        "refuse|allow",
        "whether tests may connect to addresses of production (refuse)",
    ),
    "config": ("", "FILE", "settings file (default: the nearest stagegbo.toml or pyproject.toml)"),
}
"""Option without its prefix: the setting that it is, its placeholder, its help."""
SWITCHES = {
    "lab": ("", "aim at the lab (`stagegbo lab up`) and join its network"),
    "quiet": ("pytest.quiet", "freeze what may write to a test's containers and is not asked for, while it runs"),
    "verify": ("pytest.verify", "prove the stage's isolation at both ends of the session"),
    "keep": ("pytest.keep", "stop at the first failed test that used the stage and leave everything as it was"),
}
SETTINGS = {name: entry[0] for name, entry in (*OPTIONS.items(), *SWITCHES.items())}
"""Every option without its prefix, and the setting that it is; empty for those that are none."""


def add_options(parser: pytest.Parser) -> None:
    """To the command line and to pytest's ini."""
    group = parser.getgroup("stage", "stage-gbo")
    for name, (setting, metavar, text) in OPTIONS.items():
        action = "append" if name == "deploy" else "store"
        group.addoption(
            f"--stage-{name}", action=action, metavar=metavar, default=None, dest=destination(name), help=text
        )
        parser.addini(destination(name), f"{text} ({setting or 'no setting'})", default=None)
    for name, (setting, text) in SWITCHES.items():
        group.addoption(f"--stage-{name}", action="store_true", default=None, dest=destination(name), help=text)
        parser.addini(destination(name), f"{text} ({setting or 'no setting'})", default=None)


def destination(name: str) -> str:
    """The name of an option in pytest's namespace, and of its ini key."""
    return "stage_" + name.replace("-", "_")
