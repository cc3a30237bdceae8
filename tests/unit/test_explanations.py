"""Every error has causes and remedies, in words that can be acted upon."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pytest_stagegbo import errors
from pytest_stagegbo.cli import main
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.explanations import explanations

CODES = sorted(getattr(errors, name).code for name in errors.__all__)
DOCS = Path(__file__).parents[2] / "docs"


def test_every_error_is_explained_in_the_order_of_the_codes() -> None:
    assert list(explanations()) == CODES


@pytest.mark.parametrize("code", CODES)
class TestEach:
    def test_has_causes_each_with_a_remedy(self, code: str) -> None:
        found = explanations()[code]
        assert found.causes
        for cause, remedy in found.causes:
            assert len(cause.split()) > 2, cause
            assert len(remedy.split()) > 2, cause
            assert "**" not in cause + remedy

    def test_says_what_its_class_says(self, code: str) -> None:
        found = explanations()[code]
        kind = getattr(errors, found.name)
        assert (kind.code, kind.exit_code) == (found.code, found.exit_code)
        assert found.meaning.split()[:4] == (kind.__doc__ or "").split()[:4]

    def test_names_commands_that_exist(self, code: str) -> None:
        for command in re.findall(r"`(stagegbo [^`]+)`", explanations()[code].markdown()):
            assert parse(shlex.split(command)[1:]).run, command

    def test_links_to_pages_that_exist(self, code: str) -> None:
        for page in re.findall(r"\]\(([^)#]+)", explanations()[code].markdown()):
            assert (DOCS / page).exists(), page

    def test_is_printed_whole(self, code: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", code]) == 0
        printed = capsys.readouterr().out
        assert " ".join(printed.split()) == " ".join(explanations()[code].text().split())
        assert "](" not in printed


def test_a_command_is_not_broken_over_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    main(["explain", "SG020"])
    assert "`pip install 'pytest-stagegbo[clients]'`" in capsys.readouterr().out


def test_a_code_may_be_written_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "sg300"]) == 0
    assert capsys.readouterr().out.startswith("SG300 NotReady, exit code 6\n")


def test_without_a_code_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    assert re.findall(r"^SG\d{3}", capsys.readouterr().out, re.MULTILINE) == CODES


def test_an_unknown_code_is_an_error_whose_last_line_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "SG999"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "more: stagegbo explain SG010"
    assert main(shlex.split(last.removeprefix("more: stagegbo "))) == 0
