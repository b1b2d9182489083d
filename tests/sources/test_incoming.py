"""Layers that are read before they were checked, or are there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from ipfs_store.errors import BlobMismatch, NodeUnavailable
from ipfs_store.images.model import Incoming
from ipfs_store.images.sources.incoming import Whole, arriving, checking
from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.media_types import OCI_LAYER
from tests.patience import PATIENCE

DATA = os.urandom(300_000)
BLOB = Descriptor(OCI_LAYER, Digest.of(DATA), len(DATA))


def pieces(data: bytes = DATA) -> Iterator[bytes]:
    return (data[at : at + 50_000] for at in range(0, len(data), 50_000))


def coming(given: Iterator[bytes], folder: Path, nursery: trio.Nursery) -> AbstractAsyncContextManager[Incoming]:
    return arriving(given, Whole(folder / "ranges", BLOB.size).ranges, BLOB, "the source", folder, nursery)


def read(incoming: Incoming, at: int = 0, count: int = -1) -> bytes:
    with incoming.open() as file:
        file.seek(at)
        found = b""
        while count < 0 or len(found) < count:
            piece = file.read(70_000)
            if not piece:
                break
            found += piece
        return found


async def test_what_has_come_is_read_while_the_rest_is_still_coming(tmp_path: Path) -> None:
    read_first = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield DATA[:100_000]
        assert read_first.wait(PATIENCE)
        yield DATA[100_000:]

    async with trio.open_nursery() as nursery, coming(slowly(), tmp_path, nursery) as incoming:
        found = await trio.to_thread.run_sync(read, incoming, 0, 100_000)
        assert found == DATA[:100_000]
        read_first.set()
        assert await trio.to_thread.run_sync(read, incoming, 250_000) == DATA[250_000:]
        assert await trio.to_thread.run_sync(read, incoming) == DATA
        assert (await incoming.checked()).read_bytes() == DATA
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "given", [DATA[:-1], DATA + b"x", DATA[:-1] + bytes([DATA[-1] ^ 1]), b""], ids=["short", "long", "another", "empty"]
)
async def test_what_is_not_the_blob_is_never_checked(given: bytes, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, coming(pieces(given), tmp_path, nursery) as incoming:
        with pytest.raises(BlobMismatch, match=f"the source: blob {BLOB.digest}"):
            await incoming.checked()


async def test_a_reader_does_not_wait_for_what_will_never_come(tmp_path: Path) -> None:
    def fails() -> Iterator[bytes]:
        yield DATA[:100_000]
        raise NodeUnavailable("it went away")

    async with trio.open_nursery() as nursery, coming(fails(), tmp_path, nursery) as incoming:
        with pytest.raises(BlobMismatch, match="did not arrive"):
            await trio.to_thread.run_sync(read, incoming)
        with pytest.raises(NodeUnavailable, match="it went away"):
            await incoming.checked()


async def test_nothing_goes_on_when_nobody_reads_any_more(tmp_path: Path) -> None:
    def endlessly() -> Iterator[bytes]:
        yield DATA[:1]
        while True:
            yield b""

    async with trio.open_nursery() as nursery:
        async with coming(endlessly(), tmp_path, nursery):
            pass
        assert not nursery.child_tasks


@pytest.mark.parametrize("damage", [False, True])
async def test_a_file_is_read_before_its_digest_is_known(damage: bool, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ damage]))
    async with trio.open_nursery() as nursery, checking(path, BLOB, "the folder", nursery) as incoming:
        assert await trio.to_thread.run_sync(read, incoming) == path.read_bytes()
        if damage:
            with pytest.raises(BlobMismatch, match=f"the folder: blob {BLOB.digest} is damaged"):
                await incoming.checked()
        else:
            assert await incoming.checked() == path
