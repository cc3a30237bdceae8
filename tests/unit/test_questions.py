"""What is asked before something is removed or opened, and who can answer."""

from __future__ import annotations

import io
import sys

import pytest

from pytest_stagegbo.cli import main
from pytest_stagegbo.cli.console import ask, need_answer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [io.StringIO("n\n"), io.StringIO("y\n"), io.StringIO(""), None])
def test_who_can_not_be_asked_has_to_say_yes_beforehand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stdin: io.StringIO | None
) -> None:
    """A pipe, cron, a closed standard input: whatever is in it, nobody was asked."""
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["destroy", "--endpoint", "/nowhere/unix.socket"]) == 2
    assert "--yes does it without asking" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "agreed"),
    [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False), ("yep\n", False)],
)
def test_only_yes_is_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, agreed: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    need_answer("destroy")
    assert ask("remove it?") is agreed
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "remove it? [y/N] ")
