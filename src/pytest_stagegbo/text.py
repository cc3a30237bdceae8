"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["bytes_text"]


def bytes_text(size: int) -> str:
    """Three digits and a binary unit: `1.5 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
