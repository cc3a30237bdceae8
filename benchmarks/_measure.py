"""What benchmarks share: percentiles, alternating rounds, the machine, processor time, sections of documents."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Machine", "ProcessorTime", "alternate", "idle_line", "percentile", "replace_section"]

T = TypeVar("T")
U = TypeVar("U")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of all are, interpolated between neighbours. At least one value is needed."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def alternate(rounds: int, first: Callable[[], T], second: Callable[[], U]) -> Iterator[tuple[T, U]]:
    """Call both `rounds` times, in turns, so that whatever else the machine does meets both.

    The one that begins changes from round to round.
    """
    for number in range(rounds):
        if number % 2 == 0:
            one = first()
            yield one, second()
        else:
            two = second()
            yield first(), two


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """Seconds of all cores together, since the machine started (proc_stat(5))."""

    total: float
    idle: float

    @classmethod
    def now(cls) -> ProcessorTime:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        return cls(sum(ticks), ticks[3] + ticks[4])

    def idle_share_since(self, earlier: ProcessorTime) -> float:
        """0 to 1: how much of the cores' time nobody used."""
        total = self.total - earlier.total
        return (self.idle - earlier.idle) / total if total > 0 else 1.0

    def busy_since(self, earlier: ProcessorTime) -> float:
        """Core-seconds of work, by everybody."""
        return (self.total - self.idle) - (earlier.total - earlier.idle)

    @classmethod
    def wait_idle(cls, share: float, timeout: float) -> float:
        """Wait until `share` of the cores was idle for a second, and the share it was. Gives up after `timeout`."""
        deadline = time.monotonic() + timeout
        while True:
            before = cls.now()
            time.sleep(1)  # what is looked at
            seen = cls.now().idle_share_since(before)
            if seen >= share or time.monotonic() > deadline:
                return seen


@dataclass(frozen=True, slots=True)
class Machine:
    """Where figures were measured."""

    cores: int
    processor: str
    memory_gib: float
    kernel: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        return cls(
            cores=len(os.sched_getaffinity(0)),
            processor=_field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            kernel=platform.release(),
            python=platform.python_version(),
        )

    def __str__(self) -> str:
        return (
            f"{self.cores} cores ({self.processor}), {self.memory_gib:.0f} GiB of memory, Linux {self.kernel}, "
            f"Python {self.python}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _field(file: Path, name: str) -> str:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def replace_section(document: Path, name: str, text: str) -> None:
    """Put `text` between the lines `<!-- name: begin -->` and `<!-- name: end -->` of a document.

    Raises:
        ValueError: the document does not have both lines.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = document.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{document} lacks the lines {begin} and {end}")
    temporary = document.with_name(document.name + ".new")
    temporary.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
    temporary.replace(document)


def idle_line(idle: Sequence[float]) -> str:
    """What the shares of idle cores before each round say about the figures."""
    return (
        f"before a round {percentile(idle, 50):.0%} of the cores were idle (median): where others work, wall time says "
        "little"
    )
