"""The blob on its way to disk: pieces compressed in several threads, written and hashed in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import BinaryIO

from ipfs_store.formats.compress import Codec, Ordered

_BATCH = 512 << 10
"""Bytes that are given to a thread at once, at most some 64 pieces: a hand-over costs 50 us, as much as compressing a file of 4 KiB."""
_PIECES = 64


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a piece that is hashed by itself."""

    start: int
    size: int
    tag: object
    """For whoever is told of it."""


@dataclass(slots=True)
class Piece:
    """What becomes one member or frame."""

    raw: bytes
    marks: list[Span | object] = field(default_factory=list)
    """Spans, and anything else, in order: all handed to ``placed`` once the piece is written."""


@dataclass(frozen=True, slots=True)
class _Done:
    pieces: Sequence[Piece]
    sizes: Sequence[int]
    digests: Sequence[str]
    data: bytes


Placed = Callable[[object, int, int, str], None]
"""Told of each mark (mark, begin of its member, end of its member, digest of a span or nothing), in order, by the writing thread."""


class BlobFile:
    """A new blob; ``put`` may return long before the piece is written, ``flush`` returns after."""

    def __init__(self, file: BinaryIO, codec: Codec, placed: Placed, threads: int) -> None:
        self._file = file
        self._codec = codec
        self._placed = placed
        self._batch: list[Piece] = []
        self._batched = 0
        self._hash = hashlib.sha256()
        self._pool: Ordered[_Done] = Ordered(self._take, threads=threads, window=2 * threads)
        self.size = 0
        """Bytes written."""
        self.boundaries: list[int] = []
        """Where members begin."""

    def put(self, piece: Piece) -> None:
        """The next member."""
        self._batch.append(piece)
        self._batched += len(piece.raw)
        if self._batched >= _BATCH or len(self._batch) >= _PIECES:
            self._submit()

    def flush(self) -> None:
        """Wait until all that was put is written."""
        self._submit()
        self._pool.drain()

    def append(self, data: bytes) -> None:
        """A member that is compressed already, behind what was flushed."""
        self.boundaries.append(self.size)
        self._write(data)

    @property
    def digest(self) -> str:
        """Of what is written."""
        return f"sha256:{self._hash.hexdigest()}"

    def __enter__(self) -> BlobFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.__exit__(kind, error, trace)

    def _submit(self) -> None:
        if self._batch:
            batch, self._batch, self._batched = self._batch, [], 0
            self._pool.submit(partial(_compress, self._codec, batch))

    def _take(self, done: _Done) -> None:
        digests = iter(done.digests)
        at = self.size
        for piece, size in zip(done.pieces, done.sizes, strict=True):
            self.boundaries.append(at)
            for mark in piece.marks:
                self._placed(mark, at, at + size, next(digests) if isinstance(mark, Span) else "")
            at += size
        self._write(done.data)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)


def _compress(codec: Codec, pieces: Sequence[Piece]) -> _Done:
    digests: list[str] = []
    for piece in pieces:
        for mark in piece.marks:
            if isinstance(mark, Span):
                part = memoryview(piece.raw)[mark.start : mark.start + mark.size]
                digests.append(f"sha256:{hashlib.sha256(part).hexdigest()}")
    out = codec([piece.raw for piece in pieces])
    return _Done(pieces, [len(data) for data in out], digests, b"".join(out))
