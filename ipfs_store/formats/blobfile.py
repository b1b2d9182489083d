"""The blob on its way to disk: pieces compressed in several threads, written and hashed in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType

import msgspec

from ipfs_store.formats.blob import Output
from ipfs_store.formats.compress import Codec, Ordered

_BATCH = 512 << 10
"""Bytes that are given to a thread at once, at most some 64 pieces: a hand-over costs 50 us, as much as compressing a file of 4 KiB."""
_PIECES = 64
_KEPT = 48 << 20
"""Bytes of freed memory that glibc keeps for what comes next. By itself it gives the memory of batches back to the kernel, which clears it for
the next one: 30,000 page faults, 0.2 s of 2.9 for 309 MB. It keeps twice as much as the largest mapping that was freed so far (mallopt(3),
M_MMAP_THRESHOLD), so one of half as much, never touched, is made and freed."""


class Span(msgspec.Struct, gc=False):
    """A part of a piece that is hashed by itself."""

    start: int
    size: int
    tag: object
    """For whoever is told of it."""


class Piece(msgspec.Struct, gc=False):
    """What becomes one member or frame."""

    parts: list[bytes]
    """Its bytes, in order."""
    size: int
    """Of all parts."""
    marks: list[Span | object] = msgspec.field(default_factory=list)
    """Spans, and anything else, in order: all handed to ``placed`` once the piece is written."""


class _Done(msgspec.Struct, gc=False):
    pieces: Sequence[Piece]
    sizes: Sequence[int]
    digests: Sequence[str]
    data: bytes


Placed = Callable[[object, int, int, str], None]
"""Told of each mark (mark, begin of its member, end of its member, digest of a span or nothing), in order, by the writing thread."""


class BlobFile:
    """A new blob; ``put`` may return long before the piece is written, ``flush`` returns after."""

    def __init__(self, file: Output, codec: Codec, placed: Placed, threads: int) -> None:
        bytes(_KEPT // 2)
        self._file = file
        self._codec = codec
        self._placed = placed
        self._batch: list[Piece] = []
        self._batched = 0
        self._hash = hashlib.sha256()
        self._raw_hash = hashlib.sha256()
        self._pool: Ordered[_Done] = Ordered(self._take, threads=threads, window=2 * threads)
        self.size = 0
        """Bytes written."""
        self.raw_size = 0
        """Bytes that were put, before compression."""
        self.boundaries: list[int] = []
        """Where members begin."""

    def put(self, piece: Piece) -> None:
        """The next member."""
        self._batch.append(piece)
        self._batched += piece.size
        if self._batched >= _BATCH or len(self._batch) >= _PIECES:
            self._submit()

    def flush(self) -> None:
        """Wait until all that was put is written."""
        self._submit()
        self._pool.drain()

    def append(self, data: bytes, raw: bytes = b"") -> None:
        """A member that is compressed already, behind what was flushed; ``raw`` is what it stands for in the uncompressed stream."""
        self.boundaries.append(self.size)
        self._write(data)
        self._raw_hash.update(raw)
        self.raw_size += len(raw)

    @property
    def is_begun(self) -> bool:
        """Whether anything was put."""
        return bool(self.raw_size or self._batch)

    @property
    def digest(self) -> str:
        """Of what is written."""
        return f"sha256:{self._hash.hexdigest()}"

    @property
    def raw_digest(self) -> str:
        """Of what was put and flushed, before compression: the DiffID."""
        return f"sha256:{self._raw_hash.hexdigest()}"

    def __enter__(self) -> BlobFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.__exit__(kind, error, trace)

    def _submit(self) -> None:
        if self._batch:
            batch, size = self._batch, self._batched
            self._batch, self._batched = [], 0
            # One copy and one hash of the batch: a call of either for each piece would let go of the interpreter's lock, and wait for it again.
            data = b"".join([part for piece in batch for part in piece.parts])
            for piece in batch:
                piece.parts.clear()
            self._raw_hash.update(data)
            self.raw_size += size
            self._pool.submit(partial(_compress, self._codec, batch, data))

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


def _compress(codec: Codec, pieces: Sequence[Piece], data: bytes) -> _Done:
    digests: list[str] = []
    raws: list[memoryview] = []
    view = memoryview(data)
    at = 0
    for piece in pieces:
        for mark in piece.marks:
            if isinstance(mark, Span):
                start = at + mark.start
                digests.append("sha256:" + hashlib.sha256(view[start : start + mark.size]).hexdigest())
        raws.append(view[at : at + piece.size])
        at += piece.size
    out = codec(raws)
    return _Done(pieces, [len(member) for member in out], digests, b"".join(out))
