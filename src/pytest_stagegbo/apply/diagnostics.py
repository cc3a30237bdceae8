"""What a container says of itself when something went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import OperationFailed, ServerRefused
from pytest_stagegbo.guest.logs import Wanted, fetch_script, parse, show, token
from pytest_stagegbo.guest.units import FOLDER
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader, Writer
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["diagnostics"]

LINES = 20
SETTLING = 5.0
"""Seconds for a container to be either running or stopped."""


def diagnostics(reader: Reader, writer: Writer, project: str, container: ContainerSettings) -> str:
    """The units' states and their last log lines, secrets masked; of a stopped container the first boot's log."""
    if _is_running(reader, project, container.name):
        try:
            head, wanted = token(), Wanted(LINES, units=True, quiet=True, files=3)
            result = writer.execute(container.name, ["sh", "-c", fetch_script(container, head, wanted)], timeout=30)
        except (OperationFailed, ServerRefused):
            if not _stops(reader, project, container.name):
                raise
        else:
            return show(parse(result.stdout, head, wanted))
    log = reader.file(project, container.name, f"{FOLDER}/prepare.log")
    said = (log or b"").decode("utf-8", "replace").strip()
    return f"the first boot said: {mask(said)}" if said else "a stopped container keeps no journal"


def _stops(reader: Reader, project: str, name: str) -> bool:
    """Whether a container in which nothing could be run is on its way down: Incus calls it running for a while yet."""
    deadline = clocks.monotonic() + SETTLING
    while running := _is_running(reader, project, name):
        if clocks.monotonic() > deadline:
            break
    return not running


def _is_running(reader: Reader, project: str, name: str) -> bool:
    """Whether two looks in a row say so: while a container powers off, Incus says both within milliseconds."""
    deadline = clocks.monotonic() + SETTLING
    before: bool | None = None
    while True:
        clone = reader.instance(project, name)
        now = clone is not None and clone.is_running
        if now == before or clocks.monotonic() > deadline:
            return now
        before = now
        clocks.sleep(0.1)  # a poll with a deadline: a container that ends by itself makes no operation to wait for
