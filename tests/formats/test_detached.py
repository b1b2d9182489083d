"""TOCs apart from their layers: the same layer either way, and nothing taken that is not what was promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ipfs_store.errors import InvalidLayer, IpfsStoreError, TocMismatch
from ipfs_store.formats.detached import DetachedToc, decode_detached, detach
from ipfs_store.formats.layer import open_layer
from tests.formats.blobs import BytesBlob
from tests.requirements import require_tool

VECTORS = Path(__file__).parents[1] / "vectors/estargz"


@pytest.mark.parametrize("name", ["default.blob", "chunk64k.blob", "minchunk.blob", "zstd.blob", "skopeo-zstd.blob"])
async def test_a_layer_opened_by_its_toc_object_is_the_same_layer(name: str) -> None:
    blob = BytesBlob((VECTORS / name).read_bytes())
    whole = await open_layer(blob)
    toc = await detach(blob)
    assert decode_detached(toc.encode(), expected=whole.toc.digest).open() == whole


async def test_zstd_alone_unpacks_it() -> None:
    toc = await detach(BytesBlob((VECTORS / "default.blob").read_bytes()))
    done = await trio.run_process([require_tool("zstd"), "-dc"], stdin=toc.encode(), capture_stdout=True)
    assert done.stdout == toc.data


def test_another_toc_than_was_promised_is_refused() -> None:
    data = DetachedToc("estargz", 100, b'{"version":1,"entries":[]}').encode()
    with pytest.raises(TocMismatch, match="sha256:0000"):
        decode_detached(data, expected="sha256:" + "0" * 64)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(data: bytes, headed: bool) -> None:
    head = DetachedToc("estargz", 100, b"").encode()[:32] if headed else b""
    with pytest.raises(IpfsStoreError):
        decode_detached(head + data, expected="sha256:" + "0" * 64)


def test_a_size_that_lies_makes_nobody_hold_gigabytes() -> None:
    head = DetachedToc("estargz", 100, b"").encode()[:32]
    bomb = zstandard.ZstdCompressor().compress(bytes(300 << 20))
    with pytest.raises(InvalidLayer, match="314572800 bytes"):
        decode_detached(head + bomb)
