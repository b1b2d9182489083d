"""Pushed images: what other tools take, what comes back, what bad input says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_store.cids import DAG_CBOR, RAW, cid_of, codec_of, format_cid
from ipfs_store.dag.chunker import Chunker
from ipfs_store.errors import BlobMismatch, BlockNotFound, InvalidDescriptor
from ipfs_store.images.pull import copy_blob, resolve
from ipfs_store.images.push import PushOptions, push_image
from ipfs_store.images.root import ROOT_ANNOTATION
from ipfs_store.oci import Descriptor, Digest
from tests.nodes.memory import MemoryNode

VECTORS = Path(__file__).parents[1] / "vectors"
NAMES = {"io.containerd.image.name", "org.opencontainers.image.ref.name"}


class VectorImage:
    """The image that another tool pushed (tests/vectors/ipfs-push), as it was before."""

    name = "docker.io/test/vec:1"

    def __init__(self) -> None:
        manifest = json.loads((VECTORS / "ipfs-push/manifest.json").read_bytes())
        diff_id = next(
            vector["diff_id"]
            for vector in json.loads((VECTORS / "estargz/vectors.json").read_bytes())["vectors"]
            if vector["blob"] == "chunk64k.blob"
        )
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}).encode()
        for part in (manifest["config"], *manifest["layers"]):
            del part["urls"]
        manifest["config"] |= {"digest": str(Digest.of(config)), "size": len(config)}
        data = json.dumps(manifest).encode()
        self.root = Descriptor("application/vnd.oci.image.manifest.v1+json", Digest.of(data), len(data))
        self._small = {self.root.digest: data, Digest.of(config): config}
        self.layer = VECTORS / "estargz/chunk64k.blob"

    async def fetch(self, descriptor: Descriptor) -> bytes:
        return self._small[descriptor.digest]

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        yield self.layer

    async def aclose(self) -> None:
        pass


async def test_documents_are_what_other_tools_push() -> None:
    node = MemoryNode()
    result = await push_image(node, VectorImage(), PushOptions(own_annotations=False, chunker=Chunker.parse("size-262144")))
    theirs = json.loads((VECTORS / "ipfs-push/descriptor.json").read_bytes())
    ours = json.loads(node.store[result.cid])
    assert list(ours) == list(theirs)
    assert list(ours["annotations"]) == list(theirs["annotations"])
    manifest = json.loads(await node.get(codec_cid(ours["urls"][0])))
    their_manifest = json.loads((VECTORS / "ipfs-push/manifest.json").read_bytes())
    assert list(manifest) == list(their_manifest)
    assert manifest["layers"] == their_manifest["layers"]


def codec_cid(url: str) -> bytes:
    from ipfs_store.cids import parse_cid

    return parse_cid(url)  # type: ignore[return-value]


async def test_an_image_comes_back_as_it_was_pushed() -> None:
    node, image = MemoryNode(), VectorImage()
    result = await push_image(node, image)
    for cid in (result.cid, result.root):
        found = await resolve(node, cid)
        (manifest,) = found.manifests
        (layer,) = manifest.layers
        parts: list[bytes] = []

        async def write(piece: bytes, parts: list[bytes] = parts) -> None:
            parts.append(piece)

        await copy_blob(node, layer, write)
        assert b"".join(parts) == image.layer.read_bytes()
    assert (await resolve(node, result.cid)).name == image.name


async def test_pushed_twice_it_has_the_same_cid_and_stores_nothing_new() -> None:
    node = MemoryNode()
    first = await push_image(node, VectorImage())
    second = await push_image(node, VectorImage())
    assert (second.cid, second.root) == (first.cid, first.root)
    assert (second.new_blocks, second.new_bytes) == (0, 0)
    assert first.new_bytes > 0


async def test_a_pinned_root_keeps_all_of_the_image() -> None:
    node = MemoryNode()
    result = await push_image(node, VectorImage())
    assert codec_of(result.root) == DAG_CBOR
    assert (await node.gc()).blocks == 0
    await node.unpin(result.cid)
    await node.gc()
    assert (await resolve(node, result.root)).manifests


async def test_the_descriptor_names_the_root() -> None:
    node = MemoryNode()
    result = await push_image(node, VectorImage())
    assert result.descriptor.annotations[ROOT_ANNOTATION] == format_cid(result.root)


async def test_a_cid_that_nobody_has_is_named() -> None:
    cid = cid_of(RAW, b"nowhere")
    with pytest.raises(BlockNotFound, match=format_cid(cid)):
        await resolve(MemoryNode(), cid)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"[]", b"{}", b'{"mediaType":"x","digest":"y","size":1}', b'{"mediaType":"text/plain"}', b"\xff\xfe"]
)
async def test_what_is_no_descriptor_is_refused(data: bytes) -> None:
    node = MemoryNode()
    cid = cid_of(RAW, data)
    node.store[cid] = data
    with pytest.raises(InvalidDescriptor, match="not an image"):
        await resolve(node, cid)


async def test_a_digest_that_does_not_match_is_refused() -> None:
    node = MemoryNode()
    result = await push_image(node, VectorImage())
    lie = replace(result.descriptor, digest=Digest.of(b"something else"))
    data = json.dumps(lie.to_json()).encode()
    cid = cid_of(RAW, data)
    node.store[cid] = data
    with pytest.raises(BlobMismatch, match=str(lie.digest)):
        await resolve(node, cid)
