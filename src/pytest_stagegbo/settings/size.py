"""Sizes in Incus's notation: `10GB` is 10¹⁰ bytes, `10GiB` is 10·2³⁰, a plain number is bytes."""

from __future__ import annotations

import re

__all__ = ["format_size", "parse_size"]

_UNITS = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "PB": 1000**5,
    "EB": 1000**6,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
    "PiB": 1024**5,
    "EiB": 1024**6,
}
"""Incus tells upper from lower case: it takes `kB` and refuses `KB`."""

_LARGEST = 2**63 - 1
"""Incus keeps sizes in signed 64 bits."""


def parse_size(text: str) -> int:
    """Return the number of bytes that `text` stands for.

    Raises:
        ValueError: `text` is not a size, in words that continue "... is".
    """
    match = re.fullmatch(r"([0-9]+)([A-Za-z]*)", text, flags=re.ASCII)
    if match is None:
        raise ValueError("not a size such as 10GB, 512MiB or a plain number of bytes")
    number, unit = match.groups()
    if unit not in _UNITS:
        near = _nearest_unit(unit)
        raise ValueError(
            f"not a size: Incus knows no unit {unit!r}" + (f"; did you mean {number}{near}?" if near else "")
        )
    size = int(number) * _UNITS[unit]
    if size > _LARGEST:
        raise ValueError("more than Incus can count (8EiB)")
    return size


def format_size(size: int) -> str:
    """Write a number of bytes in Incus's notation, exactly: :func:`parse_size` returns the same number.

    Takes the largest unit that divides the size, and of two such the shorter number: 10GB, 1GiB, 1537B.
    """
    if size < 0:
        raise ValueError(f"a size is not negative: {size}")
    exact = ((size // factor, unit) for unit, factor in _UNITS.items() if unit and size and size % factor == 0)
    number, unit = min(exact, default=(size, "B"))
    return f"{number}{unit}"


def _nearest_unit(unit: str) -> str:
    """`G`, `gb` and `Gb` mean `GB`; `gib` and `Gi` mean `GiB`."""
    for known in _UNITS:
        if known and unit.lower() in {known.lower(), known[:-1].lower()}:
            return known
    return ""
