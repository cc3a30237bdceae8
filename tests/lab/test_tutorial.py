"""The commands of docs/tutorial.md do what the page says that they do, in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.lab import Lab

pytestmark = pytest.mark.lab
ON_THE_LABS_STAGE = True

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text()
END = "--- the end of a command ---"


def steps() -> Iterator[tuple[str, list[str]]]:
    """The page as commands of a shell, each with the lines that it prints. A file to write is a command, too."""
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        if language == "python":
            file = block.partition("\n")[0].removeprefix("# ")
            yield f"cat >{file} <<'END OF FILE'\n{block}END OF FILE", []
        else:
            for command, printed in re.findall(r"^# (.*)\n((?:(?!# ).*\n)*)", block, re.MULTILINE):
                yield command, printed.splitlines()


def plain(line: str) -> str:
    """A line without colours, counts, times and alignment."""
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
    return " ".join(re.sub(r"=+", "", re.sub(r"\d+(?:\.\d+)? m?s\b", "TIME", line)).split())


def test_every_command_prints_what_the_page_shows(lab: Lab, tmp_path: Path) -> None:
    told = list(steps())
    assert len(told) > 12
    script = "\n".join(f"{command}\n{{ s=$?; echo '{END}' $s; (exit $s); }}" for command, _ in told)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ |= {"HOME": str(tmp_path), "STAGEGBO_LAB_NAME": lab.paths.name, "COLUMNS": "120"}
    argv = ["bash", "-c", f"exec 2>&1\n{script}"]
    done = subprocess.run(argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=False, timeout=300)
    parts = re.split(rf"^{END} (\d+)\n", done.stdout, flags=re.MULTILINE)
    assert len(parts) == 2 * len(told) + 1, done.stdout
    for place, (command, shown) in enumerate(told):
        printed, status = [plain(line) for line in parts[2 * place].splitlines()], parts[2 * place + 1]
        for line in (plain(line) for line in shown):
            if line != "...":
                found = [number for number, each in enumerate(printed) if line in each]
                assert found, f"{command}: no line {line!r} in\n{parts[2 * place]}"
                printed = printed[found[0] + 1 :]
        follower = told[place + 1][0] if place + 1 < len(told) else ""
        fails = any(re.match(r"ERROR|\d+ failed", line) for line in shown) or follower == "echo $?"
        assert (status != "0") == fails, f"{command} ended with {status}:\n{parts[2 * place]}"
