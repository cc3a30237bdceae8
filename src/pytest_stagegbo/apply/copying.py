"""Clones copied from their sources: copy-on-write on the source's pool, in full to a pool of the stage's own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from pytest_stagegbo import clocks
from pytest_stagegbo.apply.removal import let_end, patiently, remove_clone
from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.allowlist import at_rest_config, clone_config
from pytest_stagegbo.desired.own_pool import is_own
from pytest_stagegbo.errors import LimitTooSmall, NoRoom, OperationFailed, ServerRefused, StageMissing
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.desired.allowlist import CloneConfig
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.facts.quotas import Limits
    from pytest_stagegbo.incus import Instance, Reader, Writer
    from pytest_stagegbo.incus.localhost import LocalHost
    from pytest_stagegbo.plan import steps
    from pytest_stagegbo.progress import Progress
    from pytest_stagegbo.settings import Settings

__all__ = ["Copies"]

T = TypeVar("T")
NEWS = 10.0
"""Seconds between two notes about how far a full copy is."""
LARGEST_LIMIT = 1 << 50
"""Bytes. A driver that refuses more than this refuses for another reason than the size."""


class Copies:
    """Makes the copies of one provisioning, from several threads at once."""

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        facts: Facts,
        settings: Settings,
        host: LocalHost,
        limits: Limits,
        progress: Progress,
        parent: str,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._facts = facts
        self._settings = settings
        self._host = host
        self._limits = limits
        self._progress = progress
        self._parent = parent
        self._counting = threading.Lock()
        self._in_full = threading.Lock()
        """Held while files are read from production: one after the other, so that its disk stays quick."""

    def copy(self, step: steps.CopyClone, *, managed: bool) -> None:
        """Copy a source, on its own pool copy-on-write, to another pool in full.

        Args:
            managed: NICs name the bridge as a network.

        Raises:
            NoRoom: the pool became full.
            LimitTooSmall: the source references more than the clone's limit.
        """
        name = step.subject
        in_full = step.in_full
        if in_full:
            self._count_simply(step.pool)
        on_progress = self._on_progress(name) if in_full else None

        def copy(source: Instance) -> None:
            wanted = self._clone_config(step, source, managed)
            try:
                with self._in_full if in_full else self._limits.copying(step.pool):
                    self._copy(
                        name,
                        source.name,
                        wanted,
                        target=step.location,
                        architecture=_told(source, step),
                        on_progress=on_progress,
                    )
            except (OperationFailed, ServerRefused) as error:
                if dialect.is_full(error):
                    raise self._full(step, error) from None
                if dialect.over_quota(error) and not in_full:
                    raise self._limit_error(step, source, wanted) from None
                raise

        self._as_configured(step.container.source_name, copy)

    def _as_configured(self, name: str, copy: Callable[[Instance], T]) -> T:
        """Return what `copy` returns for a source. Where Incus refuses that, call it once more with the source as it is
        now.

        The request for a copy names everything of the source that the clone must not have. It can't name what somebody
        gives the source later. Incus takes that over, or refuses the copy where the project's restrictions forbid it.
        """
        source = self._facts.sources[name]
        try:
            return copy(source)
        except ServerRefused:
            now = self._reader.instance(source.project, source.name)
            if now is None or _configuration(now) == _configuration(source):
                raise
            self._progress.note(f"somebody changed {source.name} after it was looked at: it is copied as it is now")
            return copy(now)

    def _count_simply(self, name: str) -> None:
        """Before the first copy to a pool that this tool made: Incus turns ordinary quotas on with the first limit."""
        with self._counting:
            pool = self._reader.pool(name)
            quotas = self._host.quotas(pool)
            if is_own(pool, self._parent or self._settings.project) and quotas is not None and quotas.mode == "off":
                self._host.count_simply(pool)

    def _on_progress(self, name: str) -> Callable[[str], None]:
        """Notes every now and then how much of a full copy is there."""
        last = clocks.monotonic()

        def on_progress(text: str) -> None:
            nonlocal last
            if text and clocks.monotonic() - last >= NEWS:
                last = clocks.monotonic()
                self._progress.note(f"copying {name}: {text.rpartition(': ')[2]}")

        return on_progress

    def _full(self, step: steps.CopyClone, error: OperationFailed | ServerRefused) -> NoRoom:
        return NoRoom(
            f"pool {step.pool} became full while {step.subject} was copied",
            seen=error.seen,
            remedy="make it larger (`incus storage set "
            f"{step.pool} size=SIZE` for a pool in a file), or remove what is on it and not needed; the next run goes "
            "on from here",
        )

    def refresh(self, step: steps.RefreshClone, *, managed: bool) -> None:
        """Copy what differs. The clone is marked as unfinished meanwhile, so a run that is killed is done again."""
        name, copy = step.subject, step.copy

        def stop() -> None:
            let_end(self._reader, self._settings, name)
            clone = self._there(name)
            unfinished = {marks.STATE: marks.BUILDING, marks.PROVEN: "", marks.GENERATION: ""}
            self._writer.set_instance_config(name, unfinished)
            if clone.status != "Stopped":
                self._writer.set_state(name, "stop", force=True)

        patiently(stop, self._settings.timeouts.operation)
        self._count_simply(copy.pool)

        def bring(source: Instance) -> CloneConfig:
            wanted = self._clone_config(copy, source, managed)
            with self._in_full:
                self._writer.refresh_instance(
                    name, source.name, config=wanted.config, devices=wanted.devices, on_progress=self._on_progress(name)
                )
            return wanted

        try:
            wanted = self._as_configured(copy.container.source_name, bring)
        except (OperationFailed, ServerRefused) as error:
            if dialect.is_full(error):
                raise self._full(copy, error) from None
            if not dialect.lost_its_volume(error):
                raise
            remove_clone(self._reader, self._writer, self._settings, name)
            self.copy(copy, managed=managed)
            return
        # As a new copy would have it: nothing stays of the clone's earlier configuration.
        gone = [key for key in self._there(name).config if not key.startswith("volatile.")]
        config = {**dict.fromkeys(gone, ""), **wanted.config}
        devices = {device: each for device, each in wanted.devices.items() if each.get("type") != "none"}
        self._writer.set_instance_config(name, config)
        self._writer.set_instance_devices(name, devices)

    def _clone_config(self, step: steps.CopyClone, source: Instance, managed: bool) -> CloneConfig:
        if step.at_rest:
            return at_rest_config(source, step.container, self._settings)
        golden = bool(self._facts.golden)
        return clone_config(source, step.container, self._settings, managed=managed, golden=golden)

    def _copy(
        self,
        name: str,
        source: str,
        wanted: CloneConfig,
        *,
        target: str = "",
        architecture: str = "",
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self._writer.copy_instance(
            name,
            source,
            config=wanted.config,
            devices=wanted.devices,
            target=target,
            architecture=architecture,
            on_progress=on_progress,
        )

    def _limit_error(self, step: steps.CopyClone, source: Instance, wanted: CloneConfig) -> LimitTooSmall:
        referenced = self._referenced_bytes(step, source, wanted)
        size = "bytes" if referenced is None else f"about {bytes_text(referenced)}"
        return LimitTooSmall(
            f"{step.subject}: the disk limit {step.limit} ({bytes_text(parse_size(step.limit))}) is below the {size} "
            f"that {source.project}/{source.name} already references",
            seen="the storage driver refused the limit; shared bytes count against it",
            remedy=f"raise disk_limit, or set containers.{step.subject}.disk_limit",
        )

    def _referenced_bytes(self, step: steps.CopyClone, source: Instance, wanted: CloneConfig) -> int | None:
        """Bytes that a clone references, as btrfs counts them; where this process can't ask it, found by asking which
        limits the driver takes for one without a limit.

        Drivers report only the bytes that a volume has for itself. The clones never start, and are removed.
        """
        pool = self._reader.pool(source.pool)
        volume = source.name if source.project == "default" else f"{source.project}_{source.name}"
        known = self._host.referenced(pool, volume)
        if known is not None:
            remove_clone(self._reader, self._writer, self._settings, step.subject)
            return known
        try:
            low, high = parse_size(step.limit), parse_size(step.limit) * 2
            while not self._takes_limit(step, source, wanted, high):
                if high > LARGEST_LIMIT:
                    return None
                low, high = high, high * 2
            while high - low > max(high // 20, 1 << 20):
                middle = (low + high) // 2
                if self._takes_limit(step, source, wanted, middle):
                    high = middle
                else:
                    low = middle
        except (OperationFailed, ServerRefused):
            return None
        finally:
            remove_clone(self._reader, self._writer, self._settings, step.subject)
        return high

    def _takes_limit(self, step: steps.CopyClone, source: Instance, wanted: CloneConfig, size: int) -> bool:
        """Whether a new clone takes the limit. Each try needs a new one: btrfs keeps a limit that it refused, and
        then refuses every other limit, too."""
        remove_clone(self._reader, self._writer, self._settings, step.subject)
        root = {**wanted.devices["root"], "size": ""}
        self._copy(step.subject, source.name, replace(wanted, devices={**wanted.devices, "root": root}))
        try:
            limited = {**wanted.devices, "root": {**root, "size": str(size)}}
            self._writer.set_instance_devices(step.subject, limited)
        except (OperationFailed, ServerRefused):
            return False
        return True

    def _there(self, name: str) -> Instance:
        clone = self._reader.instance(self._settings.project, name)
        if clone is None:
            raise StageMissing(
                f"{name} vanished from {self._settings.project}", remedy="run `stagegbo provision` again"
            )
        return clone


def _configuration(source: Instance) -> tuple[object, ...]:
    """What a clone would take over from a source, without what Incus itself notes there."""
    config = {key: value for key, value in source.config.items() if not key.startswith("volatile.")}
    return config, source.devices


def _told(source: Instance, step: steps.CopyClone) -> str:
    """The source's architecture, where Incus has to be told it: it copies to another member of a cluster."""
    return source.architecture if step.location not in {"", source.location} else ""
