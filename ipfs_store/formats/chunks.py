"""From the bytes of a compressed stream to the verified bytes of a chunk. Pure and synchronous: run it in a thread.

A chunk's stream is the blob's range ``[chunk.offset, chunk.end)``. It may hold several chunks (``inner_offset``), tar headers and
padding behind the last one, and the beginning of what follows; only what is needed is decompressed, so that a bomb does not go off.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from typing import cast

import deflate
import zstandard
from isal import igzip_lib, isal_zlib

from ipfs_store.errors import ChunkMismatch, InvalidLayer
from ipfs_store.formats.limits import MAX_STREAM, MAX_ZSTD_WINDOW
from ipfs_store.formats.names import GZIP_MAGIC, Kind
from ipfs_store.formats.toc import Chunk

_GZIP = 16 + zlib.MAX_WBITS  # isal and zlib: expect a gzip header
_PIECE = 1 << 20
_FIRST_PIECE = 16 << 10
_SLACK = 512
"""Bytes that may follow what is needed of a gzip member, for it to be inflated at once: what pads a file in a tar."""
_MAX_MEMBERS = 1000
"""Of one stream. Ours and the reference's have one or two; a stream of nothing but empty ones (20 bytes each) would take minutes."""
Data = bytes | bytearray
"""Uncompressed bytes, which nobody changes: decompressors give what costs them no copy."""
_ISAL_ERROR = cast("type[Exception]", igzip_lib.IsalError)  # its stub calls it an instance


def decode_stream(kind: Kind, data: bytes | memoryview, needed: int | None = None) -> Data:
    """The first ``needed`` bytes that ``data`` decompresses to, or all of them, up to MAX_STREAM.

    ``data`` begins with a gzip member or zstd frame; further ones follow on as one stream (RFC 1952, section 2.2; RFC 8878, section 3.1).
    Raises InvalidLayer if it is damaged, ends before ``needed``, or, with no ``needed``, holds more than MAX_STREAM.
    """
    if needed is not None and needed > MAX_STREAM:
        raise InvalidLayer(f"a chunk ends {needed} bytes into its compressed stream, over the limit of {MAX_STREAM}")
    if not data or needed == 0:
        return b""
    limit = MAX_STREAM + 1 if needed is None else needed
    out = _decode_zstd(data, limit) if kind == "zstd:chunked" else _whole_member(data, needed) or _decode_gzip(data, limit)
    if needed is None and len(out) > MAX_STREAM:
        raise InvalidLayer(f"a compressed stream of {len(data)} bytes holds more than the limit of {MAX_STREAM}")
    if needed is not None and len(out) < needed:
        raise InvalidLayer(
            f"a compressed stream of {len(data)} bytes ends after {len(out)} of the {needed} bytes that the TOC puts into it"
        )
    return out


def cut_chunk(stream: Data, chunk: Chunk) -> Data:
    """The chunk out of its decompressed stream (a hole, whose ``end`` is its ``offset``, out of nothing); raises InvalidLayer if it is not all there."""
    if chunk.end == chunk.offset:
        return bytes(chunk.size)
    if chunk.inner_offset == 0 and len(stream) == chunk.size:
        return stream
    data = stream[chunk.inner_offset : chunk.inner_offset + chunk.size]
    if len(data) != chunk.size:
        raise InvalidLayer(
            f"the stream at {chunk.offset} of the blob has {len(stream)} bytes, too few for the chunk at {chunk.inner_offset} of {chunk.size} bytes"
        )
    return data


def decode_chunk(kind: Kind, data: bytes, chunk: Chunk) -> Data:
    """``chunk`` out of the blob's range ``[chunk.offset, chunk.end)``, not yet verified; raises InvalidLayer."""
    return cut_chunk(decode_stream(kind, data, chunk.inner_offset + chunk.size), chunk)


def verify_chunk(path: str, chunk: Chunk, data: Data) -> None:
    """Check ``data`` against the TOC (estargz, "Content Verification in eStargz"); raises ChunkMismatch.

    Only the size is checked where the format has no digest (legacy stargz).
    """
    if len(data) != chunk.size:
        raise ChunkMismatch(f"{path!r}, chunk at {chunk.file_offset}: {len(data)} bytes instead of {chunk.size}")
    if not chunk.digest:
        return
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != chunk.digest:
        raise ChunkMismatch(f"{path!r}, chunk at {chunk.file_offset}: the TOC says {chunk.digest}, the blob holds {found}")


def inflate(data: bytes, limit: int) -> tuple[bytes, bool]:
    """The first gzip member of ``data``, at most ``limit`` bytes of it, and whether that is its end; raises InvalidLayer."""
    decoder = isal_zlib.decompressobj(_GZIP)
    pieces: list[bytes] = []
    total, rest = 0, data
    try:
        while rest and not decoder.eof and total < limit:
            pieces.append(decoder.decompress(rest, limit - total))
            total += len(pieces[-1])
            rest = decoder.unconsumed_tail
    except (_ISAL_ERROR, EOFError, ValueError) as error:
        raise InvalidLayer(f"a gzip member is damaged after {total} uncompressed bytes: {error}") from error
    return b"".join(pieces), decoder.eof


def _whole_member(data: bytes | memoryview, needed: int | None) -> bytearray | None:
    """The first member where it holds what is needed and no more than padding behind it, as nearly all do: a quarter faster than by pieces.

    None for anything else, which may be right all the same. The room for the output is what was asked for: no bomb goes off.
    """
    if needed is None:
        return None
    try:
        out = deflate.gzip_decompress(data, needed + _SLACK)
    except deflate.DeflateError:
        return None
    if len(out) < needed:
        return None
    del out[needed:]
    return out


def _decode_gzip(data: bytes | memoryview, limit: int) -> bytes:
    pieces: list[bytes] = []
    total = at = members = 0
    # A member may end where a writer began the next one for reasons of its own; what is no member (padding) ends the stream.
    while total < limit and data[at : at + 2] == GZIP_MAGIC:
        members += 1
        if members > _MAX_MEMBERS:
            raise InvalidLayer(
                f"a compressed stream of {len(data)} bytes has over {_MAX_MEMBERS} gzip members, {total} bytes in all of them"
            )
        decoder = isal_zlib.decompressobj(_GZIP)
        # A usual stream is one member, given whole. Of later ones a piece at a time: what is left over after a member is copied.
        step = len(data) if members == 1 else _FIRST_PIECE
        try:
            while at < len(data) and not decoder.eof and total < limit:
                piece = data[at : at + step] if at or step < len(data) else data
                at += len(piece)
                while piece and not decoder.eof and total < limit:
                    pieces.append(decoder.decompress(piece, limit - total))
                    total += len(pieces[-1])
                    piece = decoder.unconsumed_tail
                step *= 2
            if decoder.eof:
                at -= len(decoder.unused_data)
        except (_ISAL_ERROR, EOFError, ValueError) as error:
            raise InvalidLayer(f"a gzip stream is damaged after {total} uncompressed bytes: {error}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Decoders(threading.local):
    """A decompressor is not to be used by two threads at once; making one costs 20 us, twice the time of a 256 KiB chunk."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)


_decoders = _Decoders()


def _decode_zstd(data: bytes | memoryview, limit: int) -> bytes:
    pieces: list[bytes] = []
    total = 0
    # Not decompress(): it believes the content size in a frame's header, and would allocate what a stranger asks for.
    try:
        with _decoders.zstd.stream_reader(data, read_across_frames=True) as reader:
            while total < limit and (piece := reader.read(min(limit - total, _PIECE))):
                pieces.append(piece)
                total += len(piece)
    except zstandard.ZstdError as error:
        raise InvalidLayer(f"a zstd frame is damaged after {total} uncompressed bytes: {error}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
