"""Opening a layer blob: from random access to a verified TOC, and from there to the bytes of any file."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import trio

from ipfs_store.errors import InvalidLayer, NotSeekable, TocMismatch
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

_TAR_OVERHEAD = 1 << 20  # headers and padding around the TOC in its tar; pax headers may make them longer than two blocks


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that was opened."""

    kind: Kind
    toc: Toc
    toc_offset: int
    """Where files end and the TOC begins."""

    def decode(self, data: bytes, needed: int) -> bytes:
        """The first ``needed`` bytes of a compressed stream of this layer; raises InvalidLayer. CPU work."""
        return decode_stream(self.kind, data, needed)


async def open_layer(blob: RangeReader, annotations: Mapping[str, str] | None = None, *, toc_digest: str = "") -> Layer:
    """Find, verify and decode the TOC of ``blob``: one read of its end, and one more where the TOC is longer than 64 KiB.

    ``annotations`` are the layer descriptor's; the TOC must have the digest that they or ``toc_digest`` name; where nobody names one,
    ``blob`` itself has to be trusted (a CID vouches for all of it). Raises NotSeekable (a layer without a TOC), InvalidLayer, TocMismatch,
    and what ``blob`` raises.
    """
    location, data = await load_toc(blob, annotations, toc_digest=toc_digest)
    toc = await trio.to_thread.run_sync(_decode, location, data)
    return Layer(location.kind, toc, location.payload_end)


async def load_toc(blob: RangeReader, annotations: Mapping[str, str] | None = None, *, toc_digest: str = "") -> tuple[TocLocation, bytes]:
    """Where the TOC of ``blob`` is, and its verified JSON; reads and raises as `open_layer` does."""
    annotations = annotations or {}
    size = blob.size
    start = max(size - TAIL, 0)
    tail = await blob.read(start, size - start) if size else b""
    location = locate_toc(tail, size, annotations)
    if location.external:
        raise NotSeekable(
            "the layer's TOC is in an image of its own (external TOC)", hint="convert the image with the TOC inside: ipfs-store convert"
        )
    if location.offset >= start:
        compressed = tail[location.offset - start :][: location.length]
    else:
        # Only what the tail lacks: it holds the rest already.
        head = await blob.read(location.offset, min(start - location.offset, location.length))
        compressed = (head + tail)[: location.length]
    expected = {digest for digest in (toc_digest, annotations.get(ANNOTATION_TOC_DIGEST, "")) if digest}
    checksum = annotations.get(ANNOTATION_ZSTD_CHECKSUM) or annotations.get(ANNOTATION_ZSTD_CHECKSUM_OLD) or ""
    return location, await trio.to_thread.run_sync(_verified, location, compressed, expected, checksum)


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
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            member = tar.next()
            if member is None or member.name != TOC_NAME or not member.isreg():
                raise InvalidLayer(
                    f"where the footer puts the TOC, the tar has {member.name[:100] if member else 'nothing'!r} instead of {TOC_NAME}"
                )
            file = tar.extractfile(member)
            data = file.read() if file is not None else b""
    except (tarfile.TarError, OSError, ValueError, UnicodeError) as error:
        raise InvalidLayer(f"where the footer puts the TOC, there is no tar: {error}") from error
    if len(data) != member.size:
        raise InvalidLayer(f"the TOC's tar entry ends after {len(data)} of {member.size} bytes")
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
    """The contents of a regular file, chunk by chunk, each verified; raises InvalidLayer, ChunkMismatch, and what ``blob`` raises."""
    for chunk in entry.chunks:
        data = await blob.read(chunk.offset, chunk.end - chunk.offset) if chunk.end > chunk.offset else b""
        yield await trio.to_thread.run_sync(_chunk, layer.kind, data, entry.path, chunk)


def _chunk(kind: Kind, data: bytes, path: str, chunk: Chunk) -> bytes:
    piece = cut_chunk(decode_stream(kind, data, chunk.inner_offset + chunk.size) if data else b"", chunk)
    verify_chunk(path, chunk, piece)
    return piece


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
