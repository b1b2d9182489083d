"""The files of an image as a container sees them, read by path."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ipfs_store.cids import Cid
from ipfs_store.errors import ChunkMismatch, InvalidInput, NotFound
from ipfs_store.images.filesystem import ImageFiles
from ipfs_store.images.layer_files import open_files
from ipfs_store.images.pull import resolve
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Node
from tests.images.conftest import NOISE, made, pushed
from tests.nodes.memory import MemoryNode
from tests.sources.made import MadeImage


def layer(*entries: tuple[str, bytes | str | None], links: dict[str, str] | None = None) -> bytes:
    """A tar of files, symbolic links (text) and directories (None), and then hard links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, value in entries:
            info = tarfile.TarInfo(name)
            if isinstance(value, bytes):
                info.size, info.mode = len(value), 0o640
                archive.addfile(info, io.BytesIO(value))
            else:
                info.type, info.linkname = (tarfile.DIRTYPE, "") if value is None else (tarfile.SYMTYPE, value)
                archive.addfile(info)
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    return out.getvalue()


LAYERS = [
    layer(
        ("etc", None), ("etc/gone", b"gone"), ("etc/kept", b"kept"), ("var/old/deep/file", b"old"), ("was", None), ("was/folder", b"1"), ("bin", "usr/bin"),
        ("usr/bin/tool", b"tool"), ("usr/here", "bin/tool"), ("usr/up", "../etc/kept"), ("loop", "loop"), ("absolute", "/usr/here"), ("usr/empty", b""),
        links={"usr/bin/also": "usr/bin/tool"},
    ),
    layer(("etc/.wh.gone", b""), ("var/old/.wh..wh..opq", b""), ("var/old/new", b"new"), ("was", b"a file now"), ("big", NOISE), ("usr/bin/.wh.tool", b"")),
]  # fmt: skip


@pytest.fixture(params=["lazy", "plain"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], object]]:
    node = MemoryNode()
    image = await pushed(node, tmp_path, MadeImage(LAYERS), convert=request.param == "lazy")

    def open_it() -> object:
        return open_files(node, image.cid)

    yield open_it


async def contents(files: ImageFiles, path: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join([piece async for piece in files.read(files.find(path), offset, length)])


async def test_layers_lie_on_top_of_each_other(opened: Callable[[], asynccontextmanager[ImageFiles]]) -> None:  # type: ignore[valid-type]
    async with opened() as files:
        assert [file.entry.path for file in files.below("")] == [
            "absolute", "big", "bin", "etc", "etc/kept", "loop", "usr", "usr/bin", "usr/bin/also", "usr/empty", "usr/here", "usr/up",
            "var", "var/old", "var/old/new", "was",
        ]  # fmt: skip
        assert [file.entry.path for file in files.children("usr")] == ["usr/bin", "usr/empty", "usr/here", "usr/up"]
        assert files.find("was").layer == 1
        assert files.find("etc").layer == 0
        assert files.find("etc/kept").entry.mode == 0o640
        assert files.find("usr/bin/also").entry.type == "reg"


async def test_links_are_followed_inside_of_the_image(opened: Callable[[], asynccontextmanager[ImageFiles]]) -> None:  # type: ignore[valid-type]
    async with opened() as files:
        assert await contents(files, "/bin/also") == b"tool"
        assert await contents(files, "usr/up") == b"kept"
        assert await contents(files, "usr/../../../etc//./kept") == b"kept"
        assert files.find("usr/up", follow=False).entry.link == "../etc/kept"
        with pytest.raises(NotFound, match="no /usr/bin/tool"):
            files.find("absolute")
        with pytest.raises(InvalidInput, match="more than 40 symbolic links"):
            files.find("loop")
        with pytest.raises(NotFound, match="/etc/kept is no directory"):
            files.find("etc/kept/x")
        with pytest.raises(NotFound, match="no /etc/gone"):
            files.find("etc/gone")


async def test_files_are_read_whole_and_in_parts(opened: Callable[[], asynccontextmanager[ImageFiles]]) -> None:  # type: ignore[valid-type]
    async with opened() as files:
        assert await contents(files, "big") == NOISE
        assert await contents(files, "big", 300_000, 1_000_000) == NOISE[300_000:1_300_000]
        assert await contents(files, "big", len(NOISE) - 5) == NOISE[-5:]
        assert await contents(files, "big", len(NOISE)) == b""
        assert await contents(files, "usr/empty") == b""
        assert await contents(files, "was", 2, 4) == b"file"
        with pytest.raises(InvalidInput, match="behind the end"):
            await contents(files, "was", 11)
        with pytest.raises(InvalidInput, match="no regular file but a directory"):
            await contents(files, "etc")


async def test_only_what_is_needed_is_fetched(tmp_path: Path) -> None:
    node = MemoryNode()
    image = await pushed(node, tmp_path, MadeImage(LAYERS))
    manifest = (await resolve(node, image.cid)).manifests[0]
    layers, tocs = {item.cid for item in manifest.layers}, {item.toc for item in manifest.layers}
    node.asked.clear()
    async with open_files(node, image.cid) as files:
        documents = 4  # descriptor, manifest, config, and their like
        assert len(node.asked) <= documents + len(layers | tocs)
        before = node.asked.copy()
        assert await contents(files, "etc/kept") == b"kept"
        assert (node.asked - before).total() <= 2
        before = node.asked.copy()
        assert await contents(files, "big", 1_000_000, 10) == NOISE[1_000_000:1_000_010]
        assert sum(len(node.store[cid]) for cid in node.asked - before) < 600_000


async def test_a_node_of_either_kind(node: Node, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path)
    for cid in (image.cid, image.root):
        async with open_files(node, cid) as files:
            assert await contents(files, "etc/hello") == b"hello"
            assert await contents(files, "usr/big") == NOISE


async def test_a_forged_leaf_is_never_shown(tmp_path: Path) -> None:
    """As a node might that checks nothing itself: the chunk does not match the table of contents."""
    node = MemoryNode()
    image = await pushed(node, tmp_path, made([{"one": b"1" * 100_000, "two": b"2" * 100_000}]))
    (layer,) = (await resolve(node, image.cid)).manifests[0].layers
    forged = MemoryNode()
    await pushed(forged, tmp_path, made([{"one": b"1" * 100_000, "two": b"3" * 100_000}]))
    (other,) = (
        (await resolve(forged, (await pushed(forged, tmp_path, made([{"one": b"1" * 100_000, "two": b"3" * 100_000}]))).cid))
        .manifests[0]
        .layers
    )
    if len(forged.store[other.cid]) == len(node.store[layer.cid]):
        node.store[layer.cid] = forged.store[other.cid]
        with pytest.raises(ChunkMismatch):
            async with open_files(node, image.cid) as files:
                await contents(files, "two")


async def test_layers_without_a_toc_are_gone_from_the_disk_afterwards(
    other: EmbeddedNode, tmp_path: Path, scratch: Callable[[], list[Path]]
) -> None:
    image = await pushed(other, tmp_path, convert=False)
    async with open_files(other, Cid(image.cid)) as files:
        assert await contents(files, "usr/big") == NOISE
    assert scratch() == []
