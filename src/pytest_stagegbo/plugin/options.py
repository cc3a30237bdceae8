"""The plugin's options. pytest loads this wherever the package is installed, so nothing heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["OPTIONS", "RECORDS", "SETTINGS", "SWITCHES", "add_options", "destination"]

OPTIONS = {
    "project": ("project", "NAME", "Incus project of the stage (default STAGE-GBO)"),
    "provision": (
        "pytest.provision",
        "auto|never|recreate",
        "provision what is missing (auto, the default); fail if something is missing (never); copy again (recreate)",
    ),
    "reset": (
        "pytest.reset",
        "NAMES",
        "containers to reset before each test that uses them: cache,drive,system, or all",
    ),
    "deploy": (
        "pytest.deploy",
        "NAME=FILE",
        "run this build in the stage: botserver=target/release/botserver; may be given again",
    ),
    "capsule": (
        "pytest.capsule",
        "failed|none",
        "keep what a failed test left in the containers that it used, for `stagegbo capsule open` (default none)",
    ),
    "slots": ("slots.count", "N|auto", "number of stages, one for each worker; auto: as many as fit (default 1)"),
    "lock-timeout": (
        "timeouts.lock",
        "SECONDS",
        "how long to wait for another process that holds the stage (default 900)",
    ),
    "disk-min": (
        "disk_floor",
        "SIZE",
        "end the session before the pool or the host has less free space (default 5GB, or a tenth if that is more)",
    ),
    "production-access": (
        "pytest.production_access",
        "refuse|allow",
        "whether tests may connect to addresses of production (default refuse)",
    ),
    "report": ("", "FILE", "write a page that shows the session: who ran and waited when, resets, disk, failures"),
    "config": ("", "FILE", "settings file (default: the nearest stagegbo.toml or pyproject.toml)"),
}
"""By option, without the prefix `--stage-`: the setting that it changes, its placeholder, its help."""
SWITCHES = {
    "lab": ("", "use the lab (`stagegbo lab up`) and join its network; needs root"),
    "quiet": (
        "pytest.quiet",
        "during each test, freeze the containers that may write to those it uses and that it does not use itself",
    ),
    "changes": ("pytest.changes", "report what each test changed in its containers, also for tests that pass"),
    "verify": ("pytest.verify", "prove the stage's isolation at the beginning and at the end of the session"),
    "keep": (
        "pytest.keep",
        "end the session at the first failed test that used the stage, and leave the stage as it is",
    ),
}
RECORDS = "stagegbo_records"
"""The name under which a worker of pytest-xdist gets the folder that it records the session in."""
SETTINGS = {name: entry[0] for name, entry in (*OPTIONS.items(), *SWITCHES.items())}
"""By option, without the prefix `--stage-`: the setting that it changes, or an empty text."""


def add_options(parser: pytest.Parser) -> None:
    """Add the options to pytest's command line, and the same options to its ini."""
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
