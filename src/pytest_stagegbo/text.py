"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["bytes_text"]


def bytes_text(size: int) -> str:
    """At least three digits and a binary unit: `1.5 GiB`, `1023 B`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{_three_digits(value)} {unit}"
        value /= 1024
    return f"{_three_digits(value)} TiB"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"  # `g` would write 1e+03
