"""The seam between the ways to make a container clean and whoever chooses among them."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import CommandFailed
from pytest_stagegbo.incus.channel import MARK, ChannelBroken, framed
from pytest_stagegbo.incus.hostnet import read_way
from pytest_stagegbo.resets.host_inspection import TooMuch, inspect_from_host
from pytest_stagegbo.resets.listing import (
    NOTES,
    Inspection,
    Process,
    entries_script,
    inspect_script,
    main_processes_script,
    parse_entries,
    parse_inspection,
    parse_main_processes,
    remove_script,
)
from pytest_stagegbo.resets.strays import parse_strays, strays_from_host, strays_script
from pytest_stagegbo.services.dial import way_to
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.workers import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pytest_stagegbo.credentials.secret import Secret
    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.incus.channel import Channel
    from pytest_stagegbo.resets.host_inspection import HostInspection
    from pytest_stagegbo.resets.listing import Entry
    from pytest_stagegbo.resets.strays import StrayReport
    from pytest_stagegbo.settings import ContainerSettings, ProbeSettings, Settings

    FindSecret = Callable[["ResetTarget"], Secret]

__all__ = ["NeedsRestart", "ResetTarget"]

DISAGREEMENTS = 3
"""In a row, between looks from inside and from outside, after which the latter are given up."""
MOST = 2500
"""Entries of an inspection, beside as many as the last restart left. More are judged inside the container: faster."""
STARTING = 10.0
"""Seconds for a container that somebody has just started again to keep a shell. Until then the daemon opens one, and
closes it at once."""
PAUSE = 0.1


class NeedsRestart(Exception):
    """A hot reset can't show that it leaves what a restart would. Stays inside this package: a restart follows."""


class ResetTarget:
    """One clone, as resets by this process see it. For one thread at a time.

    Args:
        writer: Of the stage.
        find_secret: Fetches the service's credentials; may raise `StageGboError`.
        find_process: Tells where the container's first process is to be seen below /proc; None: nowhere.
    """

    def __init__(
        self,
        settings: Settings,
        container: ContainerSettings,
        writer: Writer,
        find_secret: FindSecret,
        find_process: Callable[[], Path | None] | None = None,
    ) -> None:
        self.settings = settings
        self.container = container
        self.host = str(container.address)
        self.timeout = settings.timeouts.operation
        self._mark: object = None
        self._from_host: HostInspection | None = None
        self._strays: StrayReport | None = None
        self._process: Path | None = None
        self._disagreed = 0
        self._way: str | None = None
        self.is_full = False
        """The last look saw so many entries that they are moved aside, and not looked at once more."""
        self.known: dict[str, Any] | None = None
        """The note of the service's last restart, as far as this process has read it."""
        self._writer = writer
        self._find_secret = find_secret
        self._find_process = find_process
        self._secret: Secret | None = None
        self._channel: Channel | None = None

    @property
    def name(self) -> str:
        return self.container.name

    @property
    def probe(self) -> ProbeSettings:
        """The first of the container's probes: what its service speaks."""
        return self.container.probes[0]

    @property
    def others(self) -> frozenset[str]:
        """Addresses of the stage's other containers: their connections are no test's."""
        containers = [each for each in self.settings.containers.values() if each.name != self.name]
        found = {each.address for each in containers} | {each.production_address for each in containers} - {None}
        return frozenset(map(str, found))

    def secret(self) -> Secret:
        """The service's credentials, found once. Raises `StageGboError`."""
        if self._secret is None:
            self._secret = self._find_secret(self)
        return self._secret

    def forget(self) -> None:
        """What is known may be of another time: the next reset begins with nothing."""
        self.mark = None
        self.known = None
        self.is_full = False
        self._secret = None

    # -- what the last reset left

    @property
    def mark(self) -> object:
        """What the last reset left, in the words of the strategy; None: nobody knows."""
        return self._mark

    @mark.setter
    def mark(self, value: object) -> None:
        self._mark = value
        self._from_host = None

    def settle(self, mark: object, inspection: Inspection, *, idle: bool = False) -> None:
        """Note what was proven clean, and how that looks from outside, where it can be seen from there.

        Args:
            inspection: From inside, and part of the proof. What the host sees afterwards counts if it is the same.
            idle: The container was found untouched, so it is worth a request to find out where to look.
        """
        self.mark = mark
        # A machine that has no direct way has none that changes, and need not know how to ask: macOS does not.
        self._way = read_way(self.container.address) if way_to(self.host) is None else None
        if idle and self._process is None and self._find_process is not None:
            self._process = self._find_process()
        found = self._inspect_from_host(inspection.processes)
        if found is not None and found.agrees(inspection):
            self._disagreed = 0
            if found.accepted == inspection.accepted:
                self._from_host = found
        elif found is not None or idle:
            # It is not this container that is seen, or its folders can't be seen from here; unless it changed just now.
            self._disagreed += 1
            if found is None or self._disagreed == DISAGREEMENTS:
                self._process = self._find_process = None

    @property
    def way_changed(self) -> bool:
        """Whether this host sends by another interface than when it was clean last: the bridge is gone."""
        return self._way is not None and read_way(self.container.address) != self._way

    @property
    def is_settled(self) -> bool:
        """Whether it is known how the container looked from outside when it was clean."""
        return self._mark is not None and self._from_host is not None

    def unchanged(self, *, accepted: bool) -> HostInspection | None:
        """A glance from outside that shows what the last reset left. None where it does not, or nothing can be seen.

        Args:
            accepted: Whether a connection that was accepted since is a change.
        """
        if self._mark is None or self._from_host is None:
            return None
        known, found = self._from_host, self._inspect_from_host(self._from_host.processes)
        if found is None or (found.processes, found.entries) != (known.processes, known.entries):
            return None
        return found if found.accepted == known.accepted or not accepted else None

    def look_full(self) -> bool:
        """Whether a glance from outside sees very many entries. False where nothing can be seen."""
        if self._mark is None:  # else `unchanged` has just looked
            self._inspect_from_host(())
        return self.is_full

    def _inspect_from_host(self, processes: Sequence[Process]) -> HostInspection | None:
        self.is_full = False
        if self._process is None:
            return None
        try:
            return inspect_from_host(self._process, self.container.wipe, processes)
        except TooMuch:
            self.is_full = True
            return None
        except (OSError, ValueError):
            self._process = None  # it may have been started again
            return None

    # -- inside the container

    @property
    def connected(self) -> bool:
        """Whether there is a shell to the container, which tells that it was this tool's and ran."""
        return self._channel is not None and self._channel.is_open

    def run(
        self,
        script: str,
        timeout: float | None = None,
        *,
        behind: bool = False,
        library: str = "",
        meanwhile: Callable[[bytes], None] | None = None,
    ) -> tuple[int, bytes]:
        """Run a script that may be repeated in the container's kept shell; its status and output. One that works
        `behind` calls `answer`, and goes on.

        Args:
            library: Functions that the script calls, which the kept shell is sent once.
            meanwhile: Gets what the script has printed so far, each time that there is more, where the shell is kept.

        Raises:
            StageGboError: neither the kept shell nor a fresh one did it.
        """
        limit = self.timeout if timeout is None else timeout
        ends = clocks.monotonic() + limit
        if self._channel is not None and self.connected:
            try:
                return self._channel.run(script, limit, behind=behind, library=library, meanwhile=meanwhile)
            except ChannelBroken:
                if clocks.monotonic() >= ends:
                    raise
        patience = min(ends, clocks.monotonic() + STARTING)
        while True:
            try:
                self._channel = self._writer.channel(self.name)
            except ChannelBroken:  # a proxy without websockets is in between, perhaps
                text = f"{library}\n{framed(script, behind=behind)}exit $status"
                result = self._writer.execute(self.name, ["env", f"{MARK}=1", "sh", "-c", text], timeout=limit)
                return result.status, (result.stdout + result.stderr).encode("utf-8", "surrogateescape")
            try:
                left = max(1.0, ends - clocks.monotonic())
                return self._channel.run(script, left, behind=behind, library=library, meanwhile=meanwhile)
            except ChannelBroken:
                if clocks.monotonic() >= patience or interrupted():
                    raise
            clocks.sleep(PAUSE)  # a poll with a deadline: nothing tells when a container that boots keeps a shell

    def run_checked(self, script: str) -> bytes:
        """As `run`. Raises `CommandFailed` for a status other than 0."""
        status, output = self.run(script)
        if status:
            raise CommandFailed(
                f"a command in {self.name} failed with status {status}",
                seen=mask(output.decode("utf-8", "replace").strip()[-500:]),
                remedy=f"look inside with `stagegbo shell {self.name}`",
            )
        return output

    def end_strays(self, *, alone: bool = False) -> StrayReport | None:
        """End what runs in the container and did not when it was clean; prove that nothing of it is left.

        Args:
            alone: This was done at the reset's begin, so nobody else has spoken to systemd since.

        Returns:
            What runs now, and what was ended; None when it is certain that nothing has changed since the last time.

        Raises:
            CommandFailed: it can't be told.
            StageGboError: the container can't be reached.
        """
        seen = self._strays_seen_from_host()
        if self._is_known(seen, alone=alone):
            return None
        if seen is not None and self._strays is not None:
            seen = replace(seen, slept=self._strays.slept)
        script = strays_script(self.container.units, seen or self._strays, alone=alone, seen=seen is not None)
        output = self.run_checked(script)
        self._strays = None
        try:
            found = parse_strays(output)
        except ValueError as error:
            raise CommandFailed(f"what runs in {self.name} is not known", seen=mask(str(error))) from None
        if not found.left:
            self._strays = found
        return found

    def nothing_started(self) -> bool:
        """Whether a glance from outside shows that `end_strays` has nothing to do."""
        return self._is_known(self._strays_seen_from_host(), alone=False)

    def _is_known(self, seen: StrayReport | None, *, alone: bool) -> bool:
        known = self._strays
        if seen is None or known is None or not (alone or seen.slept == known.slept):
            return False
        self._strays = seen
        return True

    def _strays_seen_from_host(self) -> StrayReport | None:
        if self._strays is None:
            return None
        if self._process is None and self._find_process is not None:
            self._process = self._find_process()
        try:
            return None if self._process is None else strays_from_host(self._process, self._strays)
        except (OSError, ValueError):
            self._process = None  # it may have been started again
            return None

    def inspection(self, before: str = "", *, whole: bool = False) -> Inspection:
        """What there is, once the shell commands in `before`, which print nothing, are done. Not complete where there
        is much more than the last restart left.

        Args:
            whole: All of it, however much.

        Raises:
            NeedsRestart: it can't be told.
        """
        status, output = self.run(f"{before}exec 2>/dev/null\n{inspect_script(self.name, self.container.wipe)}")
        try:
            if status:
                raise ValueError(f"status {status}")
            return parse_inspection(output, None if whole else MOST)
        except ValueError as error:
            raise NeedsRestart(f"no look into {self.name}: {error}") from None

    def inspect_paths(self, paths: Iterable[str]) -> tuple[Entry, ...]:
        """What there is of these paths. Raises as `run_checked`."""
        return parse_entries(self.run_checked(entries_script(paths)))

    def clear(self, kept: Sequence[Entry], before: str = "") -> Inspection:
        """Remove everything in the folders to wipe but `kept`, and inspect the container.

        Raises:
            NeedsRestart: what is left can't be told.
        """
        return self.inspection(self.removal(kept, before))

    def removal(self, kept: Sequence[Entry], before: str = "", *, many: bool = False) -> str:
        """Shell commands for `inspection` that remove everything in the folders to wipe but `kept`.

        Args:
            many: There is so much that it is moved aside.
        """
        removal = remove_script(self.container.wipe, kept, many=many) if self.container.wipe else ""
        return f"{{ {before}{removal}}} >/dev/null 2>&1\n"

    # -- what a restart wrote down

    def read_note(self, inspection: Inspection) -> dict[str, Any]:
        """The note of the service's last restart. Raises `NeedsRestart` unless it is of the processes that run now."""
        if not inspection.note:
            raise NeedsRestart(f"no reset has left {self.name} clean since its service started")
        try:
            note: dict[str, Any] = json.loads(inspection.note)
            processes = tuple(Process(*each) for each in note["processes"])
        except (ValueError, TypeError, KeyError):
            raise NeedsRestart(f"the note about {self.name} is damaged") from None
        if not processes or processes != inspection.processes:
            raise NeedsRestart(f"{self.name}'s service was started again since the last restart by a reset")
        if note.get("settings") != self._fingerprint():
            raise NeedsRestart(f"the settings of {self.name} were others")
        return note

    def note_script(self, extra: dict[str, Any], processes: Sequence[Process]) -> str:
        """Shell commands that write the note down. One that is cut off is no note."""
        content = {"processes": [[each.pid, each.started] for each in processes], "settings": self._fingerprint()}
        text = json.dumps({**extra, **content})
        pids = " ".join(str(each.pid) for each in processes)
        note = f"{NOTES}/{self.name}"
        return (
            f"(umask 077; [ -d {NOTES} ] || mkdir {NOTES}; printf '%s\\n' {shlex.quote(text)} >{note}; "
            f"echo {pids} >{note}.pids)\n"
        )

    def _fingerprint(self) -> list[object]:
        return [list(self.container.wipe), list(self.container.units)]

    def main_processes(self) -> tuple[Process, ...]:
        """Those of the container's units that run."""
        units = self.container.units
        return parse_main_processes(self.run_checked(main_processes_script(units)) if units else b"")

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
