"""The contents that a layer's regular files have, from its table of contents."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.toc import Chunk, Entry
from snapshotter.metadata.contentid import HOLE, ContentId, Scope, content_id, is_hole
from snapshotter.metadata.index import NO_DIGEST, Contents
from snapshotter.metadata.shown import Shown

# A stream is decompressed whole, in memory; usual ones hold 256 KiB to 4 MiB. Beyond this a layer is better pulled in the ordinary way.
MAX_STREAM = 128 << 20


def content_ids(entries: Iterable[Entry], *, scope: Scope, layer: str) -> tuple[list[ContentId], dict[ContentId, Entry]]:
    """The content of every regular file that is shown and not empty, in their order; and an entry that has it, for each content.

    ``layer``: what names the layer where files cannot be named by their digests (see `content_id`).
    """
    files = [entry for entry, _, _ in Shown().walk(entries) if entry.type == "reg" and entry.size]
    ids = [content_id(scope, layer, entry) for entry in files]
    first: dict[ContentId, Entry] = {}
    for content, entry in zip(ids, files, strict=True):
        first.setdefault(content, entry)
    return ids, first


def gather(first: Mapping[ContentId, Entry]) -> Contents:
    """What each content is made of. Raises InvalidLayer."""
    entries = first.values()
    for entry in entries:
        if len(entry.chunks) == 1:  # nearly all: in one expression
            chunk = entry.chunks[0]
            if (
                chunk.digest
                and not chunk.file_offset
                and chunk.size == entry.size
                and 0 <= chunk.offset < chunk.end <= chunk.offset + MAX_STREAM
                and 0 <= chunk.inner_offset <= MAX_STREAM - chunk.size
            ):
                continue
        _check_chunks(entry)
    chunks = [chunk for entry in entries for chunk in entry.chunks]
    try:
        return Contents(
            ids=list(first),
            paths=[entry.path.encode("utf-8", "surrogateescape") for entry in entries],
            size=array("Q", [entry.size for entry in entries]),
            count=array("I", [len(entry.chunks) for entry in entries]),
            digests=bytes.fromhex("".join([chunk.digest[7:] or _instead_of_digest(chunk) for chunk in chunks])),
            chunk_file_offset=array("Q", [chunk.file_offset for chunk in chunks]),
            chunk_size=array("I", [chunk.size for chunk in chunks]),
            stream_offset=array("Q", [chunk.offset for chunk in chunks]),
            stream_length=array("I", [chunk.end - chunk.offset for chunk in chunks]),
            chunk_inner=array("I", [chunk.inner_offset for chunk in chunks]),
        )
    except (OverflowError, UnicodeEncodeError) as error:
        raise InvalidLayer(f"a file has a value in the TOC that none can have: {error}") from error


def _check_chunks(entry: Entry) -> None:
    at = 0
    for chunk in entry.chunks:
        if chunk.file_offset != at or chunk.size <= 0:
            raise InvalidLayer(f"{entry.path!r} has a gap in its chunks at {at}")
        if not is_hole(chunk):
            check_place(entry, chunk)
        at += chunk.size
    if at != entry.size:
        raise InvalidLayer(f"{entry.path!r} has {entry.size} bytes, and chunks for {at}")


def _instead_of_digest(chunk: Chunk) -> str:
    return (HOLE if is_hole(chunk) else NO_DIGEST).hex()


def check_place(entry: Entry, chunk: Chunk) -> None:
    """Raises InvalidLayer for a chunk, no hole, that no blob can have, or whose stream is too large."""
    if not (0 <= chunk.offset < chunk.end and chunk.inner_offset >= 0):
        raise InvalidLayer(f"{entry.path!r} has a chunk at {chunk.offset} to {chunk.end} of the blob, which is nowhere")
    if chunk.end - chunk.offset > MAX_STREAM or chunk.inner_offset + chunk.size > MAX_STREAM:
        raise InvalidLayer(
            f"{entry.path!r} lies in a compressed stream of more than {MAX_STREAM >> 20} MiB, which is too large to be read lazily",
            hint="convert the image with smaller chunks (ipfs-push does)",
        )
