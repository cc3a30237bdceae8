"""What a capsule has that a clean stage has not: rows, keys, objects and files.

The capsule is opened once more for it, beside the one for people, and of its services only those are started that are
asked: database, cache and buckets. A clean cache, clean buckets and clean folders are empty. The clean state of a
database is the copy of it that resets go to.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.errors import CommandFailed, StageGboError
from pytest_stagegbo.guest.capsules import folders_of
from pytest_stagegbo.guest.comparing import compare_script
from pytest_stagegbo.plan.steps import AwaitClone
from pytest_stagegbo.progress import task
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.resets.valkey import connected, key_counts, keys_in
from pytest_stagegbo.services.answer import NoAnswer
from pytest_stagegbo.services.buckets import Buckets
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.engine.opening import Opening
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plan.capsules import Capsule
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["Difference", "diff"]

PURPOSE = "-diff"
"""Behind the capsule's identifier in the marks of what is opened for this."""
SECONDS = 10.0
"""For one answer of a service."""
MOST_NAMES = 200
"""Keys, objects and files of one container that are named."""


class Difference(Struct, frozen=True):
    """One thing that differs from a clean stage."""

    container: str
    kind: str
    """`row`, `rows`, `table`, `key`, `object`, `file`, or `unknown`."""
    sign: str
    """`+`: the test added it; `-`: the test removed it."""
    where: str
    """Database and table, number of the database, bucket, or folder."""
    what: str
    """Masked."""

    def __str__(self) -> str:
        return f"{self.sign or '?'} {self.container}: {self.kind} {self.where} {self.what}".rstrip()


def diff(opening: Opening, stage: StageEngine, capsule: Capsule) -> list[Difference]:
    """Compare a capsule with a clean stage. What it is opened as for that is removed afterwards.

    Args:
        stage: The stage or slot that the capsule is of.

    Raises:
        StageGboError: it can't be opened.
    """
    engine = opening.open(stage, capsule, PURPOSE)
    try:
        found: list[Difference] = []
        for name in capsule.about.containers:
            container = engine.settings.containers.get(name)
            if container is None:
                found.append(Difference(name, "unknown", "", "", "the settings have no such container any more"))
                continue
            with task(engine.progress, f"diff:{name}", f"{name}: compared with a clean one"):
                try:
                    found += _differences(engine, container)
                except (StageGboError, NoAnswer, NeedsRestart) as error:
                    found.append(Difference(name, "unknown", "", "", mask(str(error).partition("\n")[0])))
        return found
    finally:
        engine.close()
        opening.close(stage.reader, capsule.key + PURPOSE)


def _differences(engine: StageEngine, container: ContainerSettings) -> list[Difference]:
    protocol = container.probes[0].protocol if container.probes else ""
    readers = {"valkey": _keys, "s3": _objects}
    if container.data or protocol in readers:
        engine.runner().do(AwaitClone(subject=container.name, container=container, prove=False))
    if container.data:
        return _rows(engine, container)
    if protocol in readers:
        (found,) = engine.resetter().on_targets([container], lambda target: list(readers[protocol](target)))
        return found
    if container.wipe:
        return list(_files(engine, container))
    return [Difference(container.name, "unknown", "", "", f"{', '.join(folders_of(container))}: not compared")]


def _rows(engine: StageEngine, container: ContainerSettings) -> list[Difference]:
    result = engine.execute(container.name, ["sh", "-c", compare_script(container)])
    if result.status:
        raise CommandFailed(
            mask((result.stdout + result.stderr).strip()[-300:]) or f"comparing ended with status {result.status}"
        )
    found = []
    for line in result.stdout.split("\n"):
        kind, *fields = line.split("\t", 3)
        if len(fields) == 3:
            where, sign, what = fields
            found.append(Difference(container.name, kind, sign, mask(where), mask(what)))
        elif line:  # of a table or a database with a line break in its name
            found.append(Difference(container.name, "unknown", "", "", mask(line)))
    return found


def _keys(target: ResetTarget) -> Iterator[Difference]:
    with connected(target, ("INFO", "keyspace"), seconds=SECONDS) as (valkey, (said,)):
        for database in sorted(key_counts(said)):
            names = {name for some in keys_in(valkey, database) for name in some}
            shown = [name.decode("utf-8", "backslashreplace") for name in sorted(names)]
            yield from _named(target.name, "key", f"db{database}", shown)


def _objects(target: ResetTarget) -> Iterator[Difference]:
    secret, probe = target.secret(), target.probe
    keys = (str(secret.access_key), str(secret.secret_key))
    with Buckets(target.host, probe.port, SECONDS, *keys, tls=probe.tls) as server:
        for bucket in server.names():
            yield from _named(target.name, "object", bucket, sorted(server.keys(bucket)))


def _files(engine: StageEngine, container: ContainerSettings) -> Iterator[Difference]:
    for folder in container.wipe:
        script = (
            f"[ ! -d {shlex.quote(folder)} ] || find {shlex.quote(f'{folder}/')} -mindepth 1 ! -type d -printf '%P\\0'"
        )
        result = engine.execute(container.name, ["sh", "-c", script])
        if result.status:
            raise CommandFailed(mask(result.stderr.strip()[-300:]) or f"{folder} can't be listed")
        yield from _named(container.name, "file", folder, sorted(filter(None, result.stdout.split("\0"))))


def _named(container: str, kind: str, where: str, names: list[str]) -> Iterator[Difference]:
    for name in names[:MOST_NAMES]:
        yield Difference(container, kind, "+", where, mask(name))
    if len(names) > MOST_NAMES:
        yield Difference(container, kind, "+", where, f"({len(names) - MOST_NAMES} more)")
