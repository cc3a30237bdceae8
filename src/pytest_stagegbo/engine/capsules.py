"""Capsules: what failed tests left in the containers of a stage, kept at one moment.

What is kept lies in the clones themselves and shares blocks with their data: copies of files, and no snapshots, whose
deletion would make production wait on a pool with ordinary quotas. A mark on the first clone makes a capsule whole; it
is set last, and taken away first. Before this tool replaces a clone that has a part, it keeps a copy of the clone,
which is never started.
"""

from __future__ import annotations

import contextlib
import secrets
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from msgspec import Struct, json

from pytest_stagegbo import clocks
from pytest_stagegbo.apply.removal import remove_clone
from pytest_stagegbo.desired import marks
from pytest_stagegbo.engine.moment import at_one_moment
from pytest_stagegbo.errors import CapsuleMissing, MissingRequirement, StageGboError
from pytest_stagegbo.flock import FileLock
from pytest_stagegbo.guest import capsules as guest
from pytest_stagegbo.plan import capsules as plan
from pytest_stagegbo.plan.baselines import build_words
from pytest_stagegbo.plan.builds import builds_of
from pytest_stagegbo.processes import user_at_host
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.settings.duration import parse_duration
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.plan.capsules import Capsule
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["Capsules", "Draft", "Occasion"]

DELETING = 60.0
"""Seconds for a container to rename what is to be deleted in it."""


class Occasion(Struct, frozen=True):
    """The failure that something is kept of."""

    test: str
    phase: str = ""
    slot: int = 0
    marks: tuple[str, ...] = ()
    seed: str = ""


class Draft(Struct):
    """A capsule that is not whole yet."""

    key: str
    texts: dict[str, str]
    """By name, texts to keep: `report`, `logs`."""


class Capsules:
    """The capsules of one stage, with the shells, reader and writer of its engine."""

    def __init__(self, engine: StageEngine) -> None:
        self.engine = engine

    def found(self) -> list[Capsule]:
        """What there is, the oldest first: one request."""
        return plan.resolve(self._instances(), self.engine.settings)

    @contextlib.contextmanager
    def keeping(self, names: Collection[str], occasion: Occasion) -> Iterator[Draft]:
        """Keep what containers hold at this moment. It is a capsule once the block has ended well. The oldest ones are
        deleted in that moment, as far as the limits ask for it: what is kept shares its blocks, so it needs no room
        before.

        Args:
            names: Containers that the caller uses. What has no state, or does not run, is left out.

        Raises:
            MissingRequirement: nothing can be kept of any of them, or it is more than all capsules may have.
            StageGboError: anything else in its tree. There is no new capsule.
        """
        engine, resetter = self.engine, self.engine.resetter()
        with self._alone():
            instances = self._instances()
            containers, left_out = self._able(names, instances)
            capsules = plan.resolve(instances, engine.settings)
            key, known = secrets.token_hex(4), [each.key for each in capsules]
            engine.check_lease()  # what follows goes over kept shells
            since = datetime.fromtimestamp(clocks.now(), timezone.utc).isoformat(timespec="milliseconds")

            def begin(target: ResetTarget) -> None:
                target.run_checked(guest.begin_script(target.container, key, known))

            resetter.on_targets(containers, begin)
            at_one_moment(resetter, containers, lambda target: _keep(target, key), as_it_is=True)
            draft = Draft(key, {})
            yield draft
            first = containers[0].name

            def finish(target: ResetTarget) -> int:
                texts = draft.texts if target.name == first else {}
                return int(target.run_checked(guest.finish_script(target.container, key, texts)))

            wanted = [each.name for each in containers]
            about = plan.About(
                key=key,
                test=occasion.test,
                since=since,
                by=user_at_host(),
                containers=tuple(wanted),
                clones={name: plan.files_id(instances[name]) for name in wanted},
                sizes=dict(zip(wanted, resetter.on_targets(containers, finish), strict=True)),
                phase=occasion.phase,
                slot=occasion.slot,
                build=build_words(builds_of(instances, engine.settings.containers)),
                copied=min(instances[name].created_at for name in wanted),
                marks=occasion.marks,
                seed=occasion.seed,
                left_out=left_out,
            )
            most = parse_size(engine.settings.capsules.size)
            if about.size > most:
                resetter.on_targets(containers, lambda target: target.run(guest.drop_script(target.container, [key])))
                raise MissingRequirement(
                    f"what the test left is {bytes_text(about.size)}, and all capsules of a stage may have "
                    f"{bytes_text(most)}",
                    seen=", ".join(f"{name} {bytes_text(size)}" for name, size in about.sizes.items()),
                    remedy="raise capsules.size",
                )
            kept = plan.Capsule(about, {name: name for name in wanted}, ())
            due = self._due(instances, [*capsules, kept])
            self._drop(instances, capsules, due, new=(first, about))

    def _able(
        self, names: Collection[str], instances: Mapping[str, Instance]
    ) -> tuple[list[ContainerSettings], dict[str, str]]:
        """The containers of a new capsule, and why others are left out."""
        settings = self.engine.settings
        able, left_out = [], {}
        for name, container in settings.containers.items():
            clone = instances.get(name)
            if name not in names:
                continue
            if not guest.folders_of(container):
                left_out[name] = f"containers.{name} has no data, wipe or state"
            elif clone is None or not marks.is_clone(clone, settings):
                left_out[name] = "it is not this stage's"
            elif not clone.is_running:
                left_out[name] = f"it is {clone.status.lower()}"
            else:
                able.append(container)
        if not able:
            raise MissingRequirement(
                "there is nothing to keep of " + (", ".join(sorted(names)) or "this test"),
                seen="; ".join(f"{name}: {why}" for name, why in left_out.items()),
                remedy="name folders with state in containers.NAME.state",
            )
        return able, left_out

    def text(self, capsule: Capsule, name: str) -> str:
        """A text of a capsule; empty: it has none."""
        engine, container = self.engine, self.engine.settings.containers.get(capsule.about.containers[0])
        holder = capsule.holders.get(container.name) if container is not None else None
        if container is None or holder is None:
            return ""
        path = guest.text_path(container, capsule.key, name)
        clone = engine.reader.instance(engine.settings.project, holder)
        if clone is not None and clone.is_running:
            result = engine.clone_writer().execute(holder, ["cat", path])
            return result.stdout if result.status == 0 else ""
        content = engine.reader.file(engine.settings.project, holder, path)
        return (content or b"").decode("utf-8", "replace")

    # -- the end of capsules

    def drop(self, keys: Collection[str]) -> None:
        """Delete capsules. What is gone is fine."""
        with self._alone():
            instances = self._instances()
            self._drop(instances, plan.resolve(instances, self.engine.settings), keys)

    def prune(self, *, age: float | None = None, only_old: bool = False) -> tuple[str, ...]:
        """Delete what the limits of the settings, or an age in seconds, don't allow, what has lost a part, and what
        killed runs left of copies. Returns their keys."""
        with self._alone():
            instances = self._instances()
            capsules = plan.resolve(instances, self.engine.settings)
            gone = set(self._due(instances, capsules, age))
            if not only_old:
                gone |= {each.key for each in capsules if each.lost}
                self._sweep(instances, [each.key for each in capsules])
            if gone or not only_old:
                self._drop(instances, capsules, gone)
            return tuple(each.key for each in capsules if each.key in gone)

    def drop_oldest(self) -> bool:
        """Delete the oldest capsule, to make room; whether there was one. Does not wait while one is being kept."""
        lock = self._file_lock()
        if not lock.attempt():
            return False
        with lock:
            instances = self._instances()
            capsules = plan.resolve(instances, self.engine.settings)
            self._drop(instances, capsules, [each.key for each in capsules[:1]])
            return bool(capsules)

    def _due(
        self, instances: Mapping[str, Instance], capsules: Sequence[Capsule], age: float | None = None
    ) -> tuple[str, ...]:
        """The capsules that have to go. A request for each copy of a clone that was replaced."""
        engine, limits = self.engine, self.engine.settings.capsules
        longest = float(parse_duration(limits.age)) if age is None else age
        pinned = [
            plan.Pinned(held, engine.reader.volume_usage(copy.pool, copy.project, copy.name) or 0)
            for copy in plan.copies(instances.values(), engine.settings)
            if (held := plan.held_by(copy))
        ]
        size = parse_size(limits.size)
        return plan.due(capsules, limits, clocks.now(), age=longest, size=size, pinned=pinned)

    def _drop(
        self,
        instances: Mapping[str, Instance],
        capsules: Sequence[Capsule],
        keys: Collection[str],
        *,
        new: tuple[str, plan.About] | None = None,
    ) -> None:
        """Delete capsules, and copies that nobody needs any more, or whose maker was killed.

        Args:
            new: Becomes a capsule at the same time: the container to mark. Its kept shells are used, too.
        """
        engine = self.engine
        gone = [each for each in capsules if each.key in keys]
        changed: dict[str, dict[str, str]] = {}
        parts: dict[str, list[str]] = {}
        for each in gone:
            for name in each.marked:
                changed.setdefault(name, {})[marks.CAPSULE + each.key] = ""
            for name, holder in each.holders.items():
                if name == holder and name in engine.settings.containers and instances[name].is_running:
                    parts.setdefault(name, []).append(each.key)
        if new is not None:  # last, so that there are never more than the limits allow
            first, about = new
            changed[first] = {**changed.pop(first, {}), marks.CAPSULE + about.key: json.encode(about).decode()}
        for name, config in changed.items():
            engine.clone_writer().set_instance_config(name, config)

        containers = {name: engine.settings.containers[name] for name in parts}
        scripts = {name: guest.drop_script(containers[name], own) for name, own in parts.items()}
        if new is None:
            self._run_in(scripts)
        elif scripts:
            with suppress(StageGboError):
                engine.resetter().on_targets([*containers.values()], lambda target: target.run(scripts[target.name]))
        left = {each.key for each in capsules if each not in gone}
        for copy in plan.copies(instances.values(), engine.settings):
            if not left & plan.held_by(copy):
                remove_clone(engine.reader, engine.clone_writer(), engine.settings, copy.name)

    def _sweep(self, instances: Mapping[str, Instance], known: Collection[str]) -> None:
        """Delete what killed runs have left of capsules in clones."""
        settings = self.engine.settings
        self._run_in(
            {
                name: guest.sweep_script(container, known)
                for name, container in settings.containers.items()
                if guest.folders_of(container)
                and name in instances
                and marks.is_clone(instances[name], settings)
                and instances[name].is_running
            }
        )

    def _run_in(self, scripts: Mapping[str, str]) -> None:
        """Run a script in each of some containers. What one leaves, the beginning of the next capsule deletes."""
        for name, script in scripts.items():
            with suppress(StageGboError):
                self.engine.clone_writer().execute(name, ["sh", "-c", script], timeout=DELETING)

    # -- clones that are replaced

    def preserve(self, instances: Mapping[str, Instance], names: Collection[str]) -> None:
        """Keep copies of clones that have parts of capsules, before they are replaced or restored. The caller has them
        to itself. A copy that can't be had is no error: then the capsule loses that part, and a note says so.

        Args:
            instances: All of the stage's project.
        """
        settings = self.engine.settings
        if not any(key.startswith(marks.CAPSULE) for each in instances.values() for key in each.config):
            return
        with self._alone():
            for name in names:
                held = [each for each in plan.resolve(instances, settings) if each.holders.get(name) == name]
                if held:
                    instances = self._preserve(instances, name, [each.key for each in held])

    def _preserve(self, instances: Mapping[str, Instance], name: str, keys: Sequence[str]) -> Mapping[str, Instance]:
        engine, writer = self.engine, self.engine.clone_writer()
        settings, copy = engine.settings, f"{name}-kept-{secrets.token_hex(4)}"
        try:
            capsules = plan.resolve(instances, settings)
            full = len(plan.copies(instances.values(), settings)) >= plan.COPIES
            while full and capsules:
                self._drop(instances, capsules, [capsules[0].key])
                instances = self._instances()
                capsules = plan.resolve(instances, settings)
                full = len(plan.copies(instances.values(), settings)) >= plan.COPIES
            keys = [key for key in keys if key in {each.key for each in capsules}]
            if not keys:
                return instances
            clone = instances[name]
            config = {
                marks.STATE: marks.BUILDING,
                marks.INSTANCE: marks.identity(settings.project, copy),
                marks.KEPT_FROM: name,
                marks.HOLDS: " ".join(keys),
                marks.BUILD: "",
                "boot.autostart": "false",
            }
            devices = {"root": dict(clone.devices["root"]), "eth0": {"type": "none"}}
            writer.copy_instance(copy, name, config=config, devices=devices, project=settings.project)
            writer.set_instance_config(copy, {marks.STATE: marks.PREPARED})
        except StageGboError as error:
            engine.progress.note(f"capsules {', '.join(keys)} lose what they have of {name}: {error.message}")
        return self._instances()

    # -- together

    def whole(self, word: str) -> Capsule:
        """The capsule that an identifier, or its beginning, means. Raises `CapsuleMissing`."""
        capsule = plan.chosen(self.found(), word)
        if capsule.lost:
            raise CapsuleMissing(
                f"capsule {capsule.key} has lost its part of {', '.join(capsule.lost)}",
                seen="the container was replaced without this tool, or there was no room for a copy of it",
                remedy=f"`stagegbo capsule export {capsule.key}` writes its report and logs; "
                f"`stagegbo capsule drop {capsule.key}`",
            )
        return capsule

    def _instances(self) -> Mapping[str, Instance]:
        return self.engine.reader.instances(self.engine.settings.project)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of this host at a time changes capsules; other hosts have no lease of the stage."""
        with self._file_lock():
            yield

    def _file_lock(self) -> FileLock:
        lock = self.engine.lock()
        lock.make_folder()
        return FileLock(lock.folder / "capsules")


def _keep(target: ResetTarget, key: str) -> None:
    status, output = target.run(guest.keep_script(target.container, key))
    if status:
        raise MissingRequirement(
            f"nothing can be kept of {target.name}",
            seen=mask(output.decode("utf-8", "replace").strip()[-500:]),
            remedy="capsules need a pool whose file system shares blocks between copies (btrfs, XFS, ZFS from 2.2), "
            "and folders with nothing mounted in them",
        )
