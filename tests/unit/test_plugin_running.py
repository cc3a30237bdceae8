"""Words for errors of which nothing is known."""

from __future__ import annotations

from pytest_stagegbo.plugin.running import LONGEST_MESSAGE, said


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_controls_reach_no_terminal() -> None:
    assert said(OSError("\x1b[2J\x00\udcff")) == "OSError: \\x1b[2J\\x00\\udcff"


def test_a_message_without_end_is_cut() -> None:
    """It is also not searched for secrets to its end, which would take minutes."""
    assert said(ValueError("x " * 25_000_000)).endswith("...")
    assert len(said(ValueError("x" * 25_000_000))) == LONGEST_MESSAGE + len("...")


def test_a_secret_that_is_cut_in_two_is_not_shown() -> None:
    for before in range(2 * LONGEST_MESSAGE - 30, 2 * LONGEST_MESSAGE):
        assert "hvs" not in said(ValueError("-" * before + " hvs.CAESIJlonglonglonglong"))


def test_secrets_are_masked() -> None:
    assert "hush" not in said(ValueError("password=hush-hush"))


def test_an_error_that_cannot_say_what_it_is() -> None:
    assert said(Speechless()) == "Speechless"
