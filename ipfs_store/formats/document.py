"""The TOC's JSON document, as all formats write it, to and from bytes (estargz, "TOC and TOCEntries")."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import cast

import msgspec

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.limits import MAX_CHUNK, MAX_ENTRIES, MAX_SURROGATES_TOC
from ipfs_store.formats.names import TOC_VERSION


class Item(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, rename={
    "mod_time": "modtime", "link_name": "linkName", "user_name": "userName", "group_name": "groupName", "end_offset": "endOffset",
    "inner_offset": "innerOffset", "dev_major": "devMajor", "dev_minor": "devMinor", "chunk_offset": "chunkOffset", "chunk_size": "chunkSize",
    "chunk_digest": "chunkDigest", "chunk_type": "chunkType", "access_time": "accesstime", "change_time": "changetime",
}):  # fmt: skip
    """A TOCEntry as it stands; what its fields mean is said in the specification and checked by `entries.decode_toc`."""

    name: str
    type: str
    size: int = 0
    mod_time: str = ""
    link_name: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    user_name: str = ""
    group_name: str = ""
    offset: int = 0
    end_offset: int = 0
    """zstd:chunked of containers/storage: where the frame ends."""
    inner_offset: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: dict[str, bytes] | None = None
    """Base64 in the JSON."""
    digest: str = ""
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""
    chunk_type: str = ""
    """zstd:chunked of containers/storage: ``zeros`` for a hole."""
    access_time: str = ""
    """zstd:chunked of containers/storage, like the next."""
    change_time: str = ""


class _ReadItem(Item, frozen=True, gc=False):
    # Left undecoded: a TOC of 256 MiB has room for 25 million attributes, 4 GB of them. `xattrs.Xattrs` decodes within limits.
    xattrs: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]


class _Outline(msgspec.Struct):
    version: int
    entries: list[msgspec.Raw]


class _Place(msgspec.Struct, gc=False, rename="camel"):
    offset: int = 0
    size: int = 0
    inner_offset: int = 0
    chunk_offset: int = 0
    chunk_size: int = 0


class _Places(msgspec.Struct):
    entries: list[_Place]


class _Whole(msgspec.Struct):
    version: int
    entries: list[Item]


_outline = msgspec.json.Decoder(_Outline)
_places = msgspec.json.Decoder(_Places)
_item = msgspec.json.Decoder(_ReadItem)
_items = msgspec.json.Decoder(list[_ReadItem])
_NONE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_BATCH = 256
_BATCH_BYTES = 1 << 20
_encoder = msgspec.json.Encoder()


class Document:
    """A TOC whose entries are decoded some at a time: all at once, they would leave twice the memory behind that the result takes."""

    def __init__(self, entries: Sequence[msgspec.Raw | Item], places: Iterable[_Place | Item]) -> None:
        self._entries = entries
        self.streams: dict[int, int] = {}
        """Where in the blob compressed streams begin, ascending, each once; and how much the chunks in them need of it, uncompressed bytes."""
        found: dict[int, int] = {0: 0}
        for place in places:
            # The last chunk of several says no size; it has at most as much as a chunk may have.
            needed = place.inner_offset + (place.chunk_size or (MAX_CHUNK if place.chunk_offset else place.size))
            if found.setdefault(place.offset, 0) < needed:
                found[place.offset] = needed
        for offset in sorted(found):
            if offset >= 0:
                self.streams[offset] = found[offset]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        """Raises InvalidLayer for an entry that is none."""
        return chain.from_iterable(self.batches())

    def batches(self) -> Iterator[Sequence[Item]]:
        """The entries, some at a time: half the cost of one at a time. Raises InvalidLayer for one that is none."""
        for first in range(0, len(self._entries), _BATCH):
            batch = self._entries[first : first + _BATCH]
            if isinstance(batch[0], Item):
                yield cast("Sequence[Item]", batch)
                continue
            raws = cast("Sequence[msgspec.Raw]", batch)
            if sum(map(len, raws)) <= _BATCH_BYTES:  # it is copied
                try:
                    items = _items.decode(b"[%b]" % b",".join(raws))
                except _NONE:
                    pass  # one at a time will tell which
                else:
                    yield items
                    continue
            for number, raw in enumerate(raws, first):
                try:
                    item = _item.decode(raw)
                except _NONE as error:
                    raise InvalidLayer(f"entry {number} of the TOC is none: {error}") from error
                yield (item,)


def decode_document(data: bytes) -> Document:
    """Raises InvalidLayer for what is no TOC of a version that we know, or has more than MAX_ENTRIES entries."""
    # Before anything is made of it: `{},` is an entry of three bytes and 60 in memory.
    if data.count(b"{") > 2 * MAX_ENTRIES + 1:
        raise InvalidLayer(f"the TOC of {len(data)} bytes has over {MAX_ENTRIES} entries, which is the limit")
    entries: Sequence[msgspec.Raw | Item]
    try:
        # In this order: what is no object is not made an entry, however many there are.
        places: Sequence[_Place | Item] = _places.decode(data).entries
        outline = _outline.decode(data)
        version, entries = outline.version, outline.entries
    except msgspec.DecodeError as error:
        whole = _with_surrogates(data, error)
        version, entries, places = whole.version, whole.entries, whole.entries
    except (RecursionError, UnicodeDecodeError) as error:
        raise InvalidLayer(f"the TOC is no JSON that we can read: {error}") from error
    if version != TOC_VERSION:
        raise InvalidLayer(f"the TOC is of version {version}; only version {TOC_VERSION} is known")
    if len(entries) > MAX_ENTRIES:
        raise InvalidLayer(f"the TOC has {len(entries)} entries, over the limit of {MAX_ENTRIES}")
    return Document(entries, places)


def encode_item(item: Item) -> bytes:
    """The JSON of one entry, the same bytes for the same entry. A name that is no UTF-8 keeps its bytes as lone surrogates (``\\udc80``):
    other readers see U+FFFD there, as they would have written themselves, and ours sees the name."""
    try:
        return _encoder.encode(item)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(item), separators=(",", ":")).encode()


def join_document(items: Sequence[bytes], tar_split_digest: str = "") -> bytes:
    """The JSON of a TOC with these entries. ``tar_split_digest``: of the compressed tar-split (containers/storage), where there is one."""
    end = b'],"tarSplitDigest":"%b"}' % tar_split_digest.encode() if tar_split_digest else b"]}"
    return b'{"version":%d,"entries":[' % TOC_VERSION + b",".join(items) + end


def encode_document(items: Sequence[Item]) -> bytes:
    """The JSON of a TOC with these entries."""
    return join_document([encode_item(item) for item in items])


def _with_surrogates(data: bytes, first: msgspec.DecodeError) -> _Whole:
    # msgspec refuses lone surrogates, and json, which does not, is eight times slower: only for documents that have some.
    if b"\\ud" not in data and b"\\uD" not in data:
        raise InvalidLayer(f"the TOC is no table of contents: {first}") from first
    if len(data) > MAX_SURROGATES_TOC:
        raise InvalidLayer(f"the TOC has {len(data)} bytes and names that are no UTF-8: at most {MAX_SURROGATES_TOC} are read") from first
    try:
        return msgspec.convert(json.loads(data), _Whole)
    except (ValueError, RecursionError) as error:
        raise InvalidLayer(f"the TOC is no table of contents: {error}") from error
