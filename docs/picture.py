"""Makes docs/provision.svg: a recording of a real run, in a lab of its own that is removed afterwards. Needs root.

`python docs/picture.py` from the project's root. Every figure in the picture is what that run printed.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

COLUMNS = 118
COMMANDS = (["provision"], ["endpoints"], ["provision"])
CONTROL = re.compile(r"\x1b\[(?P<number>\d*)(?P<what>[AK])|\x1b\[\?\d+[hl]|\x1b\[(?P<colour>[\d;]*m)|(?P<plain>[\r\n])")


def main() -> None:
    environment = {
        **os.environ,
        "STAGEGBO_LAB_NAME": "picture",
        "COLUMNS": str(COLUMNS),
        "LINES": "60",
        "TERM": "xterm-256color",
    }
    environment.pop("NO_COLOR", None)
    lab = [sys.executable, "-m", "pytest_stagegbo", "lab"]
    subprocess.run([*lab, "up"], env=environment, check=True)
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w"))  # noqa: SIM115
    try:
        for command in COMMANDS:
            console.print(Text(f"# stagegbo --lab {' '.join(command)}", style="bold cyan"))
            for line in record([sys.executable, "-m", "pytest_stagegbo", "--lab", *command], environment):
                console.print(Text.from_ansi(line))
            console.print()
    finally:
        subprocess.run([*lab, "down", "--purge"], env=environment, check=True)
    svg = console.export_svg(title="A production, cloned", theme=DIMMED_MONOKAI, unique_id="stagegbo")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # nothing is loaded from elsewhere
    Path(__file__).with_name("provision.svg").write_text(svg)


def record(argv: list[str], environment: dict[str, str]) -> list[str]:
    """The lines that a terminal shows at the end, with their colours."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = bytearray()
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # what Linux says when the last process has closed the other end
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{argv} failed:\n{written.decode()}")
    return screen(written.decode())


def screen(written: str) -> list[str]:
    """Follow the few control sequences that rich writes: cursor up, erase line, colours."""
    lines, row, position = [""], 0, 0
    for found in CONTROL.finditer(written):
        lines[row] += written[position : found.start()]
        position = found.end()
        if found["what"] == "A":
            row = max(0, row - int(found["number"] or 1))
        elif found["what"] == "K":
            lines[row] = ""
        elif found["colour"]:
            lines[row] += found[0]
        elif found["plain"] == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
    lines[row] += written[position:]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


if __name__ == "__main__":
    main()
