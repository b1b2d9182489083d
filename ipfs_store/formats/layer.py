"""Opening a layer blob: from random access to a verified TOC, and from there to the bytes of any file."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import trio

from ipfs_store.errors import ChunkMismatch, InvalidLayer, NotSeekable, TocMismatch
from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.chunks import cut_chunk, decode_stream, inflate, verify_chunk
from ipfs_store.formats.document import decode_document
from ipfs_store.formats.entries import decode_toc
from ipfs_store.formats.footer import TocLocation, locate_toc
from ipfs_store.formats.limits import MAX_TOC, TAIL
from ipfs_store.formats.names import (
    ANNOTATION_TOC_DIGEST,
    ANNOTATION_ZSTD_CHECKSUM,
    ANNOTATION_ZSTD_CHECKSUM_OLD,
    TOC_NAME,
    Kind,
)
from ipfs_store.formats.toc import Chunk, Entry, Toc

_TAR_BLOCK = 512
_TAR_OVERHEAD = 64 << 10  # header, padding and end of the TOC's tar: GNU tar fills 20 blocks


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that was opened."""

    kind: Kind
    toc: Toc
    toc_offset: int
    """Where files end and the TOC (or, if that is elsewhere, the footer) begins."""

    def decode(self, data: bytes, needed: int) -> bytes:
        """The first ``needed`` bytes of a compressed stream of this layer; raises InvalidLayer. CPU work."""
        return decode_stream(self.kind, data, needed)


async def open_layer(
    blob: RangeReader, annotations: Mapping[str, str] | None = None, *, toc_digest: str = "", external_toc: RangeReader | None = None
) -> Layer:
    """Find, verify and decode the TOC of ``blob``: one read of its end, and one more where the TOC is longer than 64 KiB.

    ``annotations`` are the layer descriptor's; the TOC must have the digest that they or ``toc_digest`` name; where nobody names one,
    ``blob`` itself has to be trusted (a CID vouches for all of it). ``external_toc`` is the TOC image's layer that belongs to ``blob``
    (estargz, "eStargz image with an external TOC"), for which a digest has to be named; a blob with a TOC of its own leaves it unread.
    Raises NotSeekable (a layer without a TOC), InvalidLayer, TocMismatch, and what the readers raise.
    """
    location, data = await load_toc(blob, annotations, toc_digest=toc_digest, external_toc=external_toc)
    toc = await trio.to_thread.run_sync(_decode, location, data)
    return Layer(location.kind, toc, location.payload_end)


async def load_toc(
    blob: RangeReader, annotations: Mapping[str, str] | None = None, *, toc_digest: str = "", external_toc: RangeReader | None = None
) -> tuple[TocLocation, bytes]:
    """Where the TOC of ``blob`` is, and its verified JSON; reads and raises as `open_layer` does."""
    annotations = annotations or {}
    size = blob.size
    start = max(size - TAIL, 0)
    tail = await blob.read(start, size - start) if size else b""
    location = locate_toc(tail, size, annotations)
    expected = {digest for digest in (toc_digest, annotations.get(ANNOTATION_TOC_DIGEST, "")) if digest}
    if location.external:
        compressed = await _external(external_toc, expected)
    elif location.offset >= start:
        compressed = tail[location.offset - start :][: location.length]
    else:
        # Only what the tail lacks: it holds the rest already.
        head = await blob.read(location.offset, min(start - location.offset, location.length))
        compressed = (head + tail)[: location.length]
    checksum = annotations.get(ANNOTATION_ZSTD_CHECKSUM) or annotations.get(ANNOTATION_ZSTD_CHECKSUM_OLD) or ""
    return location, await trio.to_thread.run_sync(_verified, location, compressed, expected, checksum)


async def _external(blob: RangeReader | None, expected: set[str]) -> bytes:
    if blob is None:
        raise NotSeekable(
            "the layer's TOC is in an image of its own (external TOC)", hint="convert the image with the TOC inside: ipfs-store convert"
        )
    if not expected:
        raise InvalidLayer(
            "the layer's TOC is in another blob, and nobody says which digest it has", hint=f"the annotation {ANNOTATION_TOC_DIGEST} does"
        )
    if blob.size > MAX_TOC:
        raise InvalidLayer(f"the TOC's blob has {blob.size} bytes, over the limit of {MAX_TOC}")
    return await blob.read(0, blob.size)


def read_toc(location: TocLocation, compressed: bytes) -> bytes:
    """The TOC's JSON out of its compressed form; raises InvalidLayer. CPU work."""
    if location.kind == "zstd:chunked":
        data = decode_stream("zstd:chunked", compressed, location.raw_length)
        if len(data) > MAX_TOC:
            raise InvalidLayer(f"the TOC has {len(data)} bytes, over the limit of {MAX_TOC}")
        return data
    unpacked, complete = inflate(compressed, MAX_TOC + _TAR_OVERHEAD)
    if not complete:
        raise InvalidLayer(f"the TOC's gzip member of {len(compressed)} bytes does not end, or holds more than {MAX_TOC} bytes")
    try:
        # The header alone: the TOC is the first entry, and writers give it no extensions (estargz, "TOC and TOCEntries").
        header = tarfile.TarInfo.frombuf(unpacked[:_TAR_BLOCK], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise InvalidLayer(f"where the TOC should be, there is no tar: {error}") from error
    if header.name != TOC_NAME or not header.isreg():
        raise InvalidLayer(f"where the TOC should be, the tar has {header.name[:100]!r} instead of {TOC_NAME}")
    data = unpacked[_TAR_BLOCK : _TAR_BLOCK + max(header.size, 0)]
    if len(data) != header.size:
        raise InvalidLayer(f"the TOC's tar entry ends after {len(data)} of {header.size} bytes")
    return data


def _verified(location: TocLocation, compressed: bytes, expected: set[str], checksum: str) -> bytes:
    if checksum:
        found = _sha256(compressed)
        if found != checksum:
            raise TocMismatch(f"the compressed TOC has the digest {found}, its layer's annotation says {checksum}")
    data = read_toc(location, compressed)
    if expected:
        digest = _sha256(data)
        for wanted in expected:
            # zstd:chunked: some tools name the digest of the compressed TOC under the same key.
            if wanted != digest and not (location.kind == "zstd:chunked" and wanted == _sha256(compressed)):
                raise TocMismatch(f"the layer's TOC has the digest {digest}, and {wanted} was asked for")
    return data


def _decode(location: TocLocation, data: bytes) -> Toc:
    return decode_toc(decode_document(data), kind=location.kind, digest=_sha256(data), payload_end=location.payload_end)


async def read_file(blob: RangeReader, layer: Layer, entry: Entry) -> AsyncIterator[bytes]:
    """The contents of a regular file, chunk by chunk, each verified; raises InvalidLayer, ChunkMismatch, and what ``blob`` raises.

    Of legacy stargz, which has no digests of chunks, the last chunk comes only after the whole file was verified, if the TOC has its digest.
    """
    whole = hashlib.sha256() if entry.digest and any(not chunk.digest and chunk.end > chunk.offset for chunk in entry.chunks) else None
    for number, chunk in enumerate(entry.chunks, 1):
        data = await blob.read(chunk.offset, chunk.end - chunk.offset) if chunk.end > chunk.offset else b""
        piece = await trio.to_thread.run_sync(_chunk, layer.kind, data, entry.path, chunk)
        if whole is not None:
            whole.update(piece)
            if number == len(entry.chunks) and "sha256:" + whole.hexdigest() != entry.digest:
                raise ChunkMismatch(f"{entry.path!r}: the TOC says {entry.digest}, the blob holds sha256:{whole.hexdigest()}")
        yield piece


async def read_range(blob: RangeReader, layer: Layer, entry: Entry, offset: int, size: int) -> bytes:
    """At most ``size`` bytes of a regular file from ``offset``, fewer at its end; only the chunks that hold them are read, and verified.

    Raises what `read_file` raises. The chunks are found by bisection.
    """
    end = min(offset + size, entry.size)
    pieces = []
    for chunk in entry.chunks_of(offset, size):
        data = await blob.read(chunk.offset, chunk.end - chunk.offset) if chunk.end > chunk.offset else b""
        piece = await trio.to_thread.run_sync(_chunk, layer.kind, data, entry.path, chunk)
        pieces.append(piece[max(offset - chunk.file_offset, 0) : end - chunk.file_offset])
    return b"".join(pieces)


def _chunk(kind: Kind, data: bytes, path: str, chunk: Chunk) -> bytes:
    piece = cut_chunk(decode_stream(kind, data, chunk.inner_offset + chunk.size) if data else b"", chunk)
    verify_chunk(path, chunk, piece)
    return piece


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
