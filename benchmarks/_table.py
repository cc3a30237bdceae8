"""One table and some headlines: what most benchmarks print, and put into a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks._measure import Machine
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

__all__ = ["TableReport", "markdown_table"]


class TableReport:
    """What was measured, as one table.

    Args:
        version: Of Incus.
    """

    columns: Sequence[str]
    left = frozenset({0})
    """Columns that are words."""
    title: str | None = None

    def __init__(self, version: str) -> None:
        self.version = version
        self.machine = Machine.this()

    def rows(self) -> list[list[str]]:
        raise NotImplementedError

    def headlines(self) -> list[str]:
        """What follows from the figures."""
        raise NotImplementedError

    def print(self, console: Console) -> None:
        console.print(f"{self.machine}; Incus {self.version}")
        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number in self.left else "right")
        for row in self.rows():
            table.add_row(*row)
        console.print(table)
        for line in self.headlines():
            console.print(line, soft_wrap=True)

    def markdown(self) -> str:
        headlines = "\n".join(f"- {line[0].upper()}{line[1:]}." for line in self.headlines())
        measured = f"Measured on {self.machine}; Incus {self.version}."
        return "\n\n".join((measured, headlines, markdown_table(self.columns, self.rows(), self.left)))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: frozenset[int] = frozenset({0})) -> str:
    """A table of a document. Columns that are not `left` are aligned to the right."""
    lines = [" | ".join(columns), "|".join("---" if number in left else "---:" for number in range(len(columns)))]
    text = [f"| {lines[0]} |", f"|{lines[1]}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(text)
