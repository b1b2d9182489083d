"""Bytes as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """``312 B``, ``1.5 KB``, ``30.2 MB`` (powers of 1000)."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
