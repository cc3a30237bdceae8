"""One table and some headlines: what most benchmarks print, and put into a document."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from benchmarks._measure import Machine
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

__all__ = ["TableReport", "markdown_table", "shown_table"]


class TableReport(ABC):
    """What was measured, as one table.

    Args:
        version: Of Incus; empty where none was used.
    """

    columns: Sequence[str]
    left = frozenset({0})
    """Columns that are words."""
    title: str | None = None

    def __init__(self, version: str) -> None:
        self.version = version
        self.machine = Machine.this()

    @abstractmethod
    def rows(self) -> list[list[str]]: ...

    @abstractmethod
    def headlines(self) -> list[str]:
        """What follows from the figures."""

    def _measured_on(self) -> str:
        return f"{self.machine}; Incus {self.version}" if self.version else str(self.machine)

    def print(self, console: Console) -> None:
        console.print(self._measured_on())
        console.print(shown_table(self.columns, self.rows(), self.left, title=self.title))
        for line in self.headlines():
            console.print(line, soft_wrap=True)

    def markdown(self) -> str:
        headlines = "\n".join(f"- {line[0].upper()}{line[1:]}." for line in self.headlines())
        measured = f"Measured on {self._measured_on()}."
        return "\n\n".join((measured, headlines, markdown_table(self.columns, self.rows(), self.left)))


def shown_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: frozenset[int] = frozenset({0}),
    *,
    title: str | None = None,
) -> Table:
    """A table for a terminal. Columns that are not `left` are aligned to the right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: frozenset[int] = frozenset({0})) -> str:
    """A table of a document. Columns that are not `left` are aligned to the right."""
    lines = [" | ".join(columns), "|".join("---" if number in left else "---:" for number in range(len(columns)))]
    text = [f"| {lines[0]} |", f"|{lines[1]}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(text)
