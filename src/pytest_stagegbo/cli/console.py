"""Prints progress, tables and errors for people. rich is imported only when there is something to draw."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple, TextIO

from pytest_stagegbo import clocks
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType
    from rich.progress import TaskID
    from rich.table import Table

    from pytest_stagegbo.errors import StageGboError
    from pytest_stagegbo.progress import Progress

__all__ = [
    "Grid",
    "Loud",
    "Part",
    "ask",
    "console_progress",
    "drawn",
    "need_answer",
    "one_line",
    "print_error",
    "print_loudly",
    "print_parts",
    "print_table",
]


class _Lines:
    """Shows progress as lines, for logs and pipes: one when something long begins, and one when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._origin = clocks.monotonic()
        self._began: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def begin(self, key: str, text: str) -> None:
        with self._lock:
            self._began[key] = (clocks.monotonic(), printable(text))

    def end(self, key: str, error: BaseException | None = None) -> None:
        with self._lock:
            began, text = self._began.pop(key)
            now = clocks.monotonic()
            sign = "FAILED" if error is not None else "done"
            self._print(f"{now - self._origin:7.2f} s  {sign}  {text} ({now - began:.2f} s)")

    def note(self, text: str) -> None:
        with self._lock:
            self._print(f"{clocks.monotonic() - self._origin:7.2f} s  note  {printable(text)}")

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more: no reason to leave the work half done
            print(line, file=self._stream, flush=True)


class _Notes(_Lines):
    """Shows no progress, only notes, which may be warnings."""

    def begin(self, key: str, text: str) -> None: ...

    def end(self, key: str, error: BaseException | None = None) -> None: ...

    def note(self, text: str) -> None:
        with self._lock:
            self._print(printable(text))


class _Live:
    """Shows progress on a terminal: a spinner and a clock for what runs, and a line above for what is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        # Drawn by a thread of this class: rich's own draws between the computing and the writing of a line that
        # another thread prints, and lines get lost.
        self._display = Progress(*columns, console=self._console, transient=True, auto_refresh=False)
        self._tasks: dict[str, tuple[TaskID, float, str]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="stagegbo-progress", daemon=True)

    def __enter__(self) -> _Live:
        self._display.start()
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticker.join()
        self._display.stop()

    def _tick(self) -> None:
        while not self._over.wait(0.1):
            with self._lock:
                self._display.refresh()

    def begin(self, key: str, text: str) -> None:
        from rich.markup import escape

        text = printable(text)
        with self._lock:
            self._tasks[key] = (self._display.add_task(escape(text), total=None), clocks.monotonic(), text)

    def end(self, key: str, error: BaseException | None = None) -> None:
        from rich.markup import escape

        with self._lock:
            task, began, text = self._tasks.pop(key)
            self._display.remove_task(task)
            sign = "[red]✗[/]" if error is not None else "[green]✓[/]"
            self._console.print(f"{sign} {escape(text)} [dim]{clocks.monotonic() - began:.2f} s[/]", soft_wrap=True)

    def note(self, text: str) -> None:
        from rich.markup import escape

        with self._lock:
            self._console.print(f"[yellow]•[/] {escape(printable(text))}", soft_wrap=True)


@contextlib.contextmanager
def console_progress(stream: TextIO | None = None, *, quiet: bool = False) -> Iterator[Progress]:
    """Show progress on standard error while the block runs: live on a terminal, as lines elsewhere.

    Args:
        quiet: Show notes only, which may be warnings.
    """
    target = sys.stderr if stream is None else stream
    logged = logging.getLogger("stagegbo").isEnabledFor(logging.INFO)  # with --verbose: the same, as it ends
    if quiet or logged or not target.isatty():
        yield (_Notes if quiet or logged else _Lines)(target)
        return
    with _Live() as live:
        yield live


def need_answer(command: str) -> None:
    """Raise an error if nobody can answer a question. Commands call it that were not given --yes.

    Raises:
        SettingsError: standard input is not a terminal.
    """
    from pytest_stagegbo.errors import SettingsError

    if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
        raise SettingsError(
            f"{command} asks before it changes anything, and standard input is not a terminal, so nobody can answer",
            seen="nothing was changed",
            remedy="--yes does it without asking; --dry-run shows what it would do",
        )


def ask(question: str) -> bool:
    """Ask on standard error, so that the output can be piped, and return whether the answer is yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


class Grid(NamedTuple):
    """A table to print."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


class Loud(NamedTuple):
    """A line that is hard to overlook."""

    text: str


Part = Grid | Loud | str
"""A table, or a line."""


def print_parts(parts: Iterable[Part]) -> None:
    """Print tables and lines on standard output."""
    for part in parts:
        if isinstance(part, Grid):
            print_table(part.columns, part.rows, title=part.title)
        elif isinstance(part, Loud):
            print_loudly(part.text)
        else:
            print(printable(part))


def drawn(parts: Iterable[Part]) -> RenderableType:
    """The same, for rich to draw and to draw again."""
    from rich.console import Group
    from rich.text import Text

    return Group(
        *(
            _table(part)
            if isinstance(part, Grid)
            else Text(printable(part.text), style=LOUD)
            if isinstance(part, Loud)
            else Text(printable(part))
            for part in parts
        )
    )


def one_line(text: str) -> str:
    """Text as one field of a line with tabs between them."""
    return "; ".join(printable(text).replace("\t", " ").splitlines())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table on standard output: aligned and coloured on a terminal, tab-separated elsewhere, one line a row."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(map(one_line, row)))
        return
    from rich.console import Console

    Console(highlight=False).print(_table(Grid(columns, rows, title)))


def _table(grid: Grid) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=grid.title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in grid.columns:
        table.add_column(column.upper(), overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(printable(cell), style=STYLES.get(cell.split(" ", 1)[0], "")) for cell in row))
    return table


def print_loudly(text: str, *, beside: bool = False) -> None:
    """Print a line that is hard to overlook: in colour on a terminal.

    Args:
        beside: On standard error, since standard output has JSON.
    """
    from rich.console import Console

    Console(stderr=beside, highlight=False, soft_wrap=True).print(printable(text), style=LOUD, markup=False)


LOUD = "bold white on red"
STYLES = {
    "ready": "green",
    "ok": "green",
    "green": "green",
    "red": "bold red",
    "skipped": "yellow",
    "sealed": "yellow",
    "starting": "yellow",
    "warning": "yellow",
    "failed": "red",
    "stopped": "red",
    "missing": "red",
    "unfinished": "red",
    "foreign": "red",
}


def print_error(error: StageGboError) -> None:
    """Print on standard error what failed, what was seen last, what to do, and which command explains the error."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("ERROR ", "bold red"), (f"{error.code} ", "dim"), error.message))
    if error.seen:
        console.print(Text(f"last seen: {error.seen}"))
    if error.remedy:
        console.print(Text.assemble(("what to do: ", "bold cyan"), error.remedy))
    console.print(Text(f"more: {error.more}", style="dim"))
