"""Named states of several containers: saved at one moment, gone to by resets, deleted.

What is kept lies in the containers themselves, beside the data, and shares blocks with it. So disk limits and the disk
guard count it, it goes with its container, and there is no list of it elsewhere that could say something else.
"""

from __future__ import annotations

import getpass
import secrets
import shlex
import socket
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from msgspec import json

from pytest_stagegbo import clocks
from pytest_stagegbo.engine.moment import at_one_moment
from pytest_stagegbo.errors import BaselineMissing, MissingRequirement, NoRoom, StageGboError
from pytest_stagegbo.facts import space
from pytest_stagegbo.guest import baselines as guest
from pytest_stagegbo.locks import STAGE
from pytest_stagegbo.plan import baselines as plan
from pytest_stagegbo.plan.builds import builds_of
from pytest_stagegbo.progress import task
from pytest_stagegbo.resets.database import prepare_baseline
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plan.baselines import About, Found
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["Baselines"]


class Baselines:
    """The baselines of one stage, with the locks, shells and reader of its engine."""

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine
        self.run = ""
        """The run of pytest whose own baselines count, too."""

    def found(self, *, sizes: bool = False) -> Found:
        """What there is, in all containers that run. Nothing is locked or changed.

        Args:
            sizes: Count bytes.
        """
        engine = self._engine
        clones = engine.reader.instances(engine.settings.project)
        able = plan.keepers(engine.settings)
        running = [each for each in able if each.name in clones and clones[each.name].status == "Running"]

        def look(target: ResetTarget) -> str:
            script = guest.list_script(guest.folders_of(target.container), sizes=sizes)
            return target.run_checked(script).decode("utf-8", "replace")

        texts = engine.resetter().on_targets(running, look) if running else []
        parts = {each.name: plan.parse_parts(text) for each, text in zip(running, texts, strict=True)}
        return plan.resolve(parts, clones, plan.build_words(builds_of(clones, engine.settings.containers)))

    def find(self, name: str) -> About:
        """The baseline of that name. Raises `BaselineMissing` if there is none that may be used."""
        return plan.usable(self.found(), name, self.run)

    def keys(self, name: str) -> dict[str, str]:
        """By container that a baseline has, the key of what is kept. Raises as `find`."""
        about = self.find(name)
        return dict.fromkeys(about.containers, about.key)

    def save(
        self,
        name: str,
        names: Sequence[str] = (),
        *,
        replace: bool = False,
        run: str = "",
        already_locked: bool = False,
    ) -> About:
        """Keep the state of containers at one moment under a name.

        Args:
            names: Containers; none: all that resets bring back.
            replace: A baseline of that name may be there. It goes when the new one is whole.
            run: The run of pytest that alone may use it.
            already_locked: The caller has these containers to itself already.

        Raises:
            SettingsError: the name is none, or of a container nothing can be kept.
            BaselineMissing: there is one of that name already.
            MissingRequirement: the file system does not share blocks between copies.
            NoRoom: what must stay free is not free.
            StageGboError: anything else in its tree. There is what there was before.
        """
        plan.check_name(name)
        containers = plan.chosen(self._engine.settings, names)
        wanted = [each.name for each in containers]
        if already_locked:
            return self._save(name, containers, replace, run)
        with self._engine.lock().hold(f"save baseline {name}", self._engine.waiting, shared=(STAGE,), exclusive=wanted):
            return self._save(name, containers, replace, run)

    def use(self, name: str) -> tuple[str, ...]:
        """Bring the containers of a baseline to its state. Returns their names."""
        containers = self.find(name).containers
        self._engine.reset(containers, baseline=name)
        return containers

    def delete(self, name: str) -> None:
        """Delete a baseline, whether it can be used or not. Raises `BaselineMissing` if there is none."""
        engine = self._engine
        names = [each.name for each in plan.keepers(engine.settings)]
        with engine.lock().hold(f"delete baseline {name}", engine.waiting, shared=(STAGE,), exclusive=names):
            found = self.found()
            if name not in found.folders:
                raise BaselineMissing(
                    f"the stage has no baseline {name}",
                    seen="there are " + (", ".join(sorted(found.folders)) or "none"),
                    remedy="`stagegbo baseline list` shows them",
                )
            doomed = {each: set(folders) for each, folders in found.folders[name].items()}
            for each, folders in found.garbage.items():
                doomed.setdefault(each, set()).update(folders)
            self._drop({each: sorted(folders) for each, folders in doomed.items()})

    def note_lost(self, names: Collection[str]) -> None:
        """Say which baselines go with clones that are about to be replaced or restored."""
        engine = self._engine
        able = [each.name for each in plan.keepers(engine.settings) if each.name in names]
        if not able:
            return
        with suppress(StageGboError):
            for name, folders in self.found().folders.items():
                if lost := [each for each in able if each in folders]:
                    engine.progress.note(f"baseline {name} is lost, since {', '.join(lost)} becomes another copy")
        engine.resetter().close()

    def delete_of(self, run: str) -> None:
        """Delete the baselines that a run of pytest has saved for itself."""
        for name, about in self.found().whole.items():
            if about.run == run:
                self.delete(name)

    # -- a new one

    def _save(self, name: str, containers: Sequence[ContainerSettings], replace: bool, run: str) -> About:
        engine = self._engine
        names = [each.name for each in containers]
        engine.deployments.recover(names)
        found = self.found()
        if name in found.folders and not replace:
            raise BaselineMissing(
                f"there is a baseline {name} already",
                remedy=f"`stagegbo baseline save {name} --replace` takes its place; `stagegbo baseline delete {name}`",
            )
        self._drop(found.garbage)
        for each in containers:
            engine.running_clone(each.name)
        self._refuse_room(names)
        about = self._about(name, names, run)
        text, key, resetter = json.encode(about).decode(), about.key, engine.resetter()

        def begin(target: ResetTarget) -> None:
            target.run_checked(guest.begin_script(guest.folders_of(target.container), key))
            if target.container.data:
                target.run(_checkpoint_script(target.container))

        def finish(target: ResetTarget) -> None:
            target.run_checked(guest.describe_script(guest.folders_of(target.container), key, text))
            if target.container.data:
                prepare_baseline(target, key + guest.NEW)

        def commit(target: ResetTarget) -> None:
            target.run_checked(guest.commit_script(guest.folders_of(target.container), key))

        committed = False
        try:
            with task(engine.progress, f"save:{name}", f"save baseline {name}: {', '.join(names)}"):
                resetter.on_targets(containers, begin)
                at_one_moment(resetter, containers, lambda target: _keep(target, key))
                resetter.on_targets(containers, finish)
                for container in containers:
                    resetter.on_targets([container], commit)
                    committed = True  # all parts count, whatever they are called
        except StageGboError:
            if not committed:
                with suppress(StageGboError):
                    self._drop(dict.fromkeys(names, (key + guest.NEW,)))
            raise
        self._drop(found.folders.get(name, {}))
        return about

    def _about(self, name: str, names: Sequence[str], run: str) -> About:
        engine = self._engine
        clones = engine.reader.instances(engine.settings.project)
        user = "unknown"
        with suppress(Exception):  # a user without a name
            user = getpass.getuser()
        return plan.About(
            key=secrets.token_hex(8),
            name=name,
            since=datetime.fromtimestamp(clocks.now(), timezone.utc).isoformat(timespec="milliseconds"),
            by=f"{user}@{socket.gethostname()}",
            containers=tuple(names),
            build=plan.build_words(builds_of(clones, engine.settings.containers)),
            clones={each: plan.clone_id(clones[each]) for each in names},
            copied=min(clones[each].created_at for each in names),
            run=run,
        )

    def _refuse_room(self, names: Iterable[str]) -> None:
        """Raise `NoRoom` where the floor is passed already: what is kept takes room once the stage's data changes."""
        engine = self._engine
        for pool in sorted({engine.clone(name).pool for name in names}):
            room = space.look(engine.reader, pool, engine.reader.host()).tightest(engine.settings)
            if room.margin < 0:
                raise NoRoom(
                    "there is no room for a baseline",
                    seen=str(room),
                    remedy="remove what is not needed there, or lower disk_floor; `stagegbo status` shows what the "
                    "stage has taken",
                )

    def _drop(self, folders: Mapping[str, Sequence[str]]) -> None:
        containers = [self._engine.settings.containers[name] for name, own in folders.items() if own]

        def drop(target: ResetTarget) -> None:
            target.run_checked(guest.drop_script(guest.folders_of(target.container), folders[target.name]))

        if containers:
            self._engine.resetter().on_targets(containers, drop)


def _keep(target: ResetTarget, key: str) -> None:
    status, output = target.run(guest.keep_script(guest.folders_of(target.container), key))
    if status:
        raise MissingRequirement(
            f"nothing can be kept of {target.name}",
            seen=mask(output.decode("utf-8", "replace").strip()[-500:]),
            remedy="baselines need a pool whose file system shares blocks between copies (btrfs, XFS, ZFS from 2.2), "
            "and folders with nothing mounted in them",
        )


def _checkpoint_script(container: ContainerSettings) -> str:
    """POSIX shell that has a server write its data down, so that what is kept needs little recovery. It also makes
    commits safe that were not waited for. It may fail."""
    data = shlex.quote(container.data.rstrip("/"))
    return f"""{{ read -r pid; read -r _; read -r _; read -r port; read -r socket; }} <{data}/postmaster.pid
program=$(readlink "/proc/$pid/exe") && psql=${{program%/*}}/psql && [ -x "$psql" ] || psql=psql
PGHOST=$socket PGPORT=$port PGDATABASE=postgres PGCONNECT_TIMEOUT=2 runuser -u "$(stat -c %U {data})" -- \\
    timeout 60 "$psql" -Xqc checkpoint
"""
