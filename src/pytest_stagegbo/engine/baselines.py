"""Named states of several containers: saved at one moment, gone to by resets, deleted.

What is kept lies in the containers themselves, beside the data, and shares blocks with it. So disk limits and the disk
guard count it, it goes with its container, and there is no list of it elsewhere that could say something else.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from msgspec import json

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks
from pytest_stagegbo.engine.baseline_exchange import Exchange
from pytest_stagegbo.engine.moment import at_one_moment
from pytest_stagegbo.errors import BaselineInTheWay, BaselineMissing, MissingRequirement, NoRoom, StageGboError
from pytest_stagegbo.facts import space
from pytest_stagegbo.guest import baselines as guest
from pytest_stagegbo.locks import STAGE
from pytest_stagegbo.plan import baselines as plan
from pytest_stagegbo.plan.builds import builds_of
from pytest_stagegbo.processes import user_at_host
from pytest_stagegbo.progress import task
from pytest_stagegbo.resets.database import prepare_baseline
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.plan.baselines import About, Found
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["Baselines"]


class Baselines:
    """The baselines of one stage, with the locks, shells and reader of its engine."""

    def __init__(self, engine: StageEngine) -> None:
        self._engine = engine
        self._exchange = Exchange(engine, self)
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
        running = [each for each in able if each.name in clones and _may_look(clones[each.name], engine.settings)]

        def look(target: ResetTarget) -> str:
            script = guest.list_script(guest.folders_of(target.container), sizes=sizes)
            return target.run_checked(script).decode("utf-8", "replace")

        texts = engine.resetter().on_targets(running, look) if running else []
        parts = {each.name: plan.parse_parts(text) for each, text in zip(running, texts, strict=True)}
        return plan.resolve(parts, clones, plan.build_words(builds_of(clones, engine.settings.containers)))

    def build(self) -> tuple[str, ...]:
        """What the stage runs, in `build_words`."""
        return plan.build_words(self._engine.deployments.builds())

    def keys(self, name: str) -> dict[str, str]:
        """By container that a baseline has, the key of what is kept. One that another slot has is brought here first.
        The caller has the containers to itself. Raises as `Exchange.look`."""
        about = self._exchange.current(name, self.found())
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
        engine = self._engine
        names = [each.name for each in plan.chosen(engine.settings, ())]
        doing = f"looking for baseline {name}"
        with engine.lock().hold(doing, engine.waiting, shared=(STAGE, *names), exclusive=(), keep_note=True):
            containers = self._exchange.look(name, self.found())[0].containers
        engine.reset(containers, baseline=name)
        return containers

    def delete(self, name: str) -> None:
        """Delete a baseline, whether it can be used or not. Raises `BaselineMissing` if there is none."""
        engine = self._engine
        names = [each.name for each in plan.keepers(engine.settings)]
        with engine.lock().hold(f"delete baseline {name}", engine.waiting, shared=(STAGE,), exclusive=names):
            found = self.found()
            if name not in found.folders:
                raise BaselineMissing(
                    f"the stage has no baseline {name}{did_you_mean([name], found.folders)}",
                    seen="there are " + (", ".join(sorted(found.folders)) or "none"),
                    remedy="`stagegbo baseline list` shows them",
                )
            doomed = {each: set(folders) for each, folders in found.folders[name].items()}
            for each, folders in found.garbage.items():
                doomed.setdefault(each, set()).update(folders)
            self.drop({each: sorted(folders) for each, folders in doomed.items()})

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

    def refuse_to_lose(self, names: Collection[str]) -> None:
        """Raise `BaselineInTheWay` when there are baselines in clones that would be replaced although nobody asked for
        that: another version made them."""
        able = [each.name for each in plan.keepers(self._engine.settings) if each.name in names]
        lost: list[str] = []
        if able:
            with suppress(StageGboError):  # what does not answer has nothing that could be used
                lost = sorted(name for name, own in self.found().folders.items() if own.keys() & set(able))
            self._engine.close()
        if lost:
            raise BaselineInTheWay(
                f"{', '.join(able)} of {self._engine.settings.project} would be replaced, since another version made "
                f"them or settings have changed; these baselines would be lost: {', '.join(lost)}",
                seen="nothing was replaced",
                remedy="to keep them, use the version and the settings that the stage was made with; to give them up: "
                "`stagegbo provision --recreate`",
            )

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
        if (name in found.folders and not replace) or (run and name in found.whole and not found.whole[name].run):
            raise BaselineMissing(
                f"there is a baseline {name} already",
                remedy=f"`stagegbo baseline save {name} --replace` takes its place; `stagegbo baseline delete {name}`",
            )
        self.drop(found.garbage)
        for each in containers:
            engine.running_clone(each.name)
        self.refuse_room(names)
        about = self._about(name, names, run)
        text, key, resetter = json.encode(about).decode(), about.key, engine.resetter()

        def write_down(target: ResetTarget) -> None:
            if target.container.data:
                target.run(_checkpoint_script(target.container))

        def finish(target: ResetTarget) -> None:
            if target.container.data:
                prepare_baseline(target, key + guest.NEW)
            target.run_checked(guest.describe_script(guest.folders_of(target.container), key, text))

        with (
            task(engine.progress, f"save:{name}", f"save baseline {name}: {', '.join(names)}"),
            self.making(containers, key),
        ):
            resetter.on_targets(containers, write_down)
            at_one_moment(resetter, containers, lambda target: _keep(target, key))
            resetter.on_targets(containers, finish)
        self.drop(found.folders.get(name, {}))
        return about

    @contextlib.contextmanager
    def making(self, containers: Sequence[ContainerSettings], key: str) -> Iterator[None]:
        """Make new parts in the block. They are a baseline once it has ended well."""
        resetter, names = self._engine.resetter(), [each.name for each in containers]

        def begin(target: ResetTarget) -> None:
            target.run_checked(guest.begin_script(guest.folders_of(target.container), key))

        def commit(target: ResetTarget) -> None:
            target.run_checked(guest.commit_script(guest.folders_of(target.container), key))

        try:
            self._engine.check_lease()  # what follows goes over kept shells
            resetter.on_targets(containers, begin)
            yield
            self._engine.check_lease()
        except StageGboError:
            with suppress(StageGboError):
                self.drop(dict.fromkeys(names, (key + guest.NEW,)))
            raise
        for container in containers:  # from the first one on all parts count, whatever they are called
            resetter.on_targets([container], commit)

    def _about(self, name: str, names: Sequence[str], run: str) -> About:
        engine = self._engine
        clones = engine.reader.instances(engine.settings.project)
        return plan.About(
            key=secrets.token_hex(8),
            name=name,
            since=datetime.fromtimestamp(clocks.now(), timezone.utc).isoformat(timespec="milliseconds"),
            by=user_at_host(),
            containers=tuple(names),
            build=plan.build_words(builds_of(clones, engine.settings.containers)),
            clones={each: plan.clone_id(clones[each]) for each in names},
            copied=min(clones[each].created_at for each in names),
            run=run,
            origin=engine.settings.project,
        )

    def refuse_room(self, names: Iterable[str], size: int = 0) -> None:
        """Raise `NoRoom` where so many bytes would take what must stay free. What is kept in its own container takes
        room only as data changes."""
        engine = self._engine
        for pool in sorted({engine.clone(name).pool for name in names}):
            room = space.look(engine.reader, pool, engine.reader.host()).tightest(engine.settings)
            if room.margin < size:
                raise NoRoom(
                    "there is no room for a baseline",
                    seen=str(room),
                    remedy="remove what is not needed there, or lower disk_floor; `stagegbo status` shows what the "
                    "stage has taken",
                )

    def drop(self, folders: Mapping[str, Sequence[str]]) -> None:
        """Delete parts by their folders. The caller has their containers to itself."""
        containers = [self._engine.settings.containers[name] for name, own in folders.items() if own]

        def drop(target: ResetTarget) -> None:
            target.run_checked(guest.drop_script(guest.folders_of(target.container), folders[target.name]))

        if containers:
            self._engine.check_lease()
            self._engine.resetter().on_targets(containers, drop)


def _may_look(clone: Instance, settings: Settings) -> bool:
    """Whether it is a finished clone that a command can run in."""
    is_finished = marks.is_clone(clone, settings) and clone.config.get(marks.STATE) == marks.PREPARED
    return is_finished and clone.status == "Running"


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
