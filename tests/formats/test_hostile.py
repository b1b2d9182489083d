"""Blobs and TOCs that nobody should write: each is refused with an error that says what is wrong and where, or costs nothing."""

from __future__ import annotations

import gzip
import json
import struct
from typing import Any

import pytest
import zstandard

from ipfs_store.errors import ChunkMismatch, InvalidLayer, IpfsStoreError, NotSeekable, TocMismatch
from ipfs_store.formats.chunks import decode_stream
from ipfs_store.formats.document import decode_document
from ipfs_store.formats.entries import decode_toc, normalise
from ipfs_store.formats.layer import open_layer, read_file
from ipfs_store.formats.limits import MAX_STREAM, MAX_TOC
from ipfs_store.formats.names import (
    ANNOTATION_ZSTD_CHECKSUM,
    ANNOTATION_ZSTD_POSITION,
    EXTERNAL_TOC_FOOTER,
    Kind,
    estargz_footer,
    stargz_footer,
)
from ipfs_store.formats.toc import Toc
from tests.formats import hostile
from tests.formats.blobs import BytesBlob
from tests.formats.hostile import CONTENT, DIGEST, OTHER, file

KINDS: tuple[Kind, ...] = ("estargz", "zstd:chunked", "stargz")
HUGE = 1 << 70


def chunked(*chunks: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """A file of 30 bytes and its further chunks."""
    return [file(size=30, **fields), *({"name": "file", "type": "chunk", "chunkDigest": DIGEST, **chunk} for chunk in chunks)]


def link(name: str, target: str) -> dict[str, Any]:
    return {"name": name, "type": "hardlink", "linkName": target}


# What the TOC's entries are -> what the error says (and it is always an InvalidLayer).
ENTRIES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a path that leads out": ([file("../../etc/shadow")], r"'\.\./\.\./etc/shadow' in a layer leads out of it"),
    "a path that leads out in its middle": ([file("a/../../b")], "leads out of it"),
    "a path with a NUL": ([file("a\0b")], "leads out of it or is none"),
    "a name of 256 bytes": ([file("n" * 256)], "longer than Linux allows"),
    "a name of 256 bytes in 128 characters": ([file("é" * 128)], "longer than Linux allows"),
    "a path of 4,097 bytes": ([file("/".join(["abcdefg"] * 512 + ["x"]))], "longer than Linux allows"),
    "a name that is half of a character": ([file("\ud800")], "half of a character"),
    "a link's target that leads out": ([file(), link("l", "../x")], r"'\.\./x' in a layer leads out"),
    "a hard link to nothing": ([file(), link("l", "missing")], "'l' is a hard link to 'missing', which the layer does not have"),
    "a hard link to a directory": ([{"name": "d", "type": "dir"}, link("l", "d")], "'l' is a hard link to 'd', which is a directory"),
    "a hard link to itself": ([link("l", "l")], "'l' is a hard link to 'l', which leads back to itself"),
    "hard links in a circle": ([link("a", "b"), link("b", "c"), link("c", "a")], "leads back to itself"),
    "a hard link to the root": ([link("l", "/")], "which is a directory"),
    "a hard link to the TOC": ([link("l", "stargz.index.json")], "which the layer does not have"),
    "a symbolic link to nowhere": ([{"name": "s", "type": "symlink"}], "'s' is a symbolic link to a target that no link can have"),
    "a target of 4,096 bytes": ([{"name": "s", "type": "symlink", "linkName": "x" * 4096}], "a target that no link can have"),
    "a target with a NUL": ([{"name": "s", "type": "symlink", "linkName": "a\0"}], "a target that no link can have"),
    "an entry of no type": ([{"name": "x", "type": "socket"}], "'x' is of type 'socket' in the TOC, which is none"),
    "a root that is a file": ([file("./")], "the root of the layer is a reg"),
    "a file below a file": ([file("a"), file("a/b")], "'a/b' lies below 'a', which is a reg"),
    "a file below a link": ([{"name": "a", "type": "symlink", "linkName": "/etc"}, file("a/b")], "'a/b' lies below 'a', which is a symlink"),
    "a chunk of no file": ([{"name": "x", "type": "chunk"}], "begins with a chunk of 'x', which belongs to no file"),
    "a chunk of a directory": ([{"name": "d", "type": "dir"}, {"name": "d", "type": "chunk"}], "'d' has chunks in the TOC, but is a dir"),
    "a chunk of another file": (chunked({"name": "other", "chunkOffset": 10}, chunkSize=10), "a chunk of 'other' among those of 'file'"),
    "chunks that overlap": (chunked({"chunkOffset": 5}, chunkSize=10), "a chunk at 5 of the file, where one at 10 is due"),
    "chunks with a gap": (chunked({"chunkOffset": 11}, chunkSize=10), "a chunk at 11 of the file, where one at 10 is due"),
    "chunks out of order": (
        chunked({"chunkOffset": 20, "chunkSize": 10}, {"chunkOffset": 10}, chunkSize=10), "a chunk at 20 of the file, where one at 10 is due",
    ),
    "chunks longer than the file": (chunked({"chunkOffset": 10, "chunkSize": 21}, chunkSize=10), "a chunk of 21 bytes at 10 of a file of 30"),
    "chunks shorter than the file": (chunked({"chunkOffset": 10, "chunkSize": 5}, chunkSize=10), "has 30 bytes, and chunks in the TOC for 15"),
    "a chunk of negative size": (chunked({"chunkOffset": 10}, chunkSize=-10), "a chunk of -10 bytes at 0"),
    "a first chunk that is not the first": ([file(chunkOffset=5)], "a chunk at 5 of the file, where one at 0 is due"),
    "a negative size": ([file(size=-1)], "'file' has a size of -1"),
    "a huge size": ([file(size=HUGE)], "'file' has a size of 1180591620717411303424"),
    "a size that the blob cannot hold": ([file(size=1 << 40)], "'file' has a chunk of 1099511627776 bytes at 0 of its stream"),
    "a negative offset": ([file(offset=-1)], "'file': the TOC puts a chunk at -1, outside the blob's contents"),
    "an offset behind the contents": ([file(offset=5000)], "'file': the TOC puts a chunk at 5000, outside the blob's contents of"),
    "an offset in the TOC": ([file(offset=70)], "'file': the TOC puts a chunk at 70, outside the blob's contents of"),
    "a huge offset": ([file(offset=HUGE)], "outside the blob's contents"),
    "a negative inner offset": ([file(innerOffset=-512)], "at -512 of its stream"),
    "a huge inner offset": ([file(innerOffset=HUGE)], f"at {HUGE} of its stream: the limits are"),
    "an end before the beginning": ([file(offset=5, endOffset=4)], "ends at 4"),
    "a landmark outside": ([file(".prefetch.landmark", offset=9999)], "'.prefetch.landmark': the TOC puts a chunk at 9999"),
    "a digest that is too short": ([file(chunkDigest="sha256:00")], "'file' has the digest 'sha256:00' in the TOC, which is no SHA-256"),
    "a digest that is too long": ([file(digest=DIGEST + "0", chunkDigest="")], "which is no SHA-256"),
    "a digest in capitals": ([file(digest="sha256:" + "A" * 64)], "which is no SHA-256"),
    "a digest of another algorithm": ([file(chunkDigest="sha512:" + "0" * 128)], "which is no SHA-256"),
    "a chunk without a digest": (chunked({"chunkOffset": 10, "chunkDigest": ""}, chunkSize=10), "the chunk at 10 has no digest in the TOC"),
    "a negative owner": ([file(uid=-1)], "'file' belongs to -1:0"),
    "a huge owner": ([file(gid=1 << 32)], "'file' belongs to 0:4294967296"),
    "a negative device": ([{"name": "c", "type": "char", "devMajor": -1}], "'c' is the device -1:0"),
    "a huge device": ([{"name": "c", "type": "block", "devMinor": HUGE}], "'c' is the device 0:1180591620717411303424"),
    "a time that is none": ([file(modtime="yesterday")], "'file' has the time 'yesterday' in the TOC, which is none"),
    "a day that is none": ([file(modtime="2026-02-30T00:00:00Z")], "'2026-02-30T00:00:00Z' in the TOC, which is none: day is out of range"),
    "an attribute that is no base64": ([file(xattrs={"user.a": "%%%"})], "'file' has extended attributes in the TOC that are none"),
    "an attribute without a name": ([file(xattrs={"": "eA=="})], "'file' has an extended attribute with a name that none can have"),
    "an attribute with a long name": ([file(xattrs={"user." + "a" * 251: ""})], "a name that none can have"),
    "attributes of a megabyte": ([file(xattrs={"user.a": "A" * (1 << 20)})], "bytes of extended attributes in the TOC, over the limit of"),
    "a hole of exabytes": ([file(size=1 << 61, chunkSize=1 << 61, chunkType="zeros")], "and all holes may have 1099511627776 together"),
    "directories that imply others": ([file("/".join(["d"] * 2000) + f"/{n}") for n in range(1)] + [
        file("/".join([f"{n:03d}"] * 1000) + "/f") for n in range(40)
    ], "implies more directories than a layer can have"),
}  # fmt: skip


def decode(entries: list[dict[str, Any]], kind: Kind = "estargz") -> Toc:
    return decode_toc(decode_document(hostile.toc(entries)), kind=kind, digest=OTHER, payload_end=60)


@pytest.mark.parametrize("case", ENTRIES)
def test_a_toc_is_refused_with_what_is_wrong_and_where(case: str) -> None:
    entries, message = ENTRIES[case]
    for kind in KINDS:
        if kind == "stargz" and "without a digest" in case:
            continue  # it has none
        with pytest.raises(InvalidLayer, match=message) as caught:
            decode(entries, kind)
        assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("odd", "message"), [({"digest": "sha256:" + "A" * 64}, "which is no SHA-256"), ({"name": "a/../../b"}, "leads out of it")]
)
def test_one_that_is_odd_among_many_is_refused(odd: dict[str, Any], message: str) -> None:
    entries = [file(f"f{number}") for number in range(700)]
    assert len(decode(entries).entries) == 701
    entries[400] |= odd
    with pytest.raises(InvalidLayer, match=message):
        decode(entries)


# The TOC's text -> what the error says.
TEXTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no table of contents"),
    "no JSON": (b"\x1f\x8b\x08", "is no"),
    "half of a TOC": (hostile.toc([file()])[:-5], "is no table of contents"),
    "another object": (b"{}", "missing required field `entries`"),
    "a list": (b"[]", "Expected `object`, got `array`"),
    "another version": (hostile.toc([], version=2), "of version 2; only version 1 is known"),
    "a version in words": (hostile.toc([], version="1"), "Expected `int`, got `str`"),
    "entries that are none": (b'{"version":1,"entries":[1,2]}', "Expected `object`, got `int`"),
    "a number of 5,000 digits": (b'{"version":1,"entries":[{"name":"a","type":"reg","size":%s}]}' % (b"9" * 5000), "Integer value out of range"),
    "a number with a fraction": (b'{"version":1,"entries":[{"name":"a","type":"reg","size":1.5}]}', "Expected `int`"),
    "a name that is no UTF-8": (b'{"version":1,"entries":[{"name":"\xff","type":"reg"}]}', "entry 0 of the TOC is none: 'utf-8' codec"),
    "brackets without end": (b'{"version":1,"entries":[{"x":' + b"[" * 100_000, "no JSON that we can read"),
    "brackets without end, and half a character": (b'{"x":"\\ud800","version":' + b"[" * 100_000, "is no table of contents"),
    "two million entries": (b'{"version":1,"entries":[' + b"{}," * 2_000_001 + b"{}]}", "over 1000000 entries, which is the limit"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_toc_is_refused(case: str) -> None:
    text, message = TEXTS[case]
    with pytest.raises(InvalidLayer, match=message):
        list(decode_document(text))


_TOC = hostile.toc([file()])
_PAYLOAD = gzip.compress(CONTENT, mtime=0)
# The blob, its annotations -> the error and what it says.
BLOBS: dict[str, tuple[bytes, dict[str, str], type[IpfsStoreError], str]] = {
    "nothing": (b"", {}, NotSeekable, "layer blob of 0 bytes has no footer"),
    "a plain tar.gz": (_PAYLOAD, {}, NotSeekable, "has no footer of eStargz"),
    "a footer alone": (estargz_footer(0), {}, InvalidLayer, "puts the TOC at 0, behind the end of the blob's contents at 0"),
    "a footer that points at itself": (hostile.estargz(_TOC, footer=estargz_footer(len(hostile.estargz(_TOC)) - 51)), {}, InvalidLayer, "behind the end"),
    "a footer that points outside": (hostile.estargz(_TOC, footer=estargz_footer(1 << 60)), {}, InvalidLayer, "puts the TOC at 1152921504606846976, behind"),
    "a legacy footer that points outside": (hostile.estargz(_TOC, footer=stargz_footer(1 << 60)), {}, InvalidLayer, "the stargz footer puts the TOC"),
    "a footer that points at the contents": (hostile.estargz(_TOC, footer=estargz_footer(0)), {}, InvalidLayer, "where the TOC should be, there is no tar"),
    "a footer that points into a member": (hostile.estargz(_TOC, footer=estargz_footer(7)), {}, InvalidLayer, "a gzip member is damaged"),
    "a footer with other digits": (hostile.estargz(_TOC, footer=estargz_footer(0).replace(b"0" * 16, b"0x" + b"0" * 14)), {}, NotSeekable, "has no footer"),
    "a TOC under another name": (hostile.estargz(_TOC, name="index.json"), {}, InvalidLayer, "the tar has 'index.json' instead of stargz.index.json"),
    "a TOC shorter than its tar says": (hostile.estargz(_TOC, size=99_999), {}, InvalidLayer, "tar entry ends after .* of 99999 bytes"),
    "a TOC cut in its member": (_PAYLOAD + hostile.tar_gz(_TOC)[:60] + estargz_footer(len(_PAYLOAD)), {}, InvalidLayer, "damaged|does not end"),
    "a zstd footer that points outside": (hostile.zstd_chunked(_TOC, position=(1 << 63, 10, 10, 1)), {}, InvalidLayer, "outside the blob"),
    "a zstd footer whose sum overflows": (hostile.zstd_chunked(_TOC, position=((1 << 64) - 1, (1 << 64) - 1, 10, 1)), {}, InvalidLayer, "outside the blob"),
    "a zstd footer before the first frame": (hostile.zstd_chunked(_TOC, position=(3, 10, 10, 1)), {}, InvalidLayer, "outside the blob"),
    "a zstd TOC of another type": (hostile.zstd_chunked(_TOC, position=(30, 10, 10, 2)), {}, InvalidLayer, "of type 2; only type 1 is known"),
    "a zstd TOC that says it is huge": (hostile.zstd_chunked(_TOC, position=(30, 10, MAX_TOC + 1, 1)), {}, InvalidLayer, "over the limit of"),
    "a zstd TOC that says it is longer": (hostile.zstd_chunked(_TOC, position=None, packed=zstandard.compress(_TOC[:-9])), {}, InvalidLayer, "ends after"),
    "a zstd TOC that is none": (hostile.zstd_chunked(_TOC, packed=b"x" * 40), {}, InvalidLayer, "a zstd frame is damaged"),
    "an annotation that is none": (hostile.whole("zstd:chunked"), {ANNOTATION_ZSTD_POSITION: "1:2:3"}, InvalidLayer, "not offset:length:length:type"),
    "an annotation of 20 digits": (hostile.whole("zstd:chunked"), {ANNOTATION_ZSTD_POSITION: "9" * 20 + ":1:1:1"}, InvalidLayer, "not offset:length"),
    "an annotation that points outside": (hostile.whole("zstd:chunked"), {ANNOTATION_ZSTD_POSITION: "99999:9:9:1"}, InvalidLayer, "outside the blob"),
    "a checksum of something else": (hostile.whole("zstd:chunked"), {ANNOTATION_ZSTD_CHECKSUM: OTHER}, TocMismatch, "its layer's annotation says sha256:00"),
}  # fmt: skip


@pytest.mark.parametrize("case", BLOBS)
async def test_a_blob_is_refused_with_what_is_wrong(case: str) -> None:
    blob, annotations, error, message = BLOBS[case]
    with pytest.raises(error, match=message):
        await open_layer(BytesBlob(blob), annotations)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_blob_that_is_cut_anywhere_is_refused(kind: Kind) -> None:
    blob = hostile.whole(kind)
    assert (await open_layer(BytesBlob(blob))).kind == kind
    for length in range(len(blob)):
        with pytest.raises(InvalidLayer):
            await open_layer(BytesBlob(blob[:length]))


@pytest.mark.parametrize("kind", KINDS)
async def test_no_flipped_byte_of_a_blob_is_ever_seen(kind: Kind) -> None:
    blob = hostile.whole(kind)
    digest = (await open_layer(BytesBlob(blob))).toc.digest
    seen = refused = 0
    for at in range(len(blob)):
        damaged = bytearray(blob)
        damaged[at] ^= 0x5A
        reader = BytesBlob(bytes(damaged))
        try:
            layer = await open_layer(reader, toc_digest=digest)
            got = b"".join([piece async for piece in read_file(reader, layer, layer.toc.by_path["file"])])
        except IpfsStoreError as error:
            assert error.message
            refused += 1
        else:
            assert got == CONTENT, at
            seen += 1
    assert refused > 9 * seen, "most bytes matter; a time or a checksum in a header does not"


async def test_no_flipped_byte_of_an_external_toc_is_ever_seen() -> None:
    blob, toc = hostile.external()
    digest = (await open_layer(BytesBlob(blob), external_toc=BytesBlob(toc), toc_digest=decode_digest(toc))).toc.digest
    for at in range(len(toc)):
        damaged = bytearray(toc)
        damaged[at] ^= 0x5A
        try:
            layer = await open_layer(BytesBlob(blob), external_toc=BytesBlob(bytes(damaged)), toc_digest=digest)
        except IpfsStoreError:
            continue
        assert layer.toc.digest == digest


def decode_digest(toc: bytes) -> str:
    import hashlib

    unpacked = gzip.decompress(toc)
    return "sha256:" + hashlib.sha256(unpacked[512 : 512 + int(unpacked[124:135], 8)]).hexdigest()


async def test_absolute_paths_lie_in_the_layer_like_every_other() -> None:
    blob = BytesBlob(hostile.estargz(hostile.toc([file("/etc//./passwd"), file("./a/")])))
    assert sorted((await open_layer(blob)).toc.by_path) == ["", "a", "etc", "etc/passwd"]


async def test_of_several_entries_of_one_path_the_last_counts() -> None:
    blob = BytesBlob(hostile.estargz(hostile.toc([{"name": "x", "type": "dir"}, file("x"), file("./x", mode=0o600)])))
    (entry,) = [entry for entry in (await open_layer(blob)).toc.entries if entry.path]
    assert (entry.type, entry.mode) == ("reg", 0o600)


# The stream's bytes, how much the TOC wants of it -> what the error says.
STREAMS: dict[str, tuple[Kind, bytes, int, str]] = {
    "no gzip": ("estargz", b"x" * 100, 5, "ends after 0 of the 5 bytes"),
    "half a gzip member": ("estargz", _PAYLOAD[:30], 400, "ends after|damaged"),
    "a damaged gzip member": ("estargz", _PAYLOAD[:20] + b"\xff\xff\xff" + _PAYLOAD[23:], 400, "damaged after"),
    "less than the TOC says": ("estargz", _PAYLOAD, len(CONTENT) + 1, f"ends after {len(CONTENT)} of the {len(CONTENT) + 1} bytes"),
    "more than we decompress": ("estargz", _PAYLOAD, MAX_STREAM + 1, "over the limit"),
    "thousands of empty members": ("estargz", estargz_footer(0) * 5000, 1, "has over 1000 gzip members, 0 bytes in all of them"),
    "no zstd": ("zstd:chunked", b"x" * 100, 5, "a zstd frame is damaged"),
    "half a zstd frame": ("zstd:chunked", zstandard.compress(CONTENT)[:20], 400, "ends after"),
    "a zstd frame with a window of 2 GiB": ("zstd:chunked", b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x03\x00\x00abc", 3, "a zstd frame is damaged"),
    "a zstd frame that claims 2^60 bytes": (
        "zstd:chunked", b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + b"\x19\0\0abc", 400, "damaged|ends after",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_is_refused_with_what_is_wrong(case: str) -> None:
    kind, data, needed, message = STREAMS[case]
    with pytest.raises(InvalidLayer, match=message):
        decode_stream(kind, data, needed)


@pytest.mark.parametrize("kind", KINDS)
async def test_contents_that_are_not_what_the_toc_says_are_not_given_to_anyone(kind: Kind) -> None:
    entries = [file(digest=OTHER, chunkDigest=OTHER if kind != "stargz" else "")]
    reader = BytesBlob(hostile.whole(kind, entries))
    layer = await open_layer(reader)
    with pytest.raises(ChunkMismatch, match=r"'file'.*sha256:0000000.* the blob holds"):
        async for _ in read_file(reader, layer, layer.toc.by_path["file"]):
            raise AssertionError("a piece was given")


async def test_a_legacy_file_of_several_chunks_is_verified_as_a_whole() -> None:
    halves = gzip.compress(CONTENT[:200], mtime=0), gzip.compress(CONTENT[200:], mtime=0)
    entries = [
        file(chunkSize=200, chunkDigest="", digest=OTHER),
        {"name": "file", "type": "chunk", "chunkOffset": 200, "offset": len(halves[0])},
    ]
    blob = BytesBlob(hostile.estargz(hostile.toc(entries), b"".join(halves), footer=stargz_footer(sum(map(len, halves)))))
    layer = await open_layer(blob)
    assert layer.kind == "stargz"
    got = []
    with pytest.raises(ChunkMismatch, match="the TOC says sha256:00"):
        async for piece in read_file(blob, layer, layer.toc.by_path["file"]):
            got.append(piece)
    assert got == [CONTENT[:200]], "the last piece must not come before the verdict"


async def test_a_chunk_asks_for_no_more_of_the_blob_than_it_can_need() -> None:
    # One file at the beginning of a blob of a megabyte: without a limit, reading 400 bytes would fetch all of it.
    blob = BytesBlob(hostile.estargz(hostile.toc([file()]), _PAYLOAD + bytes(1 << 20)))
    layer = await open_layer(blob)
    blob.reads.clear()
    assert b"".join([piece async for piece in read_file(blob, layer, layer.toc.by_path["file"])]) == CONTENT
    assert sum(length for _, length in blob.reads) < 70_000


def test_names_are_what_a_tar_tool_makes_of_them() -> None:
    for name, path in (("a", "a"), ("./a/", "a"), ("/a//b/.", "a/b"), (".", ""), ("", ""), ("a/.b", "a/.b"), ("a..b/...", "a..b/...")):
        assert normalise(name) == path


def test_an_external_footer_is_46_bytes_as_specified() -> None:
    assert len(EXTERNAL_TOC_FOOTER) == 46 and gzip.decompress(EXTERNAL_TOC_FOOTER) == b"" and json.loads(_TOC)["version"] == 1
