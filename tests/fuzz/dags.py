"""DAGs: CIDs, dag-pb, UnixFS, DAG-CBOR, CARs, image roots."""

from __future__ import annotations

from collections.abc import Iterator

from ipfs_store.cids import DAG_CBOR, DAG_PB, RAW, cid_of, format_cid, parse_cid, validate_cid
from ipfs_store.cids.cid import codec_of, format_cid_v0, identity_block, verify_block
from ipfs_store.dag import dagcbor, dagpb
from ipfs_store.dag.car import MAX_FRAME, CarReader, car_frame, car_header
from ipfs_store.dag.links import links_of
from ipfs_store.dag.unixfs import decode_file_node, encode_file_node
from ipfs_store.errors import BlockMismatch, IpfsStoreError
from ipfs_store.images.root import ImageRoot, RootBlob, RootLayer, RootManifest, RootProfile, RootReferrer, RootToc, decode_root
from ipfs_store.oci import Digest
from ipfs_store.oci.descriptor import Platform
from tests.fuzz.choices import Choices

_LEAF = cid_of(RAW, b"leaf")


def cid(data: bytes) -> None:
    """A CID's bytes: what is one prints and parses back."""
    found = validate_cid(data)
    assert parse_cid(format_cid(found)) == found and codec_of(found) >= 0
    inside = identity_block(found)
    if inside is not None:
        verify_block(found, inside)
    else:
        try:
            verify_block(found, data)
        except BlockMismatch:
            return
        raise AssertionError("a block that holds its own CID")


def cid_seeds() -> Iterator[bytes]:
    yield from (cid_of(codec, b"block") for codec in (RAW, DAG_PB, DAG_CBOR))
    yield cid_of(DAG_PB, b"v0")[2:]
    yield b"\x01\x55\x00\x05hello"
    yield b"\x01\x55\x13\x40" + bytes(64)
    yield b"\x01\x55\xa0\xe4\x02\x20" + bytes(32)


def cid_text(data: bytes) -> None:
    """A CID as people write it."""
    found = parse_cid(data.decode("utf-8", "replace"))
    assert parse_cid(format_cid(found)) == found


def cid_text_seeds() -> Iterator[bytes]:
    for prefix in ("", "ipfs://", "/ipfs/"):
        yield (prefix + format_cid(_LEAF)).encode()
    yield format_cid_v0(cid_of(DAG_PB, b"v0")).encode()
    yield b"f0155122000" + b"00" * 31
    yield b"zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA"


def dag_pb(data: bytes) -> None:
    """A dag-pb node and what UnixFS makes of it; what decodes is the same after encoding."""
    node = dagpb.decode_node(data)
    assert len(links_of(cid_of(DAG_PB, data), data)) == len(node.links)
    try:
        encoded = dagpb.encode_node(node.links, node.data)
    except UnicodeEncodeError:
        encoded = None  # a name that is no UTF-8 is read, and written by nobody
    if encoded is not None:
        assert dagpb.decode_node(encoded) == node
    file = decode_file_node(cid_of(DAG_PB, data), data)
    assert file.size == len(file.data) + sum(child.size for child in file.children) and file.size >= 0


def dag_pb_seeds() -> Iterator[bytes]:
    yield encode_file_node([(_LEAF, 4, 4), (_LEAF, 1 << 40, 1 << 41)])
    yield dagpb.encode_node([], b"\x08\x02\x12\x05hello\x18\x05")
    yield dagpb.encode_node([dagpb.Link(_LEAF, "name", 7)], b"\x08\x01")
    yield dagpb.encode_node([dagpb.Link(_LEAF, "", 4)], b"\x08\x02\x18\x04\x22\x01\x04")
    yield b""


def dag_cbor(data: bytes) -> None:
    """One value, one encoding."""
    value = dagcbor.decode(data)
    assert dagcbor.encode(value) == data
    assert list(dagcbor.links(value)) == links_of(cid_of(DAG_CBOR, data), data)


def dag_cbor_seeds() -> Iterator[bytes]:
    for value in (None, True, 0, -1, (1 << 64) - 1, -(1 << 64), "text", b"bytes", [], {}, [1, [2, [3]]], {"a": 1, "bb": {"c": None}}):
        yield dagcbor.encode(value)
    yield dagcbor.encode({"links": [dagcbor.CidLink(_LEAF)] * 2})
    yield b"\xfb\x3f\xf0\0\0\0\0\0\0"
    yield b"\x9f\x01\xff"
    yield b"\xd8\x2a\x43\0\x01\x55"


def car(data: bytes) -> None:
    """A CAR in pieces gives what it gives at once, and writes back to the same bytes."""
    given = Choices(data)
    step, stream = given.byte() + 1, given.rest()
    whole = _read(stream, len(stream) or 1)
    assert _read(stream, step) == whole
    roots, blocks, error = whole
    assert all(len(block) <= MAX_FRAME for _, block in blocks)
    if error:
        return
    again = car_header(roots or []) + b"".join(car_frame(key, block) for key, block in blocks)
    assert _read(again, 1000) == whole


def _read(stream: bytes, step: int) -> tuple[list[bytes] | None, list[tuple[bytes, bytes]], str]:
    reader = CarReader()
    blocks: list[tuple[bytes, bytes]] = []
    try:
        for at in range(0, len(stream), step):
            blocks += reader.feed(stream[at : at + step])
        reader.close()
    except IpfsStoreError as error:
        return reader.roots and list(reader.roots), [], type(error).__name__  # blocks before the error depend on the pieces
    return reader.roots and list(reader.roots), blocks, ""


def car_seeds() -> Iterator[bytes]:
    frames = b"".join(car_frame(cid_of(codec, block), block) for codec, block in ((RAW, b"leaf"), (DAG_PB, b""), (DAG_CBOR, b"\xa0")))
    for step in (0, 1, 30, 255):
        yield bytes([step]) + car_header([_LEAF]) + frames
    yield b"\7" + car_header([])
    yield b"\7" + car_header([_LEAF]) + b"\xff\xff\xff\xff\x0f"


def root(data: bytes) -> None:
    """An image root; what decodes encodes to a root that says the same."""
    found = decode_root(data)
    assert decode_root(found.encode().data) == found


def root_seeds() -> Iterator[bytes]:
    def blob(kind: str, number: int) -> RootBlob:
        return RootBlob(f"application/vnd.oci.image.{kind}.v1+json", Digest.of(bytes([number])), 4 + number, cid_of(RAW, bytes([number])))

    layers = tuple(
        RootLayer(blob("layer", number), Digest.of(b"d"), RootToc(Digest.of(b"t"), 5, 9, cid_of(RAW, bytes([40 + number]))))
        for number in (1, 2)
    )
    manifest = RootManifest(
        blob("manifest", 3), blob("config", 4), layers, Platform("linux", "arm64", "v8"), (RootProfile("start", 7, _LEAF),)
    )
    yield ImageRoot("n", (manifest,)).encode().data
    referrer = RootReferrer(manifest.blob.digest, blob("manifest", 5), "x/y", (blob("config", 6),))
    yield ImageRoot("", (manifest,), (blob("index", 7),), (referrer,)).encode().data
