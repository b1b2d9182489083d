"""Sparse files in a tar, which come out whole: GNU's old format and the three that pax headers have (GNU tar manual, "Storing Sparse Files").

The image specification advises against them (layer.md); they occur all the same, and no table of contents can say them.
"""

from __future__ import annotations

from typing import Protocol

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats import headers
from ipfs_store.formats.headers import BLOCK, Header
from ipfs_store.formats.limits import MAX_SPARSE

_MAX_PIECES = 1 << 20


class _Tar(Protocol):
    def stored(self, count: int) -> bytes: ...

    def extra(self, count: int) -> bytes: ...


class Reader:
    """The contents of a sparse file, holes as zeros."""

    def __init__(self, tar: _Tar, pieces: list[tuple[int, int]], size: int) -> None:
        self._tar = tar
        self._pieces = pieces[::-1]
        self._size = size
        self._at = 0

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end."""
        out = bytearray()
        count = min(count, self._size - self._at)
        while len(out) < count:
            start, length = self._pieces[-1] if self._pieces else (self._size, 0)
            if self._at < start:
                hole = min(start - self._at, count - len(out))
                out += bytes(hole)
                self._at += hole
                continue
            taken = min(start + length - self._at, count - len(out))
            data = self._tar.stored(taken)
            if len(data) != taken:
                raise InvalidLayer("a sparse file in the layer's tar has more pieces than contents")
            out += data
            self._at += taken
            if self._at >= start + length:
                self._pieces.pop()
        return bytes(out)


def is_sparse(header: Header) -> bool:
    """Whether the contents of ``header`` in the tar are not those of the file."""
    return header.flag == headers.GNU_SPARSE or "GNU.sparse.major" in header.pax or "GNU.sparse.map" in header.pax


def reader(header: Header, block: bytes, tar: _Tar) -> Reader:
    """A reader of the contents of ``header``, whose main block is ``block``, out of ``tar``, which is behind it.

    Sets name and size to the file's own. Raises InvalidLayer.
    """
    pax = header.pax
    if header.flag == headers.GNU_SPARSE:
        numbers, size = _old(block, tar)
    else:
        try:
            size = int(pax.get("GNU.sparse.realsize") or pax.get("GNU.sparse.size") or header.size)
            text = pax.get("GNU.sparse.map")
            numbers = _inner(tar) if text is None else [int(part) for part in text.split(",") if part]
        except ValueError as error:
            raise InvalidLayer(f"{header.name[:300]!r} has a sparse map that is none: {error}") from error
        header.name = pax.get("GNU.sparse.name") or header.name
    pieces = list(zip(numbers[::2], numbers[1::2], strict=False))
    end = 0
    for start, length in pieces:
        if start < end or length < 0:
            raise InvalidLayer(f"{header.name[:300]!r} has a sparse map whose pieces overlap")
        end = start + length
    if not end <= size <= MAX_SPARSE or len(numbers) % 2:
        raise InvalidLayer(f"{header.name[:300]!r} has a sparse map that does not fit its size of {size}")
    header.size = size
    return Reader(tar, [piece for piece in pieces if piece[1]], size)


def _old(block: bytes, tar: _Tar) -> tuple[list[int], int]:
    numbers = _numbers(block[386:482])
    size, more = headers.number(block[483:495]), block[482]
    while more:
        block = tar.extra(BLOCK)
        numbers += _numbers(block[:504])
        more = block[504]
        if len(numbers) > 2 * _MAX_PIECES:
            raise InvalidLayer("a sparse file in the layer's tar has more pieces than any file")
    return numbers, size


def _numbers(data: bytes) -> list[int]:
    found: list[int] = []
    for at in range(0, len(data), 24):
        if not data[at]:
            break
        found += (headers.number(data[at : at + 12]), headers.number(data[at + 12 : at + 24]))
    return found


def _inner(tar: _Tar) -> list[int]:
    """The map at the beginning of the contents (format 1.0): decimal numbers in lines, how many pieces first, padded to a block."""
    text = bytearray()
    wanted = None
    while wanted is None or text.count(b"\n") < wanted:
        block = tar.stored(BLOCK)
        text += block
        if wanted is None and b"\n" in text:
            wanted = 1 + 2 * int(text[: text.index(b"\n")])
        if len(block) < BLOCK or (wanted or 0) > 2 * _MAX_PIECES or (wanted is None and len(text) > BLOCK):
            raise InvalidLayer("a sparse file in the layer's tar has no map at its beginning")
    return [int(line) for line in text.split(b"\n")[1:wanted]]
