"""Opening a layer blob: from random access to a verified TOC, and from there to the bytes of any file."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import trio

from ipfs_store.errors import ChunkMismatch, InvalidLayer, NotSeekable, TocMismatch
from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.chunks import Data, cut_chunk, decode_stream, inflate, verify_chunk
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
_TOGETHER = 16  # chunks of a file that are read at once: 4 MiB at 256 KiB
_TOGETHER_BYTES = 16 << 20  # of the blob, and so in memory: chunks of a foreign TOC may be of any size
_GAP = 4 << 10  # between two chunks of a file there are some bytes of the format at most


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that was opened."""

    kind: Kind
    toc: Toc
    toc_offset: int
    """Where files end and the TOC (or, if that is elsewhere, the footer) begins."""

    def decode(self, data: bytes | memoryview, needed: int) -> Data:
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
        data = bytes(decode_stream("zstd:chunked", compressed, location.raw_length))
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


async def read_file(blob: RangeReader, layer: Layer, entry: Entry, offset: int = 0, size: int | None = None) -> AsyncGenerator[bytes, None]:
    """The contents of a regular file, or ``size`` bytes of them from ``offset`` (fewer at its end), piece by piece, each verified.

    Only the chunks that hold them are read. Raises InvalidLayer, ChunkMismatch, and what ``blob`` raises. Where chunks have no digest (legacy
    stargz), the last piece of a whole file comes only after the file was held to the digest that the TOC has for it.
    """
    end = entry.size if size is None else min(offset + size, entry.size)
    chunks = entry.chunks if (offset, end) == (0, entry.size) else entry.chunks_of(offset, end - offset)
    whole = (
        hashlib.sha256() if entry.digest and chunks is entry.chunks and not all(chunk.digest == entry.digest for chunk in chunks) else None
    )
    number = 0
    for together in _together(chunks):
        start = min(chunk.offset for chunk in together)
        length = max(chunk.end for chunk in together) - start
        data = await blob.read(start, length) if length else b""
        for chunk in together:
            piece = await trio.to_thread.run_sync(_chunk, layer.kind, data[chunk.offset - start : chunk.end - start], entry.path, chunk)
            number += 1
            if whole is not None:
                whole.update(piece)
                if number == len(chunks) and "sha256:" + whole.hexdigest() != entry.digest:
                    raise ChunkMismatch(f"{entry.path!r}: the TOC says {entry.digest}, its chunks make sha256:{whole.hexdigest()}")
            yield piece[max(offset - chunk.file_offset, 0) : end - chunk.file_offset]


def _together(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks to be read at once: those of a file follow on each other in the blob, as a rule, and one read asks for all of their leaves."""
    group: list[Chunk] = []
    for chunk in chunks:
        fits = group and len(group) < _TOGETHER and chunk.offset >= group[-1].offset and chunk.offset - group[-1].end <= _GAP
        if group and (not fits or chunk.is_hole or group[-1].is_hole or chunk.end - group[0].offset > _TOGETHER_BYTES):
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def _chunk(kind: Kind, data: bytes, path: str, chunk: Chunk) -> bytes:
    piece = cut_chunk(decode_stream(kind, data, chunk.inner_offset + chunk.size) if data else b"", chunk)
    verify_chunk(path, chunk, piece)
    return bytes(piece)


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
