"""The marks that this tool leaves on what it makes, and reads before it changes anything.

Nothing without `OWNER` is ever changed or deleted. A clone's `STATE` is `building` from the moment it exists until
its files are in place and its configuration was checked; only a `prepared` one is started. Whatever a killed run
leaves is therefore either finished or recognisable garbage.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pytest_stagegbo.guest import guest_files, hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = [
    "BUILDING",
    "FINGERPRINT",
    "OWNER",
    "OWNER_VALUE",
    "PREPARED",
    "PROVEN",
    "SOURCE",
    "STATE",
    "fingerprint",
    "is_ours",
]

OWNER = "user.stagegbo.owner"
OWNER_VALUE = "pytest-stagegbo"
STATE = "user.stagegbo.state"
BUILDING = "building"
PREPARED = "prepared"
PROVEN = "user.stagegbo.proven"
"""Set to `true` once the first boot was seen to have wiped what it had to."""
SOURCE = "user.stagegbo.source"
FINGERPRINT = "user.stagegbo.fingerprint"


def is_ours(config: Mapping[str, str]) -> bool:
    """Whether something with this config was made by this tool."""
    return config.get(OWNER) == OWNER_VALUE


def fingerprint(container: ContainerSettings, settings: Settings) -> str:
    """Of all that the settings put into a clone: a clone with another one is stale and is replaced.

    Raises:
        SettingsError: a hook can't be read.
    """
    parts: list[object] = [
        settings.source_project,
        container.source_name,
        settings.network.name,
        [[file.path, file.content, file.mode] for file in guest_files(container, settings)],
    ]
    if container.hooks:
        parts.append(hooks.digest(container))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
