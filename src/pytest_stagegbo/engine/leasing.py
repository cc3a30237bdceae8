"""Where a stage's leases are, and how this host's processes come by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.incus.lease_store import LeaseStore, read_leases
from pytest_stagegbo.leases.host import HostLease
from pytest_stagegbo.leases.process import host_lease

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Reader, WriterScope
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.leases.protocol import Entry, Seen
    from pytest_stagegbo.settings import Settings

__all__ = ["ENDING", "host_lease_of", "leases", "project_of", "release", "store_of"]

ENDING = "LEASES"
"""Ends the name of the project that has the leases of a stage, its slots and its golden copy."""
CONFIG = {
    "features.images": "false",
    "features.networks": "false",
    "features.profiles": "true",
    "features.storage.volumes": "false",
    "limits.instances": "0",
}


def project_of(settings: Settings, parent: str) -> str:
    """The project that has a stage's leases. `parent` is the stage that it is a slot or the golden copy of."""
    return f"{parent or settings.project}-{ENDING}"


def leases(reader: Reader, settings: Settings, parent: str = "") -> dict[str, Seen]:
    """By project of a stage or slot, its leases."""
    return read_leases(reader.documents("profiles", project=project_of(settings, parent)))


def store_of(connection: Connection, scope: WriterScope, settings: Settings, parent: str) -> LeaseStore:
    """The leases of one stage, to be changed."""
    family = parent or settings.project
    config = {**CONFIG, marks.OWNER: marks.OWNER_VALUE, marks.PROJECT: scope.project, marks.FAMILY: family}
    patience = min(30.0, max(1.0, settings.timeouts.lease / 4))
    return LeaseStore(connection, scope, settings.project, family, config, patience)


def host_lease_of(engine: StageEngine, folder: Path) -> HostLease | None:
    """This host's lease of a stage; None: the settings want none."""
    settings = engine.settings
    if not settings.timeouts.lease:
        return None
    resettable = [name for name, container in settings.containers.items() if container.resettable]

    def make() -> HostLease:
        return HostLease(folder, settings.project, settings.timeouts.lease, engine.lease_store, resettable)

    return host_lease(folder, make)


def release(engine: StageEngine, *, force: bool) -> Entry | None:
    """Release a stage's lease; see `HostLease.release`. Raises `SettingsError` when the settings want no leases."""
    engine.lock(0).make_folder()
    if engine.lease is None:
        raise SettingsError("timeouts.lease is 0, so there are no leases", remedy="set it to a number of seconds")
    return engine.lease.release(force=force)
