"""What a CID is: an image, by its descriptor or its root, or some other DAG; and what has to be pinned to keep all of it."""

from __future__ import annotations

from dataclasses import dataclass

from ipfs_store.cids import DAG_CBOR, RAW, Cid, codec_of, parse_cid
from ipfs_store.dag import dagcbor
from ipfs_store.errors import InvalidDag, InvalidDescriptor
from ipfs_store.images.pull import name_of, resolve
from ipfs_store.images.root import KIND, ROOT_ANNOTATION, cid_of_urls, decode_root
from ipfs_store.nodes.interface import Blocks
from ipfs_store.oci import Descriptor
from ipfs_store.oci.manifest import decode_document


@dataclass(frozen=True, slots=True)
class Identity:
    """What a CID stands for."""

    cid: Cid
    name: str
    """The name it was pushed under, empty if none."""
    roots: tuple[Cid, ...]
    """What keeps all of it, when pinned: itself, and for a descriptor, which is one block, what it describes."""
    is_image: bool


async def identify(blocks: Blocks, cid: Cid, *, timeout: float | None = None) -> Identity:
    """Look at ``cid``: at most two blocks are read, but for images that other tools pushed, whose documents are.

    Raises BlockNotFound, NodeUnavailable, and InvalidDag, InvalidDescriptor, BlobMismatch for an image that is not as it should be.
    """
    codec = codec_of(cid)
    if codec == DAG_CBOR:
        block = await blocks.get(cid, timeout=timeout)
        if is_root(block):
            return Identity(cid, decode_root(block).name, (cid,), is_image=True)
    elif codec == RAW:
        descriptor = descriptor_in(await blocks.get(cid, timeout=timeout))
        if descriptor is not None:
            root = descriptor.annotations.get(ROOT_ANNOTATION)
            below = (parse_cid(root),) if root else await _parts(blocks, cid, timeout)
            return Identity(cid, name_of(descriptor), (cid, *below), is_image=True)
    return Identity(cid, "", (cid,), is_image=False)


def is_root(block: bytes) -> bool:
    """Whether a DAG-CBOR block says that it is an image root."""
    try:
        value = dagcbor.decode(block)
    except InvalidDag:
        return False
    return isinstance(value, dict) and value.get("kind") == KIND


def descriptor_in(block: bytes) -> Descriptor | None:
    """The image's descriptor that a raw block is, None where it is something else."""
    if block[:1] != b"{":
        return None
    try:
        descriptor = Descriptor.from_json(decode_document(block, where="descriptor"))
        cid_of_urls(descriptor)
    except InvalidDescriptor:
        return None
    return descriptor


async def _parts(blocks: Blocks, cid: Cid, timeout: float | None) -> tuple[Cid, ...]:
    image = await resolve(blocks, cid, platforms=None, timeout=timeout)
    found = [cid_of_urls(descriptor) for descriptor, _ in image.indexes]
    for manifest in image.manifests:
        found += [cid_of_urls(manifest.descriptor), cid_of_urls(manifest.config_descriptor), *(layer.cid for layer in manifest.layers)]
    return tuple(dict.fromkeys(found))
