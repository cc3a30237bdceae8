"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["age_text", "bytes_text"]


def bytes_text(size: int) -> str:
    """At least three digits and a binary unit: `1.5 GiB`, `1023 B`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{_three_digits(value)} {unit}"
        value /= 1024
    return f"{_three_digits(value)} TiB"


def age_text(seconds: float) -> str:
    """A whole number of the largest unit that makes one: `59 s`, `2 min`, `47 h`, `3 days`."""
    for size, most, unit in ((1, 120, "s"), (60, 120, "min"), (3600, 48, "h")):
        if seconds < size * most:
            return f"{max(0, int(seconds / size))} {unit}"
    return f"{int(seconds / 86400)} days"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"  # `g` would write 1e+03
