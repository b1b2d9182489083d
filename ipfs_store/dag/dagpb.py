"""dag-pb nodes: links and data in a protobuf (ipld.io/specs/codecs/dag-pb)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipfs_store.cids import DAG_PB, RAW, Cid, validate_cid
from ipfs_store.dag import varint
from ipfs_store.errors import InvalidCid, InvalidDag


@dataclass(frozen=True, slots=True)
class Link:
    """A PBLink: ``size`` is the cumulative size of the DAG below, in encoded bytes."""

    cid: Cid
    name: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A PBNode."""

    links: tuple[Link, ...]
    data: bytes | None


def encode_node(links: Sequence[Link], data: bytes | None) -> bytes:
    """The canonical bytes: links first, then data, as Kubo writes them."""
    out = bytearray()
    for link in links:
        name = link.name.encode()
        body = b"".join((field(1, link.cid), field(2, name), b"\x18", varint.encode(link.size)))
        out += field(2, body)
    if data is not None:
        out += field(1, data)
    return bytes(out)


def decode_node(block: bytes) -> Node:
    """The node in ``block``; raises InvalidDag, also where fields repeat, are unknown or out of order."""
    links: list[Link] = []
    data: bytes | None = None
    at = 0
    while at < len(block):
        if data is None and (usual := _usual_link(block, at)) is not None:
            link, at = usual
            links.append(link)
            continue
        number, value, at = _field(block, at)
        if not isinstance(value, bytes) or number not in (1, 2):
            raise InvalidDag(f"dag-pb: unexpected field {number} in a node")
        if number == 2:
            if data is not None and links:
                raise InvalidDag("dag-pb: links on both sides of the data")
            links.append(_link(value))
        elif data is not None:
            raise InvalidDag("dag-pb: the data field is there twice")
        else:
            data = value
    return Node(tuple(links), data)


def _usual_link(block: bytes, at: int) -> tuple[Link, int] | None:
    """A link as nearly every one of a file is, ours and Kubo's (a CIDv1 with a SHA-256, no name, a size), and where it ends; None for any other.

    Read so, it takes 1 µs instead of 25.
    """
    if block[at + 40 : at + 43] != b"\x12\x00\x18" or block[at + 2 : at + 5] != b"\x0a\x24\x01" or block[at + 6 : at + 8] != b"\x12\x20":
        return None
    if block[at] != 0x12 or block[at + 5] not in (RAW, DAG_PB):
        return None
    size, end = varint.decode(block, at + 43)
    return (Link(Cid(block[at + 4 : at + 40]), "", size), end) if block[at + 1] == end - at - 2 else None


def _link(body: bytes) -> Link:
    cid: Cid | None = None
    name, size = "", 0
    for number, value in fields(body):
        if number == 1 and isinstance(value, bytes):
            try:
                cid = validate_cid(value)
            except InvalidCid as error:
                raise InvalidDag(f"dag-pb: a link's hash is no CID: {error}") from error
        elif number == 2 and isinstance(value, bytes):
            name = value.decode(errors="surrogateescape")
        elif number == 3 and isinstance(value, int):
            size = value
        else:
            raise InvalidDag(f"dag-pb: unexpected field {number} in a link")
    if cid is None:
        raise InvalidDag("dag-pb: a link without a hash")
    return Link(cid, name, size)


def field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes((number << 3 | 2,)) + varint.encode(len(value)) + value


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: an int for varints, bytes for length-delimited; raises InvalidDag."""
    at = 0
    while at < len(data):
        number, value, at = _field(data, at)
        yield number, value


def _field(data: bytes, at: int) -> tuple[int, int | bytes, int]:
    """The field that begins at ``at``, as ``fields`` has it, and where it ends."""
    key, at = varint.decode(data, at)
    if key & 7 == 0:
        number, at = varint.decode(data, at)
        return key >> 3, number, at
    if key & 7 != 2:
        raise InvalidDag(f"protobuf: wire type {key & 7} is not used by dag-pb or UnixFS")
    length, at = varint.decode(data, at)
    if length > len(data) - at:
        raise InvalidDag(f"protobuf: a field of {length} bytes where {len(data) - at} are left")
    return key >> 3, bytes(data[at : at + length]), at + length
