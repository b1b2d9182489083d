"""Disk space of a block store's packs: what no row covers is given back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from ipfs_store.cids import verify_block
from ipfs_store.errors import BlockMismatch, StorageFailed
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.index import IndexDamaged, Row
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.locks import locked
from ipfs_store.nodes.packs import HEADER, Appender, first_location, frame_head

_log = logging.getLogger(__name__)
_STEP = 1000  # rows, and so at most some 100 MB moved before their new places are in the index
_SLACK = 1 << 20  # bytes that a pack may take beyond its blocks before it is looked through for them
_MOSTLY_DEAD = 4  # a pack that is this many times as long as its blocks together is not worth a file
_FRAME = 40  # bytes in front of a block


def free_space(store: BlockStore, touched: set[int]) -> None:
    """Free the space of deleted blocks in the packs that had some (``touched``), and wherever else much of it lies. Raises StorageFailed.

    Somebody may be appending to a pack: what he has not given rows yet lies behind its last row, and is left alone.
    """
    for number in store.packs.numbers():
        if not store.packs.trim(number):
            continue
        length, disk = store.packs.disk_usage(number)
        count, size = store.index.totals(number)
        live = size + count * _FRAME
        if number not in touched and disk <= live + max(_SLACK, live // 8):
            continue
        sparse = store.packs.free(number, _gaps(store, number))
        if live * _MOSTLY_DEAD < length or (not sparse and live * 4 < length * 3):
            try:
                _move(store, number)
            except IndexDamaged:
                raise
            except StorageFailed as error:
                _log.warning("%s stays as long as it is: %s", store.packs.path(number), error)


def free_rows(store: BlockStore, rows: Sequence[Row]) -> None:
    """Free the space of some blocks, in the order of their locations, and return when it is to be had. Raises StorageFailed."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        known = ranges.setdefault(row.place.pack, [])
        start, end = _start(row), row.place.offset + row.size
        # Together with its neighbours: only whole pages are given back.
        known.append((known.pop()[0], end) if known and known[-1][1] == start else (start, end))
    for number, found in ranges.items():
        store.packs.free(number, found)
    store.packs.sync(ranges)


def _rows(store: BlockStore, number: int) -> Iterator[Row]:
    location, end = first_location(number), first_location(number + 1)
    while rows := store.index.after(location, _STEP, before=end):
        yield from rows
        location = rows[-1].location + 1


def _gaps(store: BlockStore, number: int) -> Iterator[tuple[int, int]]:
    end = len(HEADER)
    for row in _rows(store, number):
        start = _start(row)
        if start > end:
            yield end, start
        end = max(end, row.place.offset + row.size)


def _start(row: Row) -> int:
    """Where the block's frame begins in its pack."""
    return row.place.offset - len(frame_head(row.cid, row.size))


def _move(store: BlockStore, number: int) -> None:
    """Bring the blocks of a pack into another, unless it has an owner."""
    with store.packs.locked(number) as handle:
        if handle < 0:
            return
        appender = Appender(store.packs)
        try:
            moved: list[tuple[int, int]] = []
            for row in _rows(store, number):
                data = store.packs.read(number, row.place.offset, row.size)
                try:
                    verify_block(row.cid, data)
                except BlockMismatch:
                    store.read(row.cid)  # says so, and removes it
                    continue
                moved.append((row.location, appender.append([Block(row.cid, data)])[0].location))
                if len(moved) == _STEP:
                    _moved(store, appender, moved)
                    moved = []
            _moved(store, appender, moved)
        finally:
            appender.close()
    store.packs.trim(number)


def _moved(store: BlockStore, appender: Appender, moved: list[tuple[int, int]]) -> None:
    appender.sync()
    with locked(store.lock, exclusive=False):  # nobody replaces the index meanwhile
        store.index.move(moved)
    appender.keep()
