"""Containers made clean: each in the way that its settings choose, several at once, with a proof."""

from __future__ import annotations

import contextlib
import logging
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import CommandFailed, Residue, SettingsError, StageGboError, StageMissing
from pytest_stagegbo.progress import task
from pytest_stagegbo.resets.hot import HotReset, hot_way
from pytest_stagegbo.resets.listing import NOTES
from pytest_stagegbo.resets.outcome import Outcome, record
from pytest_stagegbo.resets.restart import SHOWN, restart
from pytest_stagegbo.resets.stall_watch import StallWatch
from pytest_stagegbo.resets.target import NeedsRestart, ResetTarget
from pytest_stagegbo.services.answer import NoAnswer
from pytest_stagegbo.workers import Workers, at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_stagegbo.credentials.secret import Secret
    from pytest_stagegbo.incus import Reader, Writer
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["Outcome", "Resetter"]

T = TypeVar("T")
log = logging.getLogger("stagegbo.reset")

STALLED = 1.0
"""Seconds of a reset after which it is worth a request whether the container is paused."""
TRIES = 2
"""Restarts, should something be started meanwhile that may have written to what was cleared."""


class Resetter:
    """Resets the containers of one stage, over shells that are kept open. For one thread at a time.

    Args:
        start: Makes sure that the clone is this tool's and runs. Raises `StageGboError`.
        restore: Brings a clone back to its snapshot, and leaves it stopped.
        wait: Waits until a container answers; the flag says that its first boot has to be seen too.
        thaw: Lets a container go on that is paused.
        check_lease: Raises `LeaseLost` when the stage may be another host's by now.
    """

    def __init__(
        self,
        settings: Settings,
        reader: Reader,
        writer: Writer,
        progress: Progress,
        *,
        start: Callable[[ContainerSettings], None],
        restore: Callable[[ContainerSettings], None],
        wait: Callable[[ContainerSettings, bool], None],
        thaw: Callable[[ContainerSettings], None],
        check_lease: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._writer = writer
        self._progress = progress
        self._start = start
        self._bring_back = restore
        self._wait = wait
        self._thaw = thaw
        self._check_lease = check_lease
        self._targets: dict[str, ResetTarget] = {}
        self._at: dict[str, str] = {}
        """By container, the key of the baseline that this process has brought it to last."""
        self.cleaned: dict[str, float] = {}
        """By container, when this process had it clean last, in epoch seconds."""
        self._threads: Workers | None = None
        self._stalls = StallWatch(STALLED, self._thaw_paused)
        self._owner = os.getpid()

    def reset(
        self,
        containers: Sequence[ContainerSettings],
        left_by: Mapping[str, str] = MappingProxyType({}),
        baselines: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Outcome, ...]:
        """Make containers clean, all at once, and prove it.

        Args:
            left_by: By container, the test that used it last, for errors.
            baselines: By container, the key of the baseline that is its clean state.

        Raises:
            Residue: something can't be removed.
            StageGboError: anything else in its tree; the first one, the others are noted.
        """
        self._leave_parent()
        origin = clocks.monotonic()
        done: dict[str, Outcome | StageGboError] = {}
        calm: set[str] = set()

        def one(container: ContainerSettings) -> Outcome | StageGboError:
            try:
                left, key = left_by.get(container.name, ""), baselines.get(container.name, "")
                return self._one(container, left, origin, container.name in calm, key)
            except StageGboError as error:
                self._target(container).forget()
                return self._gone(container, error) or error

        # One after the other in this thread: that takes less time than it would take to wake others.
        for container in containers:
            at_it = self._at.get(container.name, "") == baselines.get(container.name, "")
            if at_it and (outcome := self._untouched(container, origin, calm)):
                done[container.name] = outcome
        left = [container for container in containers if container.name not in done]
        if left:
            with self._stalls.watching(left):
                done |= zip((each.name for each in left), self._each(one, left), strict=True)
        found = [done[container.name] for container in containers]
        cleaned = [name for name, each in done.items() if isinstance(each, Outcome)]
        self.cleaned.update(dict.fromkeys(cleaned, clocks.now()))
        record(self._progress, self._settings.project, containers, found, origin)
        errors = [each for each in found if isinstance(each, StageGboError)]
        for other in errors[1:]:
            self._progress.note(f"also failed: {other}")
        if errors:
            raise errors[0]
        return tuple(each for each in found if isinstance(each, Outcome))

    def _leave_parent(self) -> None:
        """Threads and sockets of the parent are not the child's."""
        if self._owner != os.getpid():
            self._targets, self._at, self._threads, self._owner = {}, {}, None, os.getpid()
            self._stalls = StallWatch(STALLED, self._thaw_paused)

    def is_at_baseline(self, name: str) -> bool:
        """Whether this process has brought a container to a baseline last."""
        return bool(self._at.get(name))

    def on_targets(self, containers: Sequence[ContainerSettings], call: Callable[[ResetTarget], T]) -> list[T]:
        """The result of `call` for each container, whose kept shell it uses, all at once. Raises the first one's error
        when all have ended."""
        self._leave_parent()
        return self._each(lambda container: call(self._target(container)), containers)

    def _each(self, one: Callable[[ContainerSettings], T], containers: Sequence[ContainerSettings]) -> list[T]:
        if len(containers) == 1:
            return [one(containers[0])]
        if self._threads is None:
            self._threads = Workers(8, "stagegbo reset")
        try:
            return at_once(one, containers, "stagegbo reset", kept=self._threads)
        except BaseException:  # interrupted: what goes on in the shells ends with them
            self.close()
            raise

    def _gone(self, container: ContainerSettings, error: StageGboError) -> StageGboError | None:
        """What to say instead where there is no such container any more; None: there is one."""
        with contextlib.suppress(StageGboError):
            if self._reader.instance(self._settings.project, container.name) is None:
                return StageMissing(
                    f"{self._settings.project} has no container {container.name} any more",
                    seen=error.message,
                    remedy="give it its name back if somebody renamed it, or run `stagegbo provision`",
                )
        return None

    def close(self) -> None:
        """End the kept shells. A later reset opens new ones."""
        if self._owner == os.getpid():
            for target in self._targets.values():
                target.close()
            if self._threads is not None:
                self._threads.shutdown(wait=False)
        self._targets, self._at, self._threads = {}, {}, None

    # -- one container

    def _target(self, container: ContainerSettings) -> ResetTarget:
        target = self._targets.get(container.name)
        if target is None:
            target = ResetTarget(
                self._settings,
                container,
                self._writer,
                self._find_secret,
                lambda: self._find_process(container),
            )
            self._targets[container.name] = target
        return target

    def _find_secret(self, target: ResetTarget) -> Secret:
        from pytest_stagegbo.resets.secrets import find_secret

        return find_secret(target, self._reader)

    def _find_process(self, container: ContainerSettings) -> Path | None:
        """The container's first process, as the daemon sees it: that may be in a namespace of its own. None where this
        process may not look, or it can't be told: the look from inside is always there."""
        host = self._reader.host()
        if host.place("/proc") is None:
            return None
        try:
            init = self._reader.init(self._settings.project, container.name)
        except StageGboError:
            return None
        return host.place(f"/proc/{init}") if init else None

    def _untouched(self, container: ContainerSettings, origin: float, calm: set[str]) -> Outcome | None:
        """The outcome for a container that is certain to be clean still; None: not certain.

        Args:
            calm: Gets the container's name when nothing runs in it that may have to be ended.
        """
        target, hot = self._targets.get(container.name), hot_way(container)
        if target is None or hot is None or not target.connected or not target.is_settled or target.way_changed:
            return None
        began = clocks.monotonic() - origin
        try:
            if not target.nothing_started():  # first: what is not clean after this was done by nobody who is gone
                return None
            calm.add(container.name)
        except StageGboError:
            return None
        if not _untouched(hot, target):
            return None
        with task(self._progress, f"clear:{container.name}", f"reset {container.name} ({container.reset})"):
            return Outcome(container.name, "untouched", began, clocks.monotonic() - origin)

    def _one(self, container: ContainerSettings, left_by: str, origin: float, calm: bool, baseline: str) -> Outcome:
        target = self._target(container)
        began = clocks.monotonic() - origin
        if self._at.pop(container.name, "") != baseline:  # what is clean for one is dirty for any other
            target.forget()
        with task(self._progress, f"clear:{container.name}", f"reset {container.name} ({container.reset})"):
            way, doubt = self._clean(target, left_by, calm, baseline)
        if baseline:
            self._at[container.name] = baseline
        log.info("%s: %s%s", container.name, way, f", since {doubt}" if doubt else "")
        return Outcome(container.name, way, began, clocks.monotonic() - origin, doubt)

    def _thaw_paused(self, containers: Sequence[ContainerSettings]) -> None:
        """A paused container takes connections and answers nothing: shells and services would be waited for in vain."""
        for container in containers:
            try:
                self._thaw(container)
            except StageGboError as error:
                log.debug("%s: whether it is paused can't be told: %s", container.name, error)

    def _clean(self, target: ResetTarget, left_by: str, calm: bool, baseline: str) -> tuple[str, str]:
        """How the container was made clean, and why not in the hot way.

        Args:
            calm: A glance has just shown that nothing runs that has to be ended.
        """
        container = target.container
        if not target.connected or target.way_changed:  # a shell needs no bridge
            self._start(container)
        if container.reset == "restore":
            self._restore(target)
            return "restore", ""
        if container.data and container.reset == "hot":
            self._end_strays(target, left_by)
            return self._database(target, left_by, baseline)
        if not container.wipe:
            raise SettingsError(
                f"{container.name} has nothing to clear",
                seen=f"containers.{container.name}.wipe is empty",
                remedy=f'name folders in that setting, or set containers.{container.name}.reset = "restore"',
            )
        hot = hot_way(container)
        doubt = ""
        found = () if calm else self._end_strays(target, left_by)
        if hot is not None and baseline:
            if not found and target.mark is not None and _untouched(hot, target):
                return "untouched", ""
        elif hot is not None:
            try:
                self._check_lease()  # it writes to the service itself, too
                if not hot.clean(target):
                    return ("hot" if found else "untouched"), ""
                if not self._end_strays(target, left_by):
                    return "hot", ""
                doubt = "something was started while it was reset"
            except (NeedsRestart, NoAnswer, StageGboError, KeyError, TypeError, ValueError) as error:
                target.mark = None
                doubt = str(error).partition("\n")[0] or type(error).__name__
        self._start(container)
        for _ in range(TRIES):
            restart(self._writer, target, left_by, baseline)
            self._wait(container, False)
            found = self._end_strays(target, left_by, alone=True)
            if not found:
                break
        else:
            raise _residue(target, found, left_by)
        if hot is not None:
            self._take_note(target, hot, baseline)
        return "restart", doubt

    def _end_strays(self, target: ResetTarget, left_by: str, *, alone: bool = False) -> tuple[str, ...]:
        """End what did not run when the container was clean; what it was. Raises `Residue` when that can't be done."""
        slot_statuses = target.end_strays(alone=alone)
        if slot_statuses is None:
            return ()
        if slot_statuses.left:
            raise _residue(target, slot_statuses.left, left_by)
        if slot_statuses.ended:
            log.info("%s: ended %s, which did not run when it was clean", target.name, ", ".join(slot_statuses.ended))
        return slot_statuses.ended

    def _take_note(self, target: ResetTarget, hot: HotReset, baseline: str) -> None:
        """What the next hot reset must know. Without it, that is a restart again, as it must be after a baseline."""
        try:
            processes = target.main_processes()
            if baseline:
                pids = " ".join(str(each.pid) for each in processes)
                target.run_checked(f"[ -d {NOTES} ] || mkdir {NOTES}; echo {pids} >{NOTES}/{target.name}.pids")
                hot.settle(target)
                return
            target.run_checked(target.note_script({}, processes))  # so that the look sees them
            target.run_checked(target.note_script(hot.note(target, target.inspection(whole=True)), processes))
        except (NeedsRestart, NoAnswer, StageGboError, KeyError, TypeError, ValueError) as error:
            log.debug("%s: no hot reset next time: %s", target.name, error)

    def _database(self, target: ResetTarget, left_by: str, baseline: str) -> tuple[str, str]:
        from pytest_stagegbo.resets.database import reset_database

        try:
            way, doubt, answered = reset_database(target, baseline or "clean")
        except NeedsRestart as reason:
            if baseline:
                raise _not_at_baseline(target, str(reason)) from None
            self._restore(target)
            return "restore", str(reason)
        if not answered:
            self._wait(target.container, False)
        if self._end_strays(target, left_by, alone=True):
            if baseline:
                raise _not_at_baseline(target, "something was started while it was brought there")
            self._restore(target)
            return "restore", "something was started while it was reset"
        return way, doubt

    def _restore(self, target: ResetTarget) -> None:
        target.close()
        target.forget()
        self._bring_back(target.container)
        self._start(target.container)
        self._wait(target.container, True)


def _untouched(hot: HotReset, target: ResetTarget) -> bool:
    try:
        return hot.untouched(target)
    except (NeedsRestart, NoAnswer, StageGboError, KeyError, TypeError, ValueError):
        return False


def _not_at_baseline(target: ResetTarget, seen: str) -> CommandFailed:
    return CommandFailed(
        f"{target.name} can't be brought to the baseline",
        seen=seen,
        remedy=f"run `stagegbo reset {target.name}`; if this happens again, delete the baseline and save it again",
    )


def _residue(target: ResetTarget, left: Sequence[str], left_by: str) -> Residue:
    return Residue.of(
        target.name,
        left[:SHOWN],
        left_by,
        seen="it did not run when the container was clean",
        remedy=f"look inside with `stagegbo shell {target.name}`, or restart the container: "
        f"`incus restart --force --project {target.settings.project} {target.name}`",
    )
