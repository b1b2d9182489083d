"""What is in a pack, by reading all of it: for when the index is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from ipfs_store.cids import Cid, validate_cid, verify_block
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag import varint
from ipfs_store.dag.car import MAX_FRAME, cid_length
from ipfs_store.errors import IpfsStoreError

_WINDOW = 4 * MAX_FRAME
# The CIDs of nearly all blocks begin so (raw, dag-pb, dag-cbor; SHA-256): by it the next block is found behind one that is damaged or freed.
_START = re.compile(rb"\x01[\x55\x70\x71]\x12\x20")
_LENGTHS = (1, 2, 3, 4)  # bytes of the varint in front of a CID


class Found(NamedTuple):
    """A block that is whole, and the offset of its bytes."""

    cid: Cid
    offset: int
    size: int


def scan(handle: int) -> Iterator[Found]:
    """The blocks of a pack that hash to their CIDs, in order. What lies between them (freed, torn, not written) is passed over.

    Memory: 16 MiB. It is read and not mapped, since its owner may cut it meanwhile. Raises OSError.
    """
    at = 0
    while window := os.pread(handle, _WINDOW, at):
        last = len(window) < _WINDOW
        used = 0
        while last or len(window) - used >= MAX_FRAME + 9:
            found = _frame(window, used)
            if found is None:
                used, found = _search(window, used)
            if found is None:
                break
            used = found.offset + found.size
            yield found._replace(offset=at + found.offset)
        if last:
            return
        at += used


def _search(window: bytes, start: int) -> tuple[int, Found | None]:
    """The next block behind ``start``; without one, where to go on in the window that follows."""
    for match in _START.finditer(window, start + 1):
        if len(window) - match.start() < MAX_FRAME and len(window) == _WINDOW:
            return match.start() - max(_LENGTHS), None  # it may go on in the next window
        for length in _LENGTHS:
            begin = match.start() - length
            if begin >= start and (found := _frame(window, begin)) is not None and found.offset > match.start():
                return begin, found
    return max(len(window) - 64, start), None


def _frame(window: bytes, at: int) -> Found | None:
    """The block whose frame begins at ``at``, if one does and it is whole."""
    try:
        length, start = varint.decode(window[at : at + 9], 0)
        start += at
        if not 0 < length <= MAX_FRAME or start + length > len(window):
            return None
        offset = start + cid_length(window[start : start + min(length, 256)])
        cid = validate_cid(window[start:offset])
        if offset > start + length or identity_block(cid) is not None:  # the header's root looks like one that we would never store
            return None
        verify_block(cid, memoryview(window)[offset : start + length])
    except IpfsStoreError:
        return None
    return Found(cid, offset, start + length - offset)
