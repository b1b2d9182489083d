"""Values out of a fuzzer's bytes, so that it gets past the outer syntax; when they run out, everything is zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_NAMES = (
    "a",
    "b",
    "a/b",
    "a/b/c",
    "../x",
    "/etc/passwd",
    "a//b/./",
    "",
    ".",
    "x" * 256,
    ".wh.a",
    "a/.wh..wh..opq",
    ".wh..wh.x",
    "é\udc80",
    "\ud800",
    "n\0l",
    "b/",
)
_NUMBERS = (0, 1, 2, 255, 256, 4095, 4096, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, 1 << 64, -1, -(1 << 63))  # fmt: skip


class Choices:
    """Takes ``data`` from its front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """At most ``count`` bytes."""
        piece = self._data[self._at : self._at + count]
        self._at += len(piece)
        return piece

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def byte(self) -> int:
        """0 to 255."""
        piece = self.take(1)
        return piece[0] if piece else 0

    def below(self, limit: int) -> int:
        """0 to ``limit`` - 1, of at most 65,536."""
        return int.from_bytes(self.take(2 if limit > 256 else 1), "little") % limit

    def one(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self.below(len(options))]

    def number(self) -> int:
        """Small ones, edges of integer types, any of 64 bits."""
        kind = self.byte() % 4
        if kind == 0:
            return self.byte()
        if kind == 1:
            return self.one(_NUMBERS)
        if kind == 2:
            return self.one(_NUMBERS) + self.byte() - 128
        return int.from_bytes(self.take(8), "little", signed=True)

    def name(self) -> str:
        """A path as a layer has it, or as none should."""
        kind = self.byte() % 3
        if kind == 0:
            return self.one(_NAMES)
        if kind == 1:
            return "/".join(self.one(("a", "b", "c", "d", ".wh.b", "..", "")) for _ in range(self.byte() % 6))
        return self.take(self.byte() % 40).decode("utf-8", "surrogateescape")
