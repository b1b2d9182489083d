"""CARv1: a header with roots, then blocks, each behind its length and CID (ipld.io/specs/transport/car/carv1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ipfs_store.cids import Cid, validate_cid, verify_block
from ipfs_store.dag import dagcbor, varint
from ipfs_store.errors import InvalidCid, InvalidDag

MAX_HEADER = 1 << 20
# Kubo refuses blocks over 2 MiB; twice that leaves room for a CID and for other writers, and bounds what a length prefix can make us hold.
MAX_FRAME = 4 << 20


def car_header(roots: Sequence[Cid]) -> bytes:
    """The first bytes of a CAR."""
    header = dagcbor.encode({"roots": [dagcbor.CidLink(root) for root in roots], "version": 1})
    return varint.encode(len(header)) + header


def car_frame(cid: Cid, block: bytes) -> bytes:
    """One block as it stands in a CAR."""
    return car_frame_start(cid, len(block)) + block


def car_frame_start(cid: Cid, size: int) -> bytes:
    """What stands in a CAR before a block of ``size`` bytes."""
    return varint.encode(len(cid) + size) + cid


class CarReader:
    """Takes the bytes of a CAR as they come and gives verified blocks.

    Call ``feed`` and iterate over what it gives; ``close`` at the end. ``roots`` is known once the header was fed. Holds one frame at most.
    """

    def __init__(self) -> None:
        self.roots: list[Cid] | None = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Cid, bytes]]:
        """Blocks that are complete now; raises InvalidDag (form) and BlockMismatch (content)."""
        self._buffer += data
        at = 0
        try:
            while (frame := self._frame(at)) is not None:
                start, end = frame
                with memoryview(self._buffer) as view:
                    body = bytes(view[start:end])
                at = end
                if self.roots is None:
                    self.roots = _header(body)
                else:
                    yield _block(body)
        finally:
            del self._buffer[:at]

    def close(self) -> None:
        """Check that the CAR ended where a block ended; raises InvalidDag."""
        if self.roots is None:
            raise InvalidDag("not a CAR: it ends inside of its header")
        if self._buffer:
            raise InvalidDag(f"the CAR is cut short: {len(self._buffer)} bytes of a block are left over")

    def _frame(self, at: int) -> tuple[int, int] | None:
        head = bytes(self._buffer[at : at + 9])
        if not any(byte < 0x80 for byte in head):
            if len(head) == 9:
                raise InvalidDag("not a CAR: a length of more than 9 bytes")
            return None
        length, used = varint.decode(head, 0)
        limit = MAX_HEADER if self.roots is None else MAX_FRAME
        if not 0 < length <= limit:
            raise InvalidDag(f"not a CAR we take: a part of {length} bytes (1 to {limit} are allowed)")
        start = at + used
        return (start, start + length) if start + length <= len(self._buffer) else None


def _header(body: bytes) -> list[Cid]:
    try:
        value = dagcbor.decode(body)
    except InvalidDag as error:
        raise InvalidDag(f"not a CAR: its header is {error.message}") from error
    if not isinstance(value, dict) or value.get("version") != 1:
        version = value.get("version") if isinstance(value, dict) else None
        raise InvalidDag(f"not a CARv1: its header says version {version!r}", hint="`ipfs dag export` and `ipfs-store export` write CARv1")
    roots = value.get("roots")
    if not isinstance(roots, list) or not all(isinstance(root, dagcbor.CidLink) for root in roots):
        raise InvalidDag("not a CARv1: its header has no list of roots")
    return [root.cid for root in roots]


def _block(body: bytes) -> tuple[Cid, bytes]:
    length = cid_length(body)
    try:
        cid = validate_cid(body[:length])
    except InvalidCid as error:
        raise InvalidDag(f"a block of the CAR has no valid CID: {error}") from error
    block = body[length:]
    verify_block(cid, block)
    return cid, block


def cid_length(body: bytes) -> int:
    """How many bytes the CID has that ``body`` begins with; raises InvalidDag."""
    if body[:2] == b"\x12\x20":
        return 34  # CIDv0
    at = 0
    for _ in range(3):  # version, codec, hash code
        _, at = varint.decode(body, at)
    length, at = varint.decode(body, at)
    if at + length > len(body):
        raise InvalidDag("a block of the CAR is shorter than its CID")
    return at + length
