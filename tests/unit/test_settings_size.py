"""Sizes are written the way Incus reads them."""

from __future__ import annotations

import pytest

from pytest_stagegbo.settings import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        pytest.param("10GB", 10_000_000_000, id="decimal"),
        pytest.param("10GiB", 10 * 2**30, id="binary"),
        pytest.param("512MiB", 512 * 2**20, id="mebibytes"),
        pytest.param("3kB", 3000, id="small-k"),
        pytest.param("7B", 7, id="bytes"),
        pytest.param("12345", 12345, id="plain-number"),
        pytest.param("0", 0, id="zero"),
        pytest.param("8191PiB", 8191 * 2**50, id="nearly-too-large"),
    ],
)
def test_a_size_is_a_whole_number_and_a_unit_of_incus(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "not a size such as 10GB", id="empty"),
        pytest.param("GB", "not a size such as 10GB", id="no-number"),
        pytest.param("-1GB", "not a size such as 10GB", id="negative"),
        pytest.param("1.5GB", "not a size such as 10GB", id="fraction"),
        pytest.param("10 GB", "not a size such as 10GB", id="space"),
        pytest.param("\u0661GB", "not a size such as 10GB", id="other-digits"),
        pytest.param("10G", "did you mean 10GB?", id="no-B"),
        pytest.param("10gb", "did you mean 10GB?", id="small-letters"),
        pytest.param("10KB", "did you mean 10kB?", id="capital-k"),
        pytest.param("10Gi", "did you mean 10GiB?", id="no-B-binary"),
        pytest.param("10XB", "Incus knows no unit 'XB'", id="unknown-unit"),
        pytest.param("8EiB", "more than Incus can count", id="overflow"),
    ],
)
def test_anything_else_is_refused_with_the_likely_meaning(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        pytest.param(0, "0B", id="zero"),
        pytest.param(1537, "1537B", id="odd"),
        pytest.param(10_000_000_000, "10GB", id="decimal"),
        pytest.param(2**30, "1GiB", id="binary"),
        pytest.param(1_500_000_000, "1500MB", id="no-fractions"),
    ],
)
def test_sizes_are_written_exactly_in_the_shortest_way(size: int, text: str) -> None:
    assert format_size(size) == text
    assert parse_size(text) == size


def test_a_negative_size_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="not negative: -1"):
        format_size(-1)
