"""zstd streams that say when they are cut: libzstd's stop silently where their input does, so the frames are walked beside it."""

from __future__ import annotations

from collections.abc import Generator
from typing import BinaryIO, cast

import zstandard

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.limits import MAX_ZSTD_WINDOW
from ipfs_store.formats.names import ZSTD_MAGIC, ZSTD_SKIPPABLE_MAGIC

_CONTENT_SIZE = (0, 2, 4, 8)  # bytes, by Frame_Content_Size_flag (section 3.1.1.1.1); 1 instead of 0 for a single segment
_DICTIONARY = (0, 1, 2, 4)  # bytes, by Dictionary_ID_flag
_RLE = 1
_PIECE = 1 << 20


class ZstdFile:
    """What a file of zstd frames decompresses to, in order."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._walker = FrameWalker()
        decoder = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        self._reader = decoder.stream_reader(cast(BinaryIO, _Watched(raw, self._walker)), read_size=_PIECE, read_across_frames=True)
        self._size = 0

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes, fewer at the end only; raises InvalidLayer for damage, and for an end inside of a frame."""
        try:
            data = self._reader.read(count)
        except zstandard.ZstdError as error:
            raise InvalidLayer(f"a zstd stream is damaged after {self._size} uncompressed bytes: {error}") from error
        self._size += len(data)
        if len(data) < count and not self._walker.complete:
            raise InvalidLayer(f"a zstd stream ends inside of a frame, after {self._size} uncompressed bytes")
        return data

    def seekable(self) -> bool:
        """It is not."""
        return False


class _Watched:
    def __init__(self, raw: BinaryIO, walker: FrameWalker) -> None:
        self._raw = raw
        self._walker = walker

    def read(self, count: int) -> bytes:
        data = self._raw.read(count)
        self._walker.feed(data)
        return data


class FrameWalker:
    """Knows where frames end without decompressing them (RFC 8878, section 3.1). Is fed a stream of them as it comes."""

    def __init__(self) -> None:
        self._field = bytearray()
        self._pass = 0
        self._between = True
        self._walk = self._frames()
        self._wanted = next(self._walk)

    @property
    def complete(self) -> bool:
        """Whether what was fed so far ends where a frame ends."""
        return self._between and not self._pass and not self._field

    def feed(self, data: bytes) -> None:
        """The next bytes. What is no frame ends the walk: the decompressor says what is wrong with it."""
        at = 0
        while at < len(data) and self._wanted:
            step = min(self._pass, len(data) - at)
            self._pass -= step
            at += step
            part = data[at : at + self._wanted - len(self._field)]
            self._field += part
            at += len(part)
            if len(self._field) == self._wanted and not self._pass:
                field, self._field = bytes(self._field), bytearray()
                self._wanted = self._walk.send(field)

    def _frames(self) -> Generator[int, bytes, None]:
        """Yields how many bytes are to be looked at next; what is in ``_pass`` is passed over before."""
        while True:
            self._between = True
            magic = yield 4
            self._between = False
            if magic[1:] == ZSTD_SKIPPABLE_MAGIC[1:] and magic[0] >> 4 == 5:
                self._pass = int.from_bytes((yield 4), "little")
            elif magic == ZSTD_MAGIC:
                yield from self._blocks()
            else:
                yield 0

    def _blocks(self) -> Generator[int, bytes, None]:
        descriptor = (yield 1)[0]
        single = descriptor >> 5 & 1
        self._pass = (1 - single) + _DICTIONARY[descriptor & 3] + (_CONTENT_SIZE[descriptor >> 6] or single)
        while True:
            block = int.from_bytes((yield 3), "little")
            self._pass = 1 if block >> 1 & 3 == _RLE else block >> 3
            if block & 1:
                break
        self._pass += 4 * (descriptor >> 2 & 1)  # the checksum
