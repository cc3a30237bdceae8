"""What commands import: every module costs each call of a command half a millisecond, and more than that in others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_stagegbo.cli.parser import MODULES, parse

EXAMPLES = {
    "reset": ["cache"],
    "exec": ["cache", "--", "true"],
    "shell": ["cache"],
    "logs": ["cache"],
    "lab": ["status"],
}
"""What commands need to be complete."""


def loaded(code: str) -> set[str]:
    """The modules that a process of its own has after it has run this."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_every_command_is_registered_by_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == list(MODULES)


@pytest.mark.parametrize("command", MODULES)
def test_a_command_imports_no_other_commands(command: str) -> None:
    words = ["--config", "lab", "-q", command, *EXAMPLES.get(command, [])]
    found = loaded(f"from pytest_stagegbo.cli.parser import parse\nparse({words})")
    of_commands = {f"pytest_stagegbo.cli.{module}" for module in MODULES.values()}
    assert found & of_commands == {f"pytest_stagegbo.cli.{MODULES[command]}"}


@pytest.mark.parametrize("line", [[], ["--lab"], ["nothing"], ["--config"], ["-qh"], ["--help", "status"]], ids=str)
def test_a_line_without_a_command_is_told_of_all(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(line)
    told = "".join(capsys.readouterr())
    if "choose from" in told or "clones" in told:
        assert all(name in told for name in MODULES)
    else:
        assert "COMMAND" in told
