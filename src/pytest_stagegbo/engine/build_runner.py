"""What is done inside a clone, and to its database, to give it a build."""

from __future__ import annotations

import contextlib
import logging
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from msgspec import structs

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import CommandFailed, MissingRequirement, NoRoom, OperationFailed
from pytest_stagegbo.facts import space
from pytest_stagegbo.guest import builds as guest
from pytest_stagegbo.guest.keeping import BUILD, GOLDEN
from pytest_stagegbo.plan.builds import database_of
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.guest.builds import Inspection
    from pytest_stagegbo.plan.builds import Artefact, Build, Local
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["BuildRunner", "Ways"]

log = logging.getLogger("stagegbo.deploy")

PIECE = 1 << 20
PATIENCE = 60.0
"""Seconds without any progress in a copy."""
NEWS = 2.0
"""Seconds between two notes about a copy."""
STOPPING = 20
"""Seconds for a service to stop by itself."""


@dataclass(frozen=True, slots=True)
class Ways:
    """What an engine does to its clones, whose locks are held."""

    start: Callable[[ContainerSettings], None]
    reset: Callable[[Sequence[ContainerSettings]], object]
    restore: Callable[[ContainerSettings], None]
    wait: Callable[[ContainerSettings, bool], None]
    """The flag says that a first boot has to be seen, too."""


class BuildRunner:
    """For one container of the stage of an engine, whose reader and writer it uses."""

    def __init__(self, engine: StageEngine, ways: Ways, container: ContainerSettings) -> None:
        self._engine = engine
        self._ways = ways
        self.container = container
        self.database = database_of(container, engine.settings)
        """Whose clean state moves with a build."""

    @property
    def names(self) -> list[str]:
        """The containers that a deployment changes."""
        return [self.container.name, *([self.database.name] if self.database is not None else [])]

    def inspect(self, paths: Sequence[str]) -> Inspection:
        """What is at these paths, and which units run it."""
        try:
            return guest.parse_inspection(self.run(guest.inspect_script(paths, self.container.units)), paths)
        except ValueError as error:
            raise CommandFailed(f"it is not known what is in {self.container.name}", seen=str(error)) from None

    def receive(self, local: Local, real: str) -> None:
        """Copy a file of this host beside the one that it will replace."""
        progress, name = self._engine.progress, self.container.name
        last = clocks.monotonic()

        def pieces() -> Iterator[bytes]:
            nonlocal last
            sent = 0
            with local.file.open("rb") as file:
                while sent < local.size and (piece := file.read(min(PIECE, local.size - sent))):
                    sent += len(piece)
                    yield piece
                    if clocks.monotonic() - last >= NEWS:
                        last = clocks.monotonic()
                        progress.note(f"copying {local.name}: {bytes_text(sent)} of {bytes_text(local.size)}")

        result = self._engine.clone_writer().feed(
            name, guest.receive_script(real, local.size), pieces(), patience=PATIENCE
        )
        said = result.stdout.strip()
        if result.status:
            raise NoRoom(
                f"{local.name} could not be written to {name}",
                seen=said or f"status {result.status}",
                remedy=f"give {name} more room (containers.{name}.disk_limit), or see what fills it: "
                f"`stagegbo exec {name} -- df -h {shlex.quote(local.path)}`",
            )
        if said.split()[:1] != [local.sha256]:
            raise OperationFailed(
                f"{local.file} changed while it was copied", seen=said, remedy="run it again when it is built"
            )

    def stop(self, units: Sequence[str]) -> None:
        """Those of these units that are there; what a service leaves running, too."""
        if not units:
            return
        named = " ".join(map(shlex.quote, units))
        self.run(
            f"""known=
for unit in {named}; do if systemctl cat "$unit" >/dev/null 2>&1; then known="$known $unit"; fi; done
[ -n "$known" ] || exit 0
if ! timeout {STOPPING} systemctl stop $known; then
    systemctl kill -s KILL $known || true
    systemctl stop $known
fi
systemctl kill -s KILL $known 2>/dev/null || true
""",
        )

    def start(self) -> None:
        """All units, on folders that are empty if resets empty them."""
        from pytest_stagegbo.resets.restart import restart_script

        self.run(restart_script(self.container))

    def clean_start(self) -> None:
        """Start the services; after that the container is as a reset leaves it."""
        if self.container.wipe and self.container.reset != "restore":
            self._engine.close()  # what resets know is of another time
            self._ways.reset([self.container])
        else:
            self.start()
            self._ways.wait(self.container, False)

    def rewind(self, *, production: bool = True) -> None:
        """Bring the database back to production's data, or to its clean state."""
        from pytest_stagegbo.resets.database import reset_database
        from pytest_stagegbo.resets.target import NeedsRestart

        assert self.database is not None
        self._engine.close()
        try:
            with self._cluster() as target:
                reset_database(target, "production" if production else "clean")
        except NeedsRestart as error:
            log.debug("%s: restored, since %s", self.database.name, error)
            self._ways.restore(self.database)
            self._ways.start(self.database)
            self._ways.wait(self.database, True)
        else:
            self._ways.wait(self.database, False)

    def keep(self) -> None:
        """Make the database's clean state what it is now."""
        from pytest_stagegbo.resets.database_build import keep_build

        assert self.database is not None
        with self._cluster() as target:
            keep_build(target)
        self._ways.wait(self.database, False)
        self._engine.clones.prepare_resets([self.database.name])

    def has_kept(self) -> bool:
        """Whether the database's clean state is a build's."""
        if self.database is None:
            return False
        folder = self.database.data.rstrip("/") + BUILD
        return self._engine.clone_writer().execute(self.database.name, ["test", "-d", folder]).status == 0

    def clear(self, reals: Sequence[str]) -> None:
        """Remove what an earlier deployment, which was finished, has left to be removed."""
        self.run(guest.discard_script(reals, ("new", "before")))
        self.drop(to="build")

    def drop(self, *, to: Literal["production", "before", "build"]) -> None:
        """Change which state of the database is clean, if there is a database; see `drop_build`."""
        from pytest_stagegbo.resets.database_build import drop_build

        if self.database is not None:
            with self._cluster() as target:
                drop_build(target, to=to)

    def stated(self, build: Build) -> tuple[Artefact, ...]:
        """The artefacts, each with what its file is like now."""
        paths = [each.path for each in build.artefacts]
        states = {each.path: each.state for each in self.inspect(paths).files}
        return tuple(structs.replace(each, state=states[each.path]) for each in build.artefacts)

    def run(self, script: str) -> str:
        """What a shell script printed. Raises `CommandFailed`."""
        result = self._engine.clone_writer().execute(self.container.name, ["sh", "-c", script])
        if result.status:
            raise CommandFailed(
                f"a command in {self.container.name} failed with status {result.status}",
                seen=(result.stderr or result.stdout).strip()[-1000:],
                remedy=f"look inside with `stagegbo shell {self.container.name}`",
            )
        return result.stdout

    def mark(self, build: Build | None) -> None:
        """Say what the clone runs; None: production's files."""
        text = build.to_text() if build is not None else ""
        self._engine.clone_writer().set_instance_config(self.container.name, {marks.BUILD: text})

    def refuse_database(self) -> None:
        """Raise `MissingRequirement` when the database's clean state can't move."""
        database = self.database
        if database is None:
            return
        golden = database.data.rstrip("/") + GOLDEN
        result = self._engine.clone_writer().execute(database.name, ["test", "-d", golden])
        if result.status or database.reset != "hot":
            raise MissingRequirement(
                f"{database.name} keeps no copy of its data for hot resets, so its clean state can't have a build's "
                f"migrations, and {self.container.name} gets no build",
                seen=f"{golden} is not there"
                if result.status
                else f"containers.{database.name}.reset is {database.reset}",
                remedy=f'set containers.{database.name}.reset = "hot", on a pool whose file system shares blocks '
                "between copies (btrfs, XFS, ZFS from 2.2), then run `stagegbo provision`",
            )

    def refuse_room(self, changed: Sequence[Local]) -> None:
        """Raise `NoRoom` when the files would take what must stay free."""
        engine = self._engine
        pool = engine.clone(self.container.name).pool
        room = space.look(engine.reader, pool, engine.reader.host()).tightest(engine.settings)
        size = sum(local.size for local in changed)
        if room.margin < size:
            raise NoRoom(
                f"there is no room for {bytes_text(size)} in {self.container.name}",
                seen=str(room),
                remedy="remove what is not needed there, or lower disk_floor; `stagegbo status` shows what the stage "
                "has taken",
            )

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[ResetTarget]:
        """A shell in the database's container, while the block runs."""
        from pytest_stagegbo.resets.secrets import find_secret
        from pytest_stagegbo.resets.target import ResetTarget

        engine = self._engine
        assert self.database is not None
        target = ResetTarget(
            engine.settings, self.database, engine.clone_writer(), lambda each: find_secret(each, engine.reader)
        )
        try:
            yield target
        finally:
            target.close()
