"""Layers: footers, TOCs, compressed streams, whole blobs, tars, and what is made of them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import zstandard

from ipfs_store.errors import NotSeekable
from ipfs_store.formats.chunks import decode_chunk, decode_stream, verify_chunk
from ipfs_store.formats.detached import decode_detached
from ipfs_store.formats.document import Document, Item, decode_document, encode_document
from ipfs_store.formats.entries import decode_toc, normalise
from ipfs_store.formats.footer import TocLocation, locate_toc
from ipfs_store.formats.layer import read_toc
from ipfs_store.formats.limits import MAX_CHUNK, MAX_NAME, MAX_PATH, MAX_STREAM, MAX_TOC, TAIL
from ipfs_store.formats.names import ANNOTATION_ZSTD_POSITION, EXTERNAL_TOC_FOOTER, Kind, estargz_footer, stargz_footer
from ipfs_store.formats.tarball import TarReader
from ipfs_store.formats.toc import Entry, Toc
from snapshotter.dataplane.build import build_tree
from tests.fuzz.choices import Choices

VECTORS = Path(__file__).parents[1] / "vectors/estargz"
KINDS: tuple[Kind, ...] = ("estargz", "zstd:chunked", "stargz")
_LONGEST = 1 << 20  # bytes that a check decompresses at most: bombs have tests of their own, here they would only cost time


def footer(data: bytes) -> None:
    """The first nine bytes are the blob's size and whether there is an annotation; the end is the blob's."""
    given = Choices(data)
    size, annotated, tail = int.from_bytes(given.take(8), "little"), given.byte() & 1, given.rest()
    size = max(size, len(tail))
    annotations = {ANNOTATION_ZSTD_POSITION: tail.decode("latin-1")} if annotated else {}
    location = locate_toc(tail, size, annotations)
    assert 0 <= location.payload_end <= size
    assert location.external or 0 <= location.offset < location.offset + location.length <= size
    assert location.length <= MAX_TOC and (location.raw_length or 0) <= MAX_TOC


def footer_seeds() -> Iterator[bytes]:
    for size, offset in ((1000, 500), (1000, 5000), (1 << 40, 1 << 39), (0, 0)):
        for end in (estargz_footer(offset), stargz_footer(offset), EXTERNAL_TOC_FOOTER, b"%d:10:10:1" % offset):
            yield size.to_bytes(8, "little") + bytes([end[:1].isdigit()]) + end
    for path in sorted(VECTORS.glob("*.blob")):
        blob = path.read_bytes()
        yield len(blob).to_bytes(8, "little") + b"\0" + blob[-80:]


def toc(data: bytes) -> None:
    """A TOC's JSON, as each kind of layer."""
    document = decode_document(data)
    _same_again(document)
    for kind in KINDS:
        _toc(document, kind)


def toc_seeds() -> Iterator[bytes]:
    for path in sorted(VECTORS.glob("*.blob")):
        found = _toc_json(path.read_bytes())
        if found is None:
            continue
        value = json.loads(found)
        listed = value["entries"]
        yield json.dumps({"version": 1, "entries": listed[:12]}, separators=(",", ":")).encode()
        yield json.dumps({"version": 1, "entries": listed[-12:]}, separators=(",", ":")).encode()
    digest = "sha256:" + "0" * 64
    hole = {"chunkType": "zeros", "chunkDigest": digest}
    yield json.dumps({"version": 1, "entries": [
        {"name": "a/b", "type": "reg", "size": 30, "offset": 5, "endOffset": 90, "digest": digest, "chunkSize": 10, "chunkDigest": digest},
        {"name": "a/b", "type": "chunk", "offset": 20, "chunkOffset": 10, "chunkSize": 15, **hole},
        {"name": "a/b", "type": "chunk", "offset": 30, "chunkOffset": 25, "innerOffset": 512, "chunkDigest": digest},
        {"name": "l", "type": "hardlink", "linkName": "a/b", "modtime": "2026-01-01T00:00:00.5+02:00"},
        {"name": "\udc80", "type": "symlink", "linkName": "x", "xattrs": {"user.a": "eA=="}},
        {"name": "d", "type": "char", "devMajor": 1, "devMinor": 3, "uid": 4000000000, "mode": 438},
    ]}).encode()  # fmt: skip


def toc_entries(data: bytes) -> None:
    """A TOC made of the bytes, so that most of what is tried has the form of one."""
    items = list(_items(Choices(data)))
    try:
        document = decode_document(encode_document(items))
    except UnicodeEncodeError:
        return
    assert len(document) == len(items)
    for kind in KINDS:
        _toc(document, kind)


def toc_entries_seeds() -> Iterator[bytes]:
    yield bytes(range(256))
    yield bytes(400)
    yield bytes((7 * number + number // 3) % 256 for number in range(900))


def _items(given: Choices) -> Iterator[Item]:
    kinds = ("reg", "dir", "symlink", "hardlink", "char", "block", "fifo", "chunk", "what")
    while given:
        flags = given.byte()
        size = given.number() if flags & 1 else given.byte() * 100
        yield Item(
            name=given.name(),
            type=given.one(kinds),
            size=size,
            mod_time=given.one(("", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "x")) if flags & 2 else "",
            link_name=given.name() if flags & 4 else "",
            mode=given.number() if flags & 8 else 0o644,
            uid=given.number() if flags & 16 else 0,
            offset=given.number() if flags & 32 else given.byte(),
            end_offset=given.number() if flags & 64 else 0,
            inner_offset=given.number() if flags & 128 else 0,
            dev_major=given.byte(),
            xattrs={given.name(): given.take(given.byte() % 9)} if flags & 65 == 65 else None,
            digest=given.one(("sha256:" + "0" * 64, "", "sha256:0", "sha512:" + "0" * 128)),
            chunk_offset=given.number() if flags & 3 == 3 else given.byte() * 50,
            chunk_size=given.byte() * 50,
            chunk_digest=given.one(("sha256:" + "1" * 64, "", "md5:1")),
            chunk_type=given.one(("", "zeros", "x")),
        )


def _same_again(document: Document) -> None:
    try:
        items = [_plain(item) for item in document]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # attributes that are none are found out when the entry is looked at
    again = decode_document(encode_document(items))
    assert [_plain(item) for item in again] == items


def _plain(item: Item) -> Item:
    raw = item.xattrs
    xattrs = msgspec.json.decode(bytes(raw), type=dict[str, bytes] | None) if isinstance(raw, msgspec.Raw) and len(raw) else None
    return Item(**{**{name: getattr(item, name) for name in Item.__struct_fields__}, "xattrs": xattrs})


def _toc(document: Document, kind: Kind) -> Toc:
    payload_end = 1 << 30
    found = decode_toc(document, kind=kind, digest="sha256:" + "0" * 64, payload_end=payload_end)
    check_toc(found, payload_end, kind)
    tree = build_tree(found)
    assert tree.nodes <= len(found.entries) and len(tree.digests) == 32 * len(tree.chunk_size)
    return found


def check_toc(found: Toc, payload_end: int, kind: Kind) -> None:
    """What every user of a TOC relies on."""
    seen: dict[str, Entry] = {}
    ends: dict[int, int] = {}
    assert found.entries[0].path == "" and 0 <= found.prefetch_end <= payload_end
    for entry in found.entries:
        assert entry.path not in seen, "a path that is there twice"
        if entry.path:
            assert seen[entry.path.rpartition("/")[0]].type == "dir", "a parent that is none"
        assert normalise(entry.path) == entry.path and len(entry.path.encode("utf-8", "surrogateescape")) <= MAX_PATH
        assert all(
            0 < len(part.encode("utf-8", "surrogateescape")) <= MAX_NAME and part not in (".", "..")
            for part in entry.path.split("/")
            if entry.path
        )
        seen[entry.path] = entry
        at = 0
        for chunk in entry.chunks:
            assert chunk.file_offset == at and 0 < chunk.size <= MAX_CHUNK and 0 <= chunk.inner_offset + chunk.size <= MAX_STREAM
            assert 0 <= chunk.offset <= chunk.end <= payload_end
            assert kind == "stargz" or chunk.digest or chunk.end == chunk.offset
            at += chunk.size
            if (
                not chunk.is_hole and len(entry.chunks) > 1
            ):  # (a single one may have an end of its own: zstd:chunked says where its frame ends)
                assert ends.setdefault(chunk.offset, chunk.end) == chunk.end, "chunks of one stream with different ends"
        assert at == (entry.size if entry.type == "reg" else 0)
        if entry.size:
            middle = entry.size // 2
            (chunk,) = entry.chunks_of(middle, 1)
            assert chunk.file_offset <= middle < chunk.file_offset + chunk.size
    for entry in found.entries:
        if entry.type == "hardlink":
            assert seen[entry.link].type not in ("dir", "hardlink"), "a link to nothing"


def gzip_stream(data: bytes) -> None:
    """The first three bytes say how much is needed; the rest is the stream. zlib must agree."""
    given = Choices(data)
    needed, stream = min(int.from_bytes(given.take(3), "little"), _LONGEST), given.rest()
    out = decode_stream("estargz", stream, needed)
    assert len(out) == (needed if stream else 0)
    assert _zlib(stream, len(out)) in (out, None), "zlib sees something else"


def gzip_seeds() -> Iterator[bytes]:
    texts = (b"", b"x", b"abc" * 500, bytes(5000), bytes(range(256)) * 9)
    for text in texts:
        for level in (0, 1, 9):
            yield len(text).to_bytes(3, "little") + gzip.compress(text, level, mtime=0)
    yield (6).to_bytes(3, "little") + b"".join(gzip.compress(bytes([i]), mtime=0) for i in range(6)) + bytes(100)
    yield (3).to_bytes(3, "little") + estargz_footer(5) * 3 + gzip.compress(b"abc", mtime=0)


def _zlib(stream: bytes, needed: int) -> bytes | None:
    out = b""
    while len(out) < needed:
        decoder = zlib.decompressobj(31)
        try:
            out += decoder.decompress(stream, needed - len(out))
        except zlib.error:
            return None  # it also looks at reserved bits, which say nothing of the contents
        stream = decoder.unused_data
    return out


def zstd_stream(data: bytes) -> None:
    """As `gzip_stream`."""
    given = Choices(data)
    needed, stream = min(int.from_bytes(given.take(3), "little"), _LONGEST), given.rest()
    out = decode_stream("zstd:chunked", stream, needed)
    assert len(out) == (needed if stream else 0)
    if stream:
        assert decode_stream("zstd:chunked", stream, needed // 2) == out[: needed // 2]


def zstd_seeds() -> Iterator[bytes]:
    for text in (b"", b"x", b"abc" * 500, bytes(5000), bytes(range(256)) * 9):
        for level, checksum, size in ((1, False, True), (3, True, False), (19, True, True)):
            packed = zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=size).compress(text)
            yield len(text).to_bytes(3, "little") + packed
            yield len(text).to_bytes(3, "little") + b"\x50\x2a\x4d\x18\x03\0\0\0abc" + packed * 2


def blob(data: bytes) -> None:
    """A whole lazily readable blob: found, decoded, each chunk read."""
    location = locate_toc(data[-TAIL:], len(data), {})
    if location.external:
        return
    found = decode_toc(
        decode_document(_read_toc(data, location)), kind=location.kind, digest="sha256:" + "0" * 64, payload_end=location.payload_end
    )
    check_toc(found, location.payload_end, location.kind)
    for entry in found.entries:
        for chunk in entry.chunks:
            if chunk.inner_offset + chunk.size <= _LONGEST:
                piece = decode_chunk(location.kind, data[chunk.offset : chunk.end], chunk)
                verify_chunk(entry.path, chunk, piece)


def blob_seeds() -> Iterator[bytes]:
    digest = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
    listed = [{"name": "f", "type": "reg", "size": 1, "digest": digest, "chunkDigest": digest}]
    toc_json = json.dumps({"version": 1, "entries": listed}).encode()
    member = gzip.compress(b"x", mtime=0)
    yield member + _tar_gz(toc_json) + estargz_footer(len(member))
    yield member + _tar_gz(toc_json) + stargz_footer(len(member))
    frame = zstandard.compress(b"x")
    packed = zstandard.compress(toc_json)
    for extra in (b"", bytes(24)):
        end = (len(frame) + 8).to_bytes(8, "little") + len(packed).to_bytes(8, "little") + len(toc_json).to_bytes(8, "little")
        end += (1).to_bytes(8, "little") + extra + b"GNUlInUx"
        yield frame + _skippable(packed) + _skippable(end)


def _skippable(data: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def _tar_gz(toc_json: bytes) -> bytes:
    info = tarfile.TarInfo("stargz.index.json")
    info.size = len(toc_json)
    return gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + toc_json + bytes(-len(toc_json) % 512 + 1024), mtime=0)


def _read_toc(data: bytes, location: TocLocation) -> bytes:
    return read_toc(location, data[location.offset : location.offset + location.length])


def _toc_json(data: bytes) -> bytes | None:
    try:
        location = locate_toc(data[-TAIL:], len(data), {})
    except NotSeekable:
        return None
    return None if location.external else _read_toc(data, location)


def detached(data: bytes) -> None:
    """A TOC object; what decodes encodes to an object of the same TOC."""
    found = decode_detached(data)
    assert decode_detached(found.encode()) == found
    found.open()


def detached_seeds() -> Iterator[bytes]:
    for kind in range(4):
        packed = zstandard.compress(next(toc_seeds()))
        yield b"\x50\x2a\x4d\x18\x18\0\0\0IPFSTOC1" + (1 << 30).to_bytes(8, "little") + bytes([kind]) + bytes(7) + packed


def tar(data: bytes) -> None:
    """A layer's tar, uncompressed. Every byte of every file lies in the tar."""
    reader = TarReader(io.BytesIO(data))
    while (header := reader.next()) is not None:
        path = normalise(header.name)
        assert normalise(path) == path
        size = 0
        while size < _LONGEST and (piece := reader.read(_LONGEST)):
            size += len(piece)
        assert size == header.size or size >= _LONGEST
        assert header.type == "reg" or not header.size
        assert len(header.raw) % 512 == 0 and 0 <= header.mtime_ns < 10**9


def tar_seeds() -> Iterator[bytes]:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name, kind, link in (
                ("d", tarfile.DIRTYPE, ""), ("d/f", tarfile.REGTYPE, ""), ("d/" + "n" * 90 + "/" + "m" * 90, tarfile.REGTYPE, ""),
                ("l", tarfile.LNKTYPE, "d/f"), ("s", tarfile.SYMTYPE, "x"), ("c", tarfile.CHRTYPE, ""), ("p", tarfile.FIFOTYPE, ""),
            ):  # fmt: skip
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.mtime = kind, link, 1_600_000_000
                content = b"contents" if kind == tarfile.REGTYPE else b""
                info.size = len(content)
                if form == tarfile.PAX_FORMAT and content:
                    info.pax_headers = {"SCHILY.xattr.user.a": "v", "mtime": "1600000000.5"}
                archive.addfile(info, io.BytesIO(content))
        yield out.getvalue().rstrip(b"\0") + bytes(1024)
    yield bytes(1024)
    for major, minor, pax in ((0, 1, {"GNU.sparse.map": "0,1,3,1", "GNU.sparse.size": "9"}), (1, 0, {"GNU.sparse.realsize": "9"})):
        info = tarfile.TarInfo("sparse")
        info.size = 1024
        info.pax_headers = {"GNU.sparse.major": str(major), "GNU.sparse.minor": str(minor), **pax}
        yield info.tobuf(tarfile.PAX_FORMAT) + b"2\n0\n1\n3\n1\n" + bytes(1014 + 1024)
