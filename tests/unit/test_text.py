"""Numbers as people read them."""

from __future__ import annotations

import json

import pytest

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.text import age_text, bytes_text, printable, printable_json


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1000 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1023 * 2**10, "1023 KiB"),
        (10**6, "977 KiB"),
        (2**20, "1 MiB"),
        (10**10, "9.31 GiB"),
        (2**30 + 2**29, "1.5 GiB"),
        (1000 * 2**30, "1000 GiB"),
        (2**40, "1 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_a_size_has_a_binary_unit_and_no_exponent(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0, "0 s"), (119.9, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172799, "47 h"),
     (172800, "2 days"), (10**7, "115 days")],
)  # fmt: skip
def test_an_age_has_the_largest_unit_that_says_enough(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\tand ünï 日本\n", "plain\tand ünï 日本\n"),
        ("one\r\ntwo\rthree", "one\ntwo\\x0dthree"),
        ("\x1b]0;title\x07\x1b[31mred", "\\x1b]0;title\\x07\\x1b[31mred"),
        ("\x9b31m\x7f\0", "\\x9b31m\\x7f\\x00"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("test_\udcff.py[\ud800]", "test_\\udcff.py[\\ud800]"),
    ],
)
def test_controls_are_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_errors_have_none() -> None:
    error = StageGboError("a\x1b[2J", seen="b\x1b[2J", remedy="c\x1b[2J")
    assert "\x1b" not in str(error) + error.message + error.seen + error.remedy + str(error.args)


def test_json_stays_json() -> None:
    value = {"a\x9b": "\x7f\u202e\x1b", "file": "\udcff"}
    text = printable_json(json.dumps(value, ensure_ascii=False))
    assert text.isprintable()
    assert json.loads(text) == value
