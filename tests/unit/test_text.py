"""Numbers as people read them."""

from __future__ import annotations

import pytest

from pytest_stagegbo.text import age_text, bytes_text


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
