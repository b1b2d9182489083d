"""A layer's TOC as an object of its own: a small zstd file, so that who mounts a layer need not look for the TOC inside of the blob.

Two zstd frames. A skippable one (RFC 8878, section 3.1.2), which every zstd decoder passes over, holds what only the blob's footer says: a
magic, the format, and where files end. The other one is the TOC as it stands in the layer, byte for byte: its digest is the one that the
layer's descriptor names.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import zstandard

from ipfs_store.errors import InvalidLayer, TocMismatch
from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.chunks import decode_stream
from ipfs_store.formats.document import decode_document
from ipfs_store.formats.entries import decode_toc
from ipfs_store.formats.layer import Layer, load_toc
from ipfs_store.formats.limits import MAX_TOC
from ipfs_store.formats.names import ZSTD_SKIPPABLE_MAGIC, Kind

_HEADER = struct.Struct("<4sI8sQB7x")
"""zstd's skippable magic and length; our magic, where files end (bytes of the blob), the format's number."""
_MAGIC = b"IPFSTOC1"
_KINDS: tuple[Kind, ...] = ("estargz", "zstd:chunked", "stargz")
LEVEL = 1
"""More is of no use: digests do not compress. 11,580 entries of a Debian image take 47 bytes each at level 1 (9 ms), 9 (109 ms) and 12 (253 ms)."""


@dataclass(frozen=True, slots=True)
class DetachedToc:
    """A TOC as it stands in its layer, and what else it takes to read the layer by it."""

    kind: Kind
    payload_end: int
    """Blob bytes that can belong to chunks."""
    data: bytes
    """The JSON."""

    @property
    def digest(self) -> str:
        """``sha256:...`` of the JSON."""
        return "sha256:" + hashlib.sha256(self.data).hexdigest()

    def encode(self) -> bytes:
        """The object, the same bytes for the same TOC. CPU work."""
        header = _HEADER.pack(
            ZSTD_SKIPPABLE_MAGIC, _HEADER.size - 8, _MAGIC, self.payload_end, _KINDS.index(self.kind)
        )  # fmt: skip
        return header + zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(self.data)

    def open(self, size: int | None = None) -> Layer:
        """The layer, as `layer.open_layer` would open it; raises InvalidLayer. CPU work.

        ``size``: bytes of the blob, where it will be read. No digest covers where files end, so that it may be a lie; what the TOC then says
        of places behind the blob's end must not be asked of its reader.
        """
        if size is not None and self.payload_end > size:
            raise InvalidLayer(f"the layer's TOC object says its files end at {self.payload_end}, and the blob at {size}")
        toc = decode_toc(decode_document(self.data), kind=self.kind, digest=self.digest, payload_end=self.payload_end)
        return Layer(self.kind, toc, self.payload_end)


async def detach(blob: RangeReader, annotations: Mapping[str, str] | None = None) -> DetachedToc:
    """The TOC of a layer blob; reads and raises as `layer.open_layer` does."""
    location, data = await load_toc(blob, annotations)
    return DetachedToc(location.kind, location.payload_end, data)


def decode_detached(data: bytes, *, expected: str = "") -> DetachedToc:
    """The TOC in an object, verified against its digest ``expected`` (``sha256:...``; empty: not known). CPU work.

    Raises InvalidLayer (not such an object), TocMismatch.
    """
    if len(data) < _HEADER.size:
        raise InvalidLayer(f"an object of {len(data)} bytes is no TOC")
    magic, length, ours, payload_end, number = _HEADER.unpack_from(data)
    if magic != ZSTD_SKIPPABLE_MAGIC or length != _HEADER.size - 8 or ours != _MAGIC or number >= len(_KINDS):
        raise InvalidLayer("this object is no TOC as ipfs-push writes it: it does not begin with its header")
    try:
        size = zstandard.frame_content_size(data[_HEADER.size :])
    except zstandard.ZstdError as error:
        raise InvalidLayer(f"the layer's TOC object is damaged: {error}") from error
    if not 0 < size <= MAX_TOC:
        raise InvalidLayer(f"the layer's TOC object says its TOC has {size} bytes (1 to {MAX_TOC} are allowed)")
    toc = DetachedToc(_KINDS[number], payload_end, bytes(decode_stream("zstd:chunked", data[_HEADER.size :], size)))
    if expected and toc.digest != expected:
        raise TocMismatch(f"the layer's TOC object holds a TOC of digest {toc.digest}, and {expected} was asked for")
    return toc
