"""The marks that this tool leaves on what it makes, and reads before it changes anything.

Nothing without `OWNER` is ever changed or deleted. That mark tells which tool made a thing; `PROJECT`, `FAMILY` and
`INSTANCE` tell for which stage. Marks that Incus copies along with an instance name another one then. A clone's `STATE`
is `building` from the moment it exists until its first boot is proven. Only the run that has copied it whole, placed
its file and checked its configuration starts it before; for all others it must be `prepared`. Whatever a killed run
leaves is therefore either finished or recognisable garbage.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pytest_stagegbo.guest import boot_file, hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = [
    "BOOTED",
    "BUILD",
    "BUILDING",
    "CAPSULE",
    "FAMILY",
    "FINGERPRINT",
    "GENERATION",
    "HOLDS",
    "INSTANCE",
    "KEPT_FROM",
    "OPENED",
    "ORIGIN",
    "OWNER",
    "OWNER_VALUE",
    "PREPARED",
    "PROJECT",
    "PROVEN",
    "REQUIRES",
    "SECRETS",
    "SNAPSHOT",
    "SOURCE",
    "STATE",
    "VERSION",
    "fingerprint",
    "identity",
    "is_clone",
    "is_ours",
    "of_instance",
    "of_stage",
    "origin",
    "reads_vault",
    "replaced_fields",
    "vault_container",
]

OWNER = "user.stagegbo.owner"
OWNER_VALUE = "pytest-stagegbo"
STATE = "user.stagegbo.state"
BUILDING = "building"
PREPARED = "prepared"
PROVEN = "user.stagegbo.proven"
"""Set to `true` once the first boot was seen to have wiped what it had to."""
BOOTED = "user.stagegbo.booted"
"""When that boot began, in the daemon's words: the clone's files were those of what it was copied from until then."""
SOURCE = "user.stagegbo.source"
BUILD = "user.stagegbo.build"
"""On a clone: the deployed build, as `builds.Build`. It is set before the files are in place."""
FINGERPRINT = "user.stagegbo.fingerprint"
SECRETS = "user.stagegbo.secrets"
"""On Vault's clone: `replaced` once the settings' `secrets` are in it, and production's are not any more."""
ORIGIN = "user.stagegbo.origin"
"""What production's instance was like when it was copied; see `origin`."""
GENERATION = "user.stagegbo.generation"
"""On a golden clone: set once it may be copied. On a slot's clone: that of the golden clone it was copied from."""
FAMILY = "user.stagegbo.family"
"""On a slot's or a golden copy's project, bridge and access list: the project of the stage that they belong to."""
PROJECT = "user.stagegbo.project"
"""On a project, bridge and access list: the project of the stage or slot that they were made for."""
REQUIRES = "user.stagegbo.requires"
"""On a stage's project: the oldest version of this package that may change the stage, its slots and its golden copy."""
VERSION = "user.stagegbo.version"
"""On a clone: the version of this package that made it."""
INSTANCE = "user.stagegbo.instance"
"""On a clone: the instance that its marks were set for; see `identity`."""
CAPSULE = "user.stagegbo.capsule."
"""On the first clone of a capsule, with the capsule's identifier behind it: what it is, as `capsules.About`. It is set
when all of the capsule is there, so it makes the capsule whole."""
KEPT_FROM = "user.stagegbo.kept-from"
"""On a copy of a clone that was replaced, which is kept for what capsules have in it: the clone's name."""
HOLDS = "user.stagegbo.holds"
"""On such a copy: the capsules that have a part in it."""
OPENED = "user.stagegbo.opened"
"""On the clones of an opened capsule: its identifier, once the container is as the capsule has it."""
SNAPSHOT = "stagegbo-clean"
"""Name of the snapshot that a reset by restore goes back to. Other snapshots are somebody else's."""


def of_stage(settings: Settings, parent: str) -> dict[str, str]:
    """The marks of a stage's project, bridge and access list.

    Args:
        parent: The stage that this one is a slot or the golden copy of.
    """
    marks = {OWNER: OWNER_VALUE, PROJECT: settings.project}
    return {**marks, FAMILY: parent} if parent else marks


def identity(project: str, name: str, uuid: str = "") -> str:
    """The value of `INSTANCE`. A copy or a renamed instance inherits it, and has another name or identifier.

    Args:
        uuid: The daemon's `volatile.uuid`, once it is known: a copy that was made under a clone's own name has
            another one, too.
    """
    return f"{project}/{name} {uuid}".rstrip()


def of_instance(clone: Instance) -> dict[str, str]:
    """The mark of a clone that the daemon has made."""
    return {INSTANCE: identity(clone.project, clone.name, clone.config.get("volatile.uuid", ""))}


def is_ours(config: Mapping[str, str]) -> bool:
    """Whether something with this config was made by this tool, or copied from what was."""
    return config.get(OWNER) == OWNER_VALUE


def is_clone(instance: Instance, settings: Settings) -> bool:
    """Whether this tool made this very instance for the stage. Copies of clones are somebody else's."""
    config = instance.config
    if not is_ours(config):
        return False
    place = identity(settings.project, instance.name)
    if INSTANCE in config:
        return config[INSTANCE] in {place, identity(settings.project, instance.name, config.get("volatile.uuid", ""))}
    # Made by a version without that mark: whoever copies an instance chooses another name.
    return instance.name in settings.containers or config.get(SOURCE, "").rpartition("/")[2] == instance.name


def vault_container(settings: Settings) -> ContainerSettings | None:
    """The container that speaks Vault's protocol, if the stage has one."""
    found = settings.vault_probe
    return found[0] if found is not None else None


def reads_vault(container: ContainerSettings, settings: Settings) -> bool:
    """Whether a container is Vault's, or must not start before its secrets are replaced."""
    vault = vault_container(settings)
    if vault is None:
        return False
    return container.name in {vault.name, settings.vault.env_container} or vault.name in container.needs


def replaced_fields(settings: Settings) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Paths of the secrets that the settings replace, and the names of their fields."""
    names = {
        path: tuple(sorted(key.removesuffix("_env").removesuffix("_file") for key in fields))
        for path, fields in settings.secrets.items()
    }
    return tuple(sorted(names.items()))


def origin(source: Instance) -> str:
    """A digest of all that the daemon says of production's instance and that does not change by itself. It differs
    once production is changed, started, stopped or replaced. What a running instance writes does not change it."""
    own = {key: value for key, value in source.config.items() if not key.startswith("volatile.")}
    when = [source.created_at, source.last_used_at, source.is_running]
    parts = [when, own, {name: dict(dev) for name, dev in source.devices.items()}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(container: ContainerSettings, settings: Settings) -> str:
    """A digest of all that the settings put into a clone. A clone with another digest is stale and is replaced.

    Raises:
        SettingsError: a hook can't be read.
    """
    file = boot_file(container, settings)
    # What an opened capsule was copied from is not known to who uses it later.
    parts: list[object] = [
        *([] if container.held else [settings.source_project, container.source_name]),
        settings.network.name,
        [file.name, file.content, file.mode],
    ]
    if container.hooks:
        parts.append(hooks.digest(container))
    if container.may_restore:
        parts.append("snapshot")
    if settings.secrets and reads_vault(container, settings):
        parts.append(replaced_fields(settings))  # what has seen production's secrets is stale once they are replaced
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
