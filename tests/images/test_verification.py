"""verify finds what is wrong: blocks that are lost or damaged, documents, layers and tables of contents that lie."""

from __future__ import annotations

import gzip
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_store.cids import DAG_PB, RAW, Cid, cid_of, codec_of, format_cid
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.dag.unixfs import encode_file_node
from ipfs_store.errors import NodeUnavailable
from ipfs_store.formats.names import ANNOTATION_TOC_DIGEST, estargz_footer
from ipfs_store.images.conversion import lazy_form
from ipfs_store.images.layer_files import open_lazy
from ipfs_store.images.pull import RemoteImage, resolve
from ipfs_store.images.push import PushOptions, PushResult, push_image
from ipfs_store.images.root import ROOT_ANNOTATION, ImageRoot, decode_root
from ipfs_store.images.sources import open_image
from ipfs_store.images.verification import verify
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Digest
from ipfs_store.oci.manifest import encode_document
from tests.images.conftest import FILES, NAME, NOISE, made, pushed
from tests.images.test_carfile import blocks_of, car_of
from tests.nodes.harm import damage
from tests.nodes.memory import MemoryNode
from tests.sources.made import MadeImage, layout_files, tar, write_tar
from tests.sources.signed import Attached


@pytest.mark.parametrize("convert", [True, False])
async def test_a_sound_image_has_no_problems(node: Node, tmp_path: Path, convert: bool) -> None:
    image = await pushed(node, tmp_path, convert=convert)
    found = await verify(node, image.cid)
    assert found.problems == []
    assert found.name == NAME
    assert (found.documents, found.layers) == (2, 2)
    assert found.blocks == len(blocks_of(await car_of(node, image.cid)))
    assert (found.files, found.chunks > 10) == ((5, True) if convert else (0, False))


async def test_any_dag_can_be_verified() -> None:
    node, builder = MemoryNode(), FileBuilder()
    node.store |= {cid: block for number in range(300) for cid, block in builder.add(b"%d" % number * 1000)}
    node.store |= dict(builder.finish())
    assert builder.root is not None
    found = await verify(node, builder.root)
    assert (found.problems, found.blocks, found.layers) == ([], len(node.store), 0)


async def test_blocks_that_are_lost_are_all_named(node: Node, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path)
    if node.name == "kubo":  # which deletes nothing that is pinned
        for pin in (image.cid, image.root):
            await node.unpin(pin)
    lost = [cid for cid, block in blocks_of(await car_of(node, image.cid)) if codec_of(cid) == RAW and len(block) > 100_000][:3]
    for cid in lost:
        await node.delete(cid)
    found = await verify(node, image.cid)
    assert [problem.what for problem in found.problems] == list(map(format_cid, lost))
    assert found.layers == 0


async def test_a_damaged_block_on_the_disk_is_found(other: EmbeddedNode, tmp_path: Path) -> None:
    image = await pushed(other, tmp_path)
    cid = next(cid for cid, block in blocks_of(await car_of(other, image.cid)) if codec_of(cid) == RAW and len(block) > 100_000)
    damage(other.store.path, cid, 1000)
    found = await verify(other, image.cid)
    assert [problem.what for problem in found.problems] == [format_cid(cid)]
    assert (await verify(other, cid_of(RAW, b"nowhere"))).problems


async def test_a_layer_that_is_not_what_its_manifest_says(tmp_path: Path) -> None:
    node = MemoryNode()
    one = await kept(node, tmp_path, made())
    two = await kept(node, tmp_path, made([FILES[0], {"etc/second": b"another"}]))
    roots = [decode_root(node.store[image.root]) for image in (one, two)]
    layer, other = roots[0].layers[1], roots[1].layers[1]
    lie = replace(layer, blob=replace(layer.blob, cid=other.blob.cid, size=other.blob.size))
    if codec_of(other.blob.cid) == RAW:  # its digest would be in its CID: behind a node of its own it is not
        lie = replace(lie, blob=replace(lie.blob, cid=wrapped(node, other.blob.cid)))
    cid = with_root(node, one, replace(roots[0], manifests=(replace(roots[0].manifests[0], layers=(roots[0].layers[0], lie)),)))
    found = await verify(node, cid)
    assert len(found.problems) == 1
    assert "bytes" in found.problems[0].message


async def test_a_diff_id_that_lies(tmp_path: Path) -> None:
    node, image = MemoryNode(), made()
    image.config = image.config.replace(str(Digest.of(image.layers[1])).encode(), str(Digest.of(b"other")).encode())
    remade = MadeImage([tar(layer) for layer in FILES])
    remade.config = image.config
    manifest = json.loads(remade.manifest)
    manifest["config"] |= {"digest": str(Digest.of(remade.config)), "size": len(remade.config)}
    remade.manifest = json.dumps(manifest).encode()
    result = await kept(node, tmp_path, remade)
    (problem,) = (await verify(node, result.cid)).problems
    assert problem.what == str(Digest.of(remade.compressed[1]))
    assert f"has the DiffID {Digest.of(remade.layers[1])}, not " in problem.message


async def test_a_toc_object_of_another_layer(tmp_path: Path) -> None:
    node = MemoryNode()
    honest = await pushed(node, tmp_path, own_annotations=True)
    image = await resolve(node, honest.cid)
    layers = [await UnixfsFile.open(node.get, layer.cid) for layer in image.manifests[0].layers]
    blobs = [await layer.read(0, layer.size) for layer in layers]
    manifest = json.loads(image.manifests[0].data)
    for part in (manifest["config"], *manifest["layers"]):
        del part["urls"]
    for layer in manifest["layers"]:  # what would betray the lie at once
        layer.pop("annotations")
    data = json.dumps(manifest).encode()
    entry = {"mediaType": manifest["mediaType"], "digest": str(Digest.of(data)), "size": len(data)}
    path = write_tar(tmp_path / "lazy.tar", layout_files([entry], [data, image.manifests[0].config_data, *blobs]))
    async with open_image(str(path)) as opened:
        result = await push_image(node, opened, PushOptions(inspect=lazy_form, preserve_digests=True))
    assert (await verify(node, result.cid)).problems == []
    root = decode_root(node.store[result.root])
    first, second = root.layers
    lie = replace(root, manifests=(replace(root.manifests[0], layers=(replace(first, toc=second.toc), second)),))
    (problem,) = (await verify(node, with_root(node, result, lie))).problems
    assert problem.what == str(first.blob.digest)
    assert "its TOC object holds a TOC of digest" in problem.message


async def test_chunks_that_are_not_what_the_toc_says(tmp_path: Path) -> None:
    """A layer whose digest and DiffID are right and whose TOC lies: the member of a file of noise is that of another image's."""
    node = MemoryNode()
    seen: dict[tuple[int, int], tuple[PushResult, bytes]] = {}
    for at in range(0, 200_000, 5000):  # until two compress to the same length
        image = await pushed(node, tmp_path, made([{"noise": NOISE[at : at + 5000], "more": b"more"}]))
        blob, layer = await open_lazy(node, (await resolve(node, image.cid)).manifests[0].layers[0])
        (chunk,) = next(entry for entry in layer.toc.entries if entry.path == "noise").chunks
        data = await blob.read(0, blob.size)
        if (chunk.offset, chunk.end) in seen:
            break
        seen[chunk.offset, chunk.end] = (image, data)
    honest, blob_before = seen[chunk.offset, chunk.end]
    forged = blob_before[: chunk.offset] + data[chunk.offset : chunk.end] + blob_before[chunk.end :]
    path = write_lazy(tmp_path, forged, await resolve(node, honest.cid))
    async with open_image(str(path)) as opened:
        result = await push_image(node, opened, PushOptions(inspect=lazy_form, preserve_digests=True))
    (problem,) = (await verify(node, result.cid)).problems
    assert problem.what == str(Digest.of(forged))
    assert "'noise', chunk at 0: the TOC says sha256:" in problem.message


async def test_a_toc_that_is_not_what_the_tar_says(tmp_path: Path) -> None:
    """Every digest is right; whoever unpacks the layer gets another mode than whoever reads it lazily."""
    node = MemoryNode()
    image = await pushed(node, tmp_path, made([{"file": b"contents"}]))
    remote = await resolve(node, image.cid)
    blob, layer = await open_lazy(node, remote.manifests[0].layers[0])
    data = await blob.read(0, blob.size)
    toc = gzip.decompress(data[layer.toc_offset :])
    info = tarfile.TarInfo.frombuf(toc[:512], "utf-8", "strict")
    document = json.loads(toc[512 : 512 + info.size])
    next(entry for entry in document["entries"] if entry["name"] == "file")["mode"] = 0o4777
    changed = json.dumps(document).encode()
    info.size = len(changed)
    tar = info.tobuf() + changed + bytes(-len(changed) % 512 + 1024)
    forged = data[: layer.toc_offset] + gzip.compress(tar) + estargz_footer(layer.toc_offset)
    path = write_lazy(tmp_path, forged, remote, {ANNOTATION_TOC_DIGEST: str(Digest.of(changed))})
    async with open_image(str(path)) as opened:
        result = await push_image(node, opened, PushOptions(inspect=lazy_form, preserve_digests=True))
    (problem,) = (await verify(node, result.cid)).problems
    assert problem.what == str(Digest.of(forged))
    assert problem.message == "its TOC is not what its tar says: 'file': mode 2559, in the tar 420"


async def test_referrers_are_verified(tmp_path: Path) -> None:
    node, source = MemoryNode(), made()
    signature = Attached(source.manifest, b"signature" * 100_000, "application/x")
    path = write_tar(tmp_path / "i.tar", layout_files([source.descriptor(), signature.descriptor()], [*source.blobs, *signature.blobs]))
    async with open_image(str(path)) as opened:
        result = await push_image(node, opened, PushOptions(preserve_digests=True, referrers=True))
    assert (await verify(node, result.cid)).problems == []
    root = decode_root(node.store[result.root])
    (referrer,) = root.referrers
    wrong = replace(referrer.blobs[1], cid=root.layers[0].blob.cid)
    cid = with_root(node, result, replace(root, referrers=(replace(referrer, blobs=(referrer.blobs[0], wrong)),)))
    (problem,) = (await verify(node, cid)).problems
    assert problem.what == str(Digest.of(signature.payload))


async def test_a_node_that_does_not_answer_is_no_verdict(tmp_path: Path) -> None:
    node = MemoryNode()
    image = await pushed(node, tmp_path)

    async def get(cid: Cid, *, timeout: float | None = None) -> bytes:
        raise NodeUnavailable("gone")

    node.get = get  # type: ignore[method-assign]
    with pytest.raises(NodeUnavailable):
        await verify(node, image.cid)


async def kept(node: Node, folder: Path, image: MadeImage) -> PushResult:
    return await pushed(node, folder, image, convert=False, preserve_digests=True)


def wrapped(node: MemoryNode, leaf: Cid) -> Cid:
    """A file of one leaf below a node of its own."""
    block = encode_file_node([(leaf, len(node.store[leaf]), len(node.store[leaf]))])
    cid = cid_of(DAG_PB, block)
    node.store[cid] = block
    return cid


def with_root(node: MemoryNode, image: PushResult, root: ImageRoot) -> Cid:
    """A descriptor of ``image`` that names another root."""
    block = root.encode()
    node.store[block.cid] = block.data
    descriptor = replace(image.descriptor, annotations={**image.descriptor.annotations, ROOT_ANNOTATION: format_cid(block.cid)})
    data = encode_document(descriptor.to_json())
    cid = cid_of(RAW, data)
    node.store[cid] = data
    return cid


def write_lazy(folder: Path, blob: bytes, image: RemoteImage, annotations: dict[str, str] | None = None) -> Path:
    """An OCI archive of ``image``, its only layer exchanged for ``blob``, with these annotations instead of its own."""
    manifest, config = json.loads(image.manifests[0].data), json.loads(image.manifests[0].config_data)
    config["rootfs"]["diff_ids"] = [str(Digest.of(gzip.decompress(blob)))]
    config_data = json.dumps(config).encode()
    for part in (manifest["config"], *manifest["layers"]):
        del part["urls"]
    manifest["layers"][0] |= {"digest": str(Digest.of(blob)), "size": len(blob)}
    if annotations is not None:
        manifest["layers"][0]["annotations"] = annotations
    manifest["config"] |= {"digest": str(Digest.of(config_data)), "size": len(config_data)}
    data = json.dumps(manifest).encode()
    entry = {"mediaType": manifest["mediaType"], "digest": str(Digest.of(data)), "size": len(data)}
    return write_tar(folder / "lazy.tar", layout_files([entry], [data, config_data, blob]))
