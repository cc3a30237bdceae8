"""Keeps a session's tests from filling the disk that production lives on.

Every pytest process that uses a stage has a guard of its own (each worker of pytest-xdist is one): a worker can only
stop itself, and a guard elsewhere would go with whatever killed its process. They need not know of each other, for
everything that one does to a container another may do once more.

Below the floor, a guard first freezes the stage's containers, which keeps them from writing within milliseconds;
has the host write out what it holds, so that the counts are true; stops those containers that have grown, whose
data stays for a look inside; lets the others go on; and then ends the session. Where the counts are not to be
relied on, since btrfs has stopped counting or nobody sees whether it does, all of the stage's containers are stopped:
production goes first. How far below the floor a pool gets
depends on how fast it is filled and how often the guard looks: it looks the more often the nearer the floor is.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import NoRoom
from pytest_stagegbo.facts.space import look, pool_names
from pytest_stagegbo.facts.usage import used_bytes
from pytest_stagegbo.session.capsule_room import RESERVE, CapsuleRoom
from pytest_stagegbo.session.parallel import run_parallel
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.facts.space import Room, Space
    from pytest_stagegbo.incus import Instance, Pool, Writer
    from pytest_stagegbo.incus.localhost import Host

__all__ = ["DiskGuard", "growers", "pause"]

FASTEST = 0.02
"""Seconds between two looks while the pool is filling and the floor is near."""
NEAR = 0.1
"""Seconds between two looks while the floor is near and nothing happens."""
SUDDEN = 2 * 2**30
"""Bytes a second at which a pool may begin to fill from one look to the next: what memory takes, not what disks do."""
SMALLEST_GROWTH = 2**20
"""Bytes that a container's volume may grow by without being said to have grown."""
AGAIN = 60.0
"""Seconds between two rescans of a pool's quotas that this guard asks for."""
PATIENCE = 10.0
"""Seconds to wait for the daemon with each of the things done about a full pool."""


class DiskGuard:
    """Watches the pools of one stage, and the host's file system below those that are files.

    Args:
        stop: Called once, in the guard's own thread, when a floor was passed and the containers that grew are
            stopped (or could not be).
        interval: Seconds between two looks while nothing is near.
        host: What is known of the daemon's machine.
        drop_capsule: Deletes the stage's oldest capsule; whether there was one.
        clock: Seconds, steadily rising.
    """

    def __init__(
        self,
        engine: StageEngine,
        stop: Callable[[NoRoom], None],
        *,
        interval: float = 0.5,
        host: Host | None = None,
        drop_capsule: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = clocks.monotonic,
    ) -> None:
        self._engine = engine
        self._stop = stop
        self._interval = interval
        self._host = host
        self._clock = clock
        self._pools: list[str] = []
        self._writer: Writer | None = None
        self._base: dict[str, tuple[str, int]] | None = None
        self._began = clock()
        self._last: tuple[float, int] | None = None
        self._known: dict[str, Pool] = dict(engine.known_pools())
        """Pools as they were at the last look: a daemon that is busy is asked as little as can be."""
        self._room: dict[str, int] = {}
        """By pool, its free bytes when the guard began."""
        self._seen = True
        """Whether every look saw that the pools' quotas count."""
        self._doubt = ""
        """Why growth is not known: what was wrong with the quotas at some look."""
        self._rescanned = -AGAIN
        self._told = False
        self._trouble = ""
        self.spaces: list[Space] = []
        """What the last look has found."""
        self._closing = threading.Event()
        self._capsules = CapsuleRoom(drop_capsule, self._closing, self._remember)
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Look once, now: two requests a pool, or none where the host itself tells and the pool is known.

        Raises:
            NoRoom: a floor is passed; says who grew by how much since the guard began.
            ServerUnreachable: the daemon does not answer.
            ServerRefused: it does not show what was asked for.
        """
        full = _lowest(self._spaces())
        if full is not None and full.margin < 0:
            full = self._capsules.make(full, lambda: _lowest(self._spaces()))
        if full is not None and full.margin < 0:
            grown = self.growth()
            raise self._error(full, grown, (), self._unknown(grown))

    def start(self) -> None:
        """Note how large the stage's containers are, and watch from now on, in a thread of its own."""
        if self._thread is None:
            self._began = self._clock()
            self._thread = threading.Thread(target=self._run, name="stagegbo disk guard", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop watching. `growth` and `trouble` can still be asked."""
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)

    def growth(self) -> Mapping[str, int]:
        """Bytes that each of the stage's containers has grown by since `start`; below 0 for one that shrank.

        A clone made since then counts whole; one that is gone, or whose driver counts nothing, is left out. On
        btrfs these are the bytes that the clone alone has: what production overwrites becomes the clone's own.
        Never raises; empty when the daemon does not say.
        """
        base = self._base
        if base is None:
            return {}
        return {
            name: used - (base[name][1] if name in base and base[name][0] == created else 0)
            for name, (created, used) in self._used_now().items()
        }

    def usage(self) -> Mapping[str, int]:
        """Bytes that each of the stage's containers uses now. Never raises; empty when the daemon does not say."""
        return {name: used for name, (_, used) in self._used_now().items()}

    def _used_now(self) -> dict[str, tuple[str, int]]:
        try:
            return self._usage(self._engine.reader.instances(self._engine.settings.project))
        except Exception as error:
            self._remember(error)
            return {}

    def doubt(self) -> str:
        """Say what was wrong with the quotas at one of the looks, so that growth is unknown; an empty text if nothing
        was."""
        return self._doubt

    def trouble(self) -> str:
        """Say what kept the guard from its work most recently; an empty text if nothing did."""
        return self._trouble

    # -- the thread

    def _run(self) -> None:
        try:
            self._begin()
            wait = 0.0
            while not self._closing.wait(wait):
                wait = self._look()
        except Exception as error:  # nobody above to catch it
            self._remember(error)

    def _begin(self) -> None:
        """The writer is made now, while the daemon has time: later every request counts."""
        try:
            engine = self._engine
            clones = engine.reader.instances(engine.settings.project)
            self._base = self._usage(clones)
            if not self._closing.is_set():  # else a short session would wait for it at its end
                self._writer = engine.clone_writer()
                names = (each for each in engine.settings.containers if each in clones)
                engine.freezer.prepare(each for each in names if not self._closing.is_set())
        except Exception as error:
            self._remember(error)

    def _look(self) -> float:
        """Look once and do what is to be done; seconds until the next look."""
        try:
            lowest = _lowest(self._spaces())
        except Exception as error:
            self._remember(error)
            return self._interval
        if lowest is None:
            return self._interval
        if lowest.margin < 0:
            if self._act(lowest):
                self._closing.set()
            return self._interval
        if lowest.margin < RESERVE:
            self._capsules.make_soon()
        now, (before, margin) = self._clock(), self._last or (self._clock(), lowest.margin)
        self._last = (now, lowest.margin)
        rate = (margin - lowest.margin) / (now - before) if now > before else 0.0
        return pause(lowest.margin, rate, self._interval)

    def _act(self, full: Space) -> bool:
        """Whether nothing is left to be done: a daemon that failed is asked again at the next look."""
        stopped, grown, unknown, done = self._hold_back()
        if not self._told:
            self._told = True
            try:
                self._stop(self._error(full, grown, stopped, unknown))
            except Exception as error:
                self._remember(error)
        return done

    def _hold_back(self) -> tuple[list[str], Mapping[str, int], str, bool]:
        """Stop what grew: its names, everybody's growth, why that is not known, and whether all of it went well."""
        engine = self._engine
        try:
            writer = self._writer = self._writer or engine.clone_writer()
            ours = {
                name: clone
                for name, clone in engine.reader.instances(engine.settings.project).items()
                if name in engine.settings.containers
                and marks.is_clone(clone, engine.settings)
                and clone.status != "Stopped"
            }
        except Exception as error:
            self._remember(error)
            return [], {}, "", False
        running = [name for name, clone in ours.items() if clone.is_running]
        held = engine.freezer.freeze_now(running, "the pool is full")  # a busy daemon takes longer than what fills it
        frozen = self._all(running, lambda name: writer.set_state(name, "freeze"))
        host = self._host_now()
        host.flush(PATIENCE)
        grown = self.growth()
        unknown = self._unknown(grown)
        chosen = growers(ours, {} if unknown else grown)
        stopped = self._all(chosen, lambda name: writer.set_state(name, "stop", force=True))
        others = [name for name in frozen if name not in chosen]
        going = self._all(others, lambda name: writer.set_state(name, "unfreeze"))
        # What the daemon failed with keeps its note, so that the next user has it go on.
        engine.freezer.let_go(name for name in held if name in {*stopped, *going})
        return stopped, grown, unknown, len(stopped) == len(chosen) and len(going) == len(others)

    def _all(self, names: Iterable[str], call: Callable[[str], None]) -> list[str]:
        """Do an action to each container at the same time, and return those with which it worked."""

        def one(name: str) -> Callable[[], None]:
            return lambda: call(name)

        results = run_parallel({name: one(name) for name in names}, PATIENCE)
        for error in results.values():
            if error is not None:
                self._remember(error)
        return [name for name, error in results.items() if error is None]

    # -- what is there

    def _spaces(self) -> list[Space]:
        self.spaces = [space for room in self._rooms() for space in room.spaces(self._engine.settings)]
        return self.spaces

    def _rooms(self) -> list[Room]:
        reader = self._engine.reader
        self._pools = self._pools or pool_names(reader, self._engine.settings)
        host = self._host_now()
        rooms = [look(reader, name, host, self._known.get(name)) for name in self._pools]
        for room in rooms:
            self._known[room.pool.name] = room.pool
            self._judge(room, host)
        return rooms

    def _judge(self, room: Room, host: Host) -> None:
        """Note whether a pool's counts can be relied on, and have btrfs count again where they can't."""
        name, quotas = room.pool.name, room.quotas
        self._room.setdefault(name, room.free)
        if quotas is None:
            self._seen = False
        elif not quotas.hold:
            self._doubt = f"pool {name}: {quotas}"
            now = self._clock()
            if quotas.inconsistent and not quotas.rescanning and now - self._rescanned >= AGAIN:
                self._rescanned = now
                host.rescan(room.pool)

    def _unknown(self, grown: Mapping[str, int]) -> str:
        """Why it is not known who fills the pools; empty: it is.

        Nobody's growth, while a pool lost much, is known only where the host says that its quotas count.
        """
        try:
            rooms = self._rooms()
        except Exception as error:
            self._remember(error)
            return "the pools could not be looked at"
        lost = sum(self._room[room.pool.name] - room.free for room in rooms)
        if self._doubt:
            return self._doubt
        if not self._seen and lost > 2 * max(SMALLEST_GROWTH, sum(size for size in grown.values() if size > 0)):
            return f"the pools lost {bytes_text(lost)}, which what is counted of the containers does not explain"
        return ""

    def _host_now(self) -> Host:
        if self._host is None:
            self._host = self._engine.reader.host()
        return self._host

    def _usage(self, clones: Mapping[str, Instance]) -> dict[str, tuple[str, int]]:
        """When each of the stage's containers was made and what its volume uses, where the driver counts it."""
        there = [clones[name] for name in self._engine.settings.containers if name in clones]
        used = used_bytes(self._engine.reader, self._host_now(), self._known, there)
        return {each.name: (each.created_at, size) for each in there if (size := used[each.name]) is not None}

    def _error(self, full: Space, grown: Mapping[str, int], stopped: Iterable[str], unknown: str) -> NoRoom:
        names = ", ".join(stopped)
        biggest = sorted((item for item in grown.items() if item[1] >= SMALLEST_GROWTH), key=lambda item: -item[1])
        since = f"since the guard began {self._clock() - self._began:.0f} s ago"
        if unknown:
            seen = f"how much each container of the stage grew is not known ({unknown})"
            seen += ", so all of them are stopped" if names else ""
        elif biggest:
            seen = f"{since} " + ", ".join(f"{name} grew by {bytes_text(size)}" for name, size in biggest)
        elif grown:
            seen = f"{since} no container of the stage grew: something else fills it"
        else:
            seen = "how much each container of the stage grew is not known"
        return NoRoom(
            f"too little room on {full}" + (f". Stopped, with its data kept: {names}" if names else ""),
            seen=seen,
            remedy="free some space; `stagegbo provision --recreate` gives back what the stage took; "
            "disk_floor and disk_floor_share say what must stay free",
        )

    def _remember(self, error: Exception) -> None:
        self._trouble = str(error) or type(error).__name__


def _lowest(found: Iterable[Space]) -> Space | None:
    return min(found, key=lambda space: space.margin, default=None)


def pause(margin: int, rate: float, interval: float) -> float:
    """Seconds until the next look, so that a pool filling twice as fast as now is seen before it reaches the floor.

    Args:
        margin: Bytes above the floor.
        rate: Bytes a second at which it shrank between the last two looks; below 0 when it grew.
        interval: The longest pause.
    """
    shortest = FASTEST if rate > 0 else NEAR
    return min(interval, max(shortest, margin / max(2 * rate, SUDDEN)))


def growers(ours: Iterable[str], grown: Mapping[str, int]) -> list[str]:
    """Which of the stage's containers to stop: those that grew at least a tenth as much as the one that grew most.

    None when none grew. All of them when it is known of none: a stage can be replaced, production can't.
    """
    names = list(ours)
    if not grown:
        return names
    most = max((grown.get(name, 0) for name in names), default=0)
    return [name for name in names if grown.get(name, 0) >= max(SMALLEST_GROWTH, most / 10)]
