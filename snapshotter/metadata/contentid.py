"""The name under which a file's data is kept and shared: a hash of everything that decides which bytes a reader gets.

Not the file's digest alone: a TOC may claim a digest that another image uses, with chunks of its own or with a smaller size, and whoever
shared by digest would then give that image wrong or cut bytes. A content id is the SHA-256 of, one after the other,

- the scope: 32 bytes that differ for every machine, so that nobody can look for two contents whose ids begin alike (inode numbers are 62
  bits of the id), and for every namespace where the configuration has a cache for each;
- the size of the file, 8 bytes, little endian;
- its digest, 32 bytes, zeros where the TOC has none;
- for each chunk its size, 8 bytes, and its digest, 32 bytes; a hole has HOLE for a digest, which no chunk can have.

A file with a chunk that has no digest is never shared: its id is a hash of the scope, the layer and the path.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import NewType

from ipfs_store.formats.toc import Chunk, Entry

ContentId = NewType("ContentId", bytes)
"""32 bytes."""
Scope = NewType("Scope", bytes)
"""32 bytes: who shares contents with whom."""

HOLE = b"a hole: as many zeros as it says"
_SIZE = struct.Struct("<Q")
_NONE = bytes(32)
_ONE_CHUNK = struct.Struct("<32sQ32sQ32s")


def make_scope(salt: bytes, namespace: str) -> Scope:
    """The scope of ``namespace`` (empty: of the machine) where ``salt`` is the machine's own secret."""
    return Scope(hashlib.sha256(b"scope\0" + len(salt).to_bytes(8, "little") + salt + namespace.encode()).digest())


def content_id(scope: Scope, layer: str, entry: Entry) -> ContentId:
    """The content id of a regular file; ``layer`` (the TOC's digest or the blob's CID) counts where the TOC lacks digests."""
    chunks = entry.chunks
    if len(chunks) == 1 and chunks[0].digest:  # nearly all: 2 µs
        digest = bytes.fromhex(chunks[0].digest[7:])
        file = digest if entry.digest == chunks[0].digest else bytes.fromhex(entry.digest[7:]) if entry.digest else _NONE
        return ContentId(hashlib.sha256(_ONE_CHUNK.pack(scope, entry.size, file, chunks[0].size, digest)).digest())
    if not all(chunk.digest or is_hole(chunk) for chunk in chunks):
        path = entry.path.encode("utf-8", "surrogatepass")
        return ContentId(hashlib.sha256(b"unshared\0" + scope + hashlib.sha256(layer.encode()).digest() + path).digest())
    return ContentId(hashlib.sha256(b"".join(_parts(scope, entry, chunks))).digest())


def is_hole(chunk: Chunk) -> bool:
    """Whether the chunk is zeros that the blob does not hold (zstd:chunked)."""
    return not chunk.digest and chunk.offset == chunk.end == 0


def content_path(content: ContentId) -> str:
    """``aa/<64 digits>``: where a content is, relative to a data layer."""
    name = content.hex()
    return f"{name[:2]}/{name}"


def redirects(contents: Iterable[ContentId]) -> list[bytes]:
    """What files with these contents are given as ``trusted.overlay.redirect``: `content_path` from the root of a data layer."""
    return [b"/%b/%b" % (name[:2], name) for name in (content.hex().encode() for content in contents)]


REDIRECT_SIZE = len(redirects([ContentId(bytes(32))])[0])
"""Bytes of each."""


def _parts(scope: Scope, entry: Entry, chunks: Iterable[Chunk]) -> Iterable[bytes]:
    yield scope
    yield _SIZE.pack(entry.size)
    yield bytes.fromhex(entry.digest[7:]) if entry.digest else _NONE
    for chunk in chunks:
        yield _SIZE.pack(chunk.size)
        yield bytes.fromhex(chunk.digest[7:]) if chunk.digest else HOLE
