"""The lines that a session prints about itself, at its beginning and at its end.

Percentiles are by nearest rank: the smallest of the observed values that at least so many percent of them do not
exceed. None is a value that was never observed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from pytest_stagegbo.text import bytes_text, count_text, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.settings import Settings

__all__ = ["Summary", "header", "percentile", "pool_line"]

SMALLEST_GROWTH = 2**20
"""Bytes below which a container's growth is not worth a line: file systems breathe."""
SHORTEST_WAIT = 0.1
"""Seconds below which nobody minds a wait for a lock."""
ENOUGH_FOR_P95 = 20
"""Values; of fewer, the 95th percentile by nearest rank is the largest, and is called that."""


class Summary(Struct):
    """What one process of a session did to the stage, or several of them together."""

    resets: dict[tuple[str, ...], list[float]] = field(default_factory=dict)
    """Seconds of each reset, by the containers that it cleared together."""
    waits: list[float] = field(default_factory=list)
    """Seconds that each test waited for its locks."""
    grown: dict[str, int] = field(default_factory=dict)
    """Bytes by which each container's volume grew, as the process that saw the most of it measured."""
    broken: list[str] = field(default_factory=list)
    """What processes of the session found broken of the stage's isolation."""
    trouble: list[str] = field(default_factory=list)
    """What processes of the session could not do, beside their tests."""

    fresh: list[float] = field(default_factory=list)
    """Seconds that each test waited for a fresh stage."""
    verified: bool = False
    """The isolation of every stage that the run used was proven at its end."""
    provisioned: float = 0.0
    """Seconds that it took to make what was missing of the stage; 0 when nothing was."""

    def reset(self, names: Iterable[str], seconds: float) -> None:
        """Note a reset of containers that were cleared together."""
        self.resets.setdefault(tuple(sorted(names)), []).append(seconds)

    def lock_wait(self, seconds: float) -> None:
        """Note how long a test waited for its locks."""
        self.waits.append(seconds)

    def growth(self, grown: Mapping[str, int]) -> None:
        """Note by how many bytes each container has grown. Of several measures of one the largest counts: processes
        of a session measure the same containers, from when each began."""
        for name, size in grown.items():
            self.grown[name] = max(size, self.grown.get(name, size))

    def merge(self, other: Summary) -> None:
        """Add what another process of the session did."""
        for names, seconds in other.resets.items():
            self.resets.setdefault(names, []).extend(seconds)
        self.waits.extend(other.waits)
        self.fresh.extend(other.fresh)
        self.provisioned = max(self.provisioned, other.provisioned)
        self.growth(other.grown)
        self.broken.extend(other.broken)
        self.trouble.extend(other.trouble)

    def to_json(self) -> dict[str, Any]:
        """Lists, dicts, strings of whole characters and numbers only: xdist sends nothing else between processes."""
        resets = [[list(names), list(seconds)] for names, seconds in self.resets.items()]
        return {
            "resets": resets,
            "waits": list(self.waits),
            "fresh": list(self.fresh),
            "provisioned": self.provisioned,
            "grown": dict(self.grown),
            "broken": [printable(text) for text in self.broken],
            "trouble": [printable(text) for text in self.trouble],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """Make a summary from what `to_json` returned."""
        return cls(
            resets={tuple(names): list(seconds) for names, seconds in data["resets"]},
            waits=list(data["waits"]),
            fresh=list(data.get("fresh", ())),
            provisioned=data.get("provisioned", 0.0),
            grown=dict(data["grown"]),
            broken=list(data["broken"]),
            trouble=list(data.get("trouble", ())),
        )

    @property
    def used(self) -> bool:
        """Whether any test used the stage."""
        return bool(self.resets or self.waits or self.grown or self.fresh)

    def lines(self, settings: Settings | None = None, pool_text: str = "") -> list[str]:
        """Return the lines for the end of the session. There are none when no test used the stage.

        Args:
            settings: Give the containers their order; without them they are sorted by name.
            pool_text: What `pool_line` said, to be repeated.
        """
        if not self.used:
            return []
        lines = [pool_text] if pool_text else []
        if self.provisioned:
            lines.append(f"provisioned in {_seconds(self.provisioned)}")
        for names, seconds in sorted(self.resets.items(), key=lambda item: (-len(item[1]), item[0])):
            shown = ", ".join(_ordered(names, settings))
            lines.append(f"reset {shown}: {_times(seconds)}")
        if len(self.resets) > 1:
            lines.append(f"resets in all: {_times([second for each in self.resets.values() for second in each])}")
        if waited := [second for second in self.waits if second >= SHORTEST_WAIT]:
            total = f"{_seconds(sum(waited))} in all, longest {_seconds(max(waited))}"
            lines.append(f"waited for locks: {len(waited)} of {count_text(len(self.waits), 'test')}, {total}")
        if self.fresh:
            lines.append(f"fresh stages: {_times(self.fresh)}")
        grown = {name: self.grown[name] for name in _ordered(self.grown, settings)}
        shown_growth = [f"{name} {bytes_text(size)}" for name, size in grown.items() if size >= SMALLEST_GROWTH]
        if shown_growth:
            lines.append("grew: " + ", ".join(shown_growth))
        if self.verified:
            lines.append("isolation verified: every check holds")
        return lines


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of at least one value; 0 < percent <= 100."""
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


def header(settings: Settings, endpoint: str = "") -> str:
    """Return one line for the head of the session. It connects to nothing.

    Args:
        endpoint: Of the daemon, where it is known already.
    """
    server = endpoint or settings.incus.endpoint or "the local daemon"
    return f"stage-gbo: project {settings.project}, a clone of {settings.source_project}, on Incus at {server}"


def pool_line(engine: StageEngine) -> str:
    """Return one line with project, server, pools and their free space. It connects to the daemon.

    Raises:
        ServerUnreachable: the daemon does not answer.
        ServerRefused: it does not show what was asked for.
    """
    from pytest_stagegbo.facts.space import look, pool_names

    settings, server = engine.settings, engine.reader.server()
    host = engine.reader.host()
    parts = [f"stage-gbo: project {settings.project} on Incus {server.version} at {engine.reader.endpoint}"]
    for name in pool_names(engine.reader, settings):
        room = look(engine.reader, name, host)
        pool, (inside, *below) = room.pool, room.spaces(settings)
        text = f"pool {name} ({pool.driver}): {bytes_text(max(0, inside.free))} of {bytes_text(pool.total)} free"
        parts.append(text + "".join(f", {bytes_text(max(0, space.free))} below it on the host" for space in below))
    return "; ".join(parts)


def build_lines(engine: StageEngine) -> list[str]:
    """Return a line for each deployed file that a container of the stage runs. It connects to the daemon."""
    from pytest_stagegbo.plan.builds import shown

    return [f"stage-gbo: {line}" for line in shown(engine.deployments.builds())]


def _ordered(names: Iterable[str], settings: Settings | None) -> list[str]:
    order = list(settings.containers) if settings is not None else []
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _times(seconds: Sequence[float]) -> str:
    if len(seconds) == 1:
        return f"once, {_seconds(seconds[0])}"
    middle = _seconds(percentile(seconds, 50))
    if len(seconds) < ENOUGH_FOR_P95:
        return f"{len(seconds)} times, median {middle}, longest {_seconds(max(seconds))}"
    return f"{len(seconds)} times, p50 {middle}, p95 {_seconds(percentile(seconds, 95))}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
