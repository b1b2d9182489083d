"""The contents of a layer by id, as a file that is mapped and not read: which chunks a content has, and where they are in the blob.

Little endian throughout; a header, then sections in the order of `_SECTIONS`, each beginning at a multiple of 8. ``contents`` are sorted by
id and found by bisection, their chunks lie together. Ten layers of 30,000 files take no memory but the pages that were looked at.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import cast

from ipfs_store.errors import StorageFailed
from ipfs_store.formats.names import Kind
from snapshotter.metadata.contentid import HOLE, ContentId

__all__ = ["HOLE", "NO_DIGEST", "ContentIndex", "Contents", "encode_index"]

NO_DIGEST = bytes(32)
"""In place of a chunk's digest where the format has none (legacy stargz)."""
_MAGIC = b"contents"
_VERSION = 1
# magic, version, kind, contents, chunks, bytes of names, entries of the layer, bytes of all contents, SHA-256 of the sections, of the image
_HEADER = struct.Struct("<8sHHIIIQQ32s32s")
_KINDS: tuple[Kind, ...] = ("estargz", "zstd:chunked", "stargz")
_PER_CONTENT, _PER_CHUNK = 0, 1
# (name, type code of array, for each what). Codes of 4 and 8 bytes only.
_SECTIONS = (
    ("size", "Q", _PER_CONTENT),
    ("first", "I", _PER_CONTENT),
    ("count", "I", _PER_CONTENT),
    ("path_at", "I", _PER_CONTENT),
    ("chunk_file_offset", "Q", _PER_CHUNK),
    ("stream_offset", "Q", _PER_CHUNK),
    ("chunk_size", "I", _PER_CHUNK),
    ("stream_length", "I", _PER_CHUNK),
    ("chunk_inner", "I", _PER_CHUNK),
    ("chunk_content", "I", _PER_CHUNK),
    ("by_stream", "I", _PER_CHUNK),
)


def _array(code: str) -> array[int]:
    return array(code)


@dataclass(slots=True)
class Contents:
    """The contents of a layer while its index is made; ``chunk`` and ``stream`` arrays have the chunks of one behind those of the other."""

    ids: list[ContentId] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)
    """One that has the content."""
    size: array[int] = field(default_factory=lambda: _array("Q"))
    count: array[int] = field(default_factory=lambda: _array("I"))
    """Chunks."""
    digests: bytes = b""
    chunk_file_offset: array[int] = field(default_factory=lambda: _array("Q"))
    chunk_size: array[int] = field(default_factory=lambda: _array("I"))
    stream_offset: array[int] = field(default_factory=lambda: _array("Q"))
    stream_length: array[int] = field(default_factory=lambda: _array("I"))
    chunk_inner: array[int] = field(default_factory=lambda: _array("I"))


def encode_index(contents: Contents, *, kind: Kind, entries: int, image: bytes = b"") -> bytes:
    """The file. ``entries``: of the layer, for people; ``image``: the metadata image that belongs to it, if it is there yet (see `of_image`)."""
    order = sorted(range(len(contents.ids)), key=contents.ids.__getitem__)
    ids = [contents.ids[content] for content in order]
    paths = [contents.paths[content] + b"\0" for content in order]
    chunks = len(contents.chunk_size)
    starts = list(accumulate(contents.count, initial=0))
    owner = array("I", bytes(4 * chunks))
    for number, content in enumerate(order):
        if contents.count[content] == 1:
            owner[starts[content]] = number
        else:
            for chunk in range(starts[content], starts[content + 1]):
                owner[chunk] = number
    streams, inner = contents.stream_offset, contents.chunk_inner
    key = [at << 64 | within for at, within in zip(streams, inner, strict=True)] if any(inner) else streams
    columns = {
        "size": array("Q", [contents.size[content] for content in order]),
        "first": array("I", [starts[content] for content in order]),
        "count": array("I", [contents.count[content] for content in order]),
        "path_at": array("I", list(accumulate(map(len, paths), initial=0))[:-1]),
        "chunk_file_offset": contents.chunk_file_offset,
        "stream_offset": streams,
        "chunk_size": contents.chunk_size,
        "stream_length": contents.stream_length,
        "chunk_inner": inner,
        "chunk_content": owner,
        "by_stream": array("I", sorted(range(chunks), key=key.__getitem__)),
    }
    names = b"".join(paths)
    body = [*ids, contents.digests]  # 32 bytes each
    for name, _, _ in _SECTIONS:
        section = columns[name].tobytes()
        body += (section, bytes(-len(section) % 8))
    body.append(names)
    sections = b"".join(body)
    header = _HEADER.pack(
        _MAGIC, _VERSION, _KINDS.index(kind), len(ids), chunks, len(names), entries, sum(contents.size),
        hashlib.sha256(sections).digest(), hashlib.sha256(image).digest(),
    )  # fmt: skip
    return b"".join((header, bytes(-len(header) % 8), sections))


def of_image(index: bytes, image: bytes) -> bytes:
    """The encoded index with the checksum of the metadata image that belongs to it."""
    return index[: _HEADER.size - 32] + hashlib.sha256(image).digest() + index[_HEADER.size :]


class ContentIndex:
    """A layer's contents. A content is named by its number in here, which is what `number` and `starting` find."""

    size: Sequence[int]
    """By content: bytes."""
    first: Sequence[int]
    count: Sequence[int]
    path_at: Sequence[int]
    chunk_file_offset: Sequence[int]
    stream_offset: Sequence[int]
    """By chunk: where in the blob the compressed stream begins that holds it; 0 with a ``stream_length`` of 0 for a hole."""
    chunk_size: Sequence[int]
    stream_length: Sequence[int]
    chunk_inner: Sequence[int]
    """By chunk: where in the decompressed stream it begins."""
    chunk_content: Sequence[int]
    by_stream: Sequence[int]
    """Chunks ordered by stream, then by place in it."""

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        """Raises StorageFailed if ``data`` is no index; ``name`` is for the message."""
        self._data = data
        self._name = name
        if len(data) < _HEADER.size or data[:8] != _MAGIC:
            raise StorageFailed(f"{name} is no index of contents")
        _, version, kind, contents, chunks, names, self.nodes, self.content, self._body_digest, self.image_digest = _HEADER.unpack(
            data[: _HEADER.size]
        )
        if version != _VERSION or kind >= len(_KINDS):
            raise StorageFailed(f"{name} is an index of another version ({version})")
        self.kind = _KINDS[kind]
        self.contents: int = contents
        self.chunks_total: int = chunks
        self._body = at = _HEADER.size + -_HEADER.size % 8
        self._ids = _Ids(data, at, contents)
        at += 32 * contents
        self._digests = at
        at += 32 * chunks
        view = memoryview(data)
        for section, code, per in _SECTIONS:
            length = (8 if code == "Q" else 4) * (contents if per == _PER_CONTENT else chunks)
            setattr(self, section, view[at : at + length].cast("Q" if code == "Q" else "I"))
            at += length
            at += -(at - self._body) % 8
        self._names = at
        if len(data) != at + names:
            raise StorageFailed(f"{name} has {len(data)} bytes, where an index of {contents} contents and {chunks} chunks has {at + names}")

    @classmethod
    def open(cls, path: Path) -> ContentIndex:
        """Map the file; raises StorageFailed, FileNotFoundError."""
        with path.open("rb") as file:
            try:
                return cls(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), str(path))
            except ValueError as error:
                raise StorageFailed(f"{path} is no index of contents: {error}") from error

    def is_sound(self) -> bool:
        """Whether the file is as it was written; reads all of it."""
        return bool(hashlib.sha256(memoryview(self._data)[self._body :]).digest() == self._body_digest)

    def number(self, content: ContentId) -> int | None:
        """The content with this id."""
        at = bisect_left(self._ids, content)
        return at if at < self.contents and self._ids[at] == content else None

    def starting(self, start: bytes, end: bytes) -> int | None:
        """The first content whose id is at least ``start`` and below ``end``."""
        at = bisect_left(self._ids, start)
        return at if at < self.contents and self._ids[at] < end else None

    def beginning(self, byte: int) -> range:
        """The contents whose ids begin with this byte."""
        start = bisect_left(self._ids, bytes([byte]))
        return range(start, bisect_left(self._ids, bytes([byte + 1]), start) if byte < 255 else self.contents)

    def id(self, number: int) -> ContentId:
        """The content's id."""
        return ContentId(self._ids[number])

    def path(self, number: int) -> str:
        """A path in the layer that has the content, for people."""
        start = self._names + self.path_at[number]
        end = self._data.find(b"\0", start)
        return "/" + self._data[start:end].decode("utf-8", "backslashreplace")

    def all_chunks(self, number: int) -> range:
        """Every chunk of the content."""
        return range(self.first[number], self.first[number] + self.count[number])

    def chunks(self, number: int, offset: int, size: int) -> range:
        """The chunks that hold any of ``size`` bytes from ``offset``."""
        first = self.first[number]
        last = first + self.count[number]
        end = min(offset + size, self.size[number])
        if offset >= end:
            return range(0)
        starts = self.chunk_file_offset
        return range(bisect_right(starts, offset, first, last) - 1, bisect_left(starts, end, first, last))

    def digest(self, chunk: int) -> bytes:
        """The SHA-256 of a chunk, HOLE or NO_DIGEST."""
        at = self._digests + 32 * chunk
        return self._data[at : at + 32]

    def is_hole(self, chunk: int) -> bool:
        """Whether the chunk is zeros that the blob does not hold."""
        return not self.stream_length[chunk] and self.digest(chunk) == HOLE

    def chunks_between(self, start: int, end: int) -> Sequence[int]:
        """Every chunk whose stream begins at ``start`` of the blob or behind it, and before ``end``, in the order of the blob."""
        key = self.stream_offset.__getitem__
        low = bisect_left(self.by_stream, start, key=key)
        return self.by_stream[low : bisect_left(self.by_stream, end, lo=low, key=key)]


class _Ids(Sequence[bytes]):
    """The sorted ids, for bisect."""

    def __init__(self, data: bytes | mmap.mmap, at: int, count: int) -> None:
        self._data, self._at, self._count = data, at, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int | slice) -> bytes:  # type: ignore[override]
        at = self._at + 32 * cast("int", number)
        return self._data[at : at + 32]
