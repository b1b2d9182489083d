"""Which images a node keeps, by the names of its pins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ipfs_store.cids import DAG_CBOR, RAW, Cid, codec_of, format_cid, parse_cid
from ipfs_store.errors import BlockNotFound, ImageNotFound, InvalidCid, InvalidInput, InvalidReference, NotFound, VerificationFailed
from ipfs_store.images.identity import Identity, identify
from ipfs_store.images.local import LocalBlocks
from ipfs_store.images.usage import block_sizes
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Reference

_HINT = "`ipfs-store images` lists what is here; an image of another machine is named by its CID"


async def find(node: Node, text: str) -> Cid:
    """The CID that ``text`` is, or that is pinned under the name ``text`` (``debian:12`` is ``docker.io/library/debian:12``).

    Raises InvalidCid, ImageNotFound (no such name), InvalidInput (several images of that name).
    """
    try:
        return parse_cid(text)
    except InvalidCid as error:
        if not _may_be_a_name(text):
            raise
        not_a_cid = error
    wanted = {text, _full_name(text)} - {""}
    pins = await node.pins()
    found = [cid for cid, name in pins.items() if name in wanted]
    if not found:  # pinned without a name, as `ipfs pin add` does: the image knows its own
        nameless = {cid: name for cid, name in pins.items() if not name}
        found = [cid for cid, image in (await _images(node, nameless)).items() if image.name in wanted]
    # A descriptor stands for its root, and for all else that was pinned with it.
    chosen = [cid for cid in found if codec_of(cid) == RAW] or found
    if not chosen:
        raise ImageNotFound(f"{text[:200]!r} is neither a CID nor the name of a pin here", hint=_HINT) from not_a_cid
    if len(chosen) > 1:
        listed = ", ".join(map(format_cid, chosen[:5]))
        raise InvalidInput(f"{len(chosen)} images are called {text[:200]!r}: {listed}", hint="name one of them by its CID")
    return chosen[0]


async def keep(node: Node, image: Identity, *, name: str = "") -> None:
    """Pin all of an image, or other DAG, fetching what is missing; ``name`` instead of its own. Raises as ``Node.pin`` does."""
    name = name or image.name
    for cid in image.roots:
        # Only what a person would name has the name: the image's CID and its root.
        main = cid == image.cid or codec_of(cid) == DAG_CBOR
        await node.pin(cid, name=name if main else f"part of {name or format_cid(image.cid)}")


@dataclass(frozen=True, slots=True)
class Held:
    """An image that a node keeps."""

    image: Identity
    name: str
    """That of its pin, empty if it has none."""
    blocks: Mapping[Cid, int]
    """All of its blocks and their bytes, as far as they are here."""
    lost: str = ""
    """Why not all of it is here, though it is pinned; empty if all is."""

    @property
    def root(self) -> Cid:
        """Of its DAG: the image root, or the descriptor of an image without one."""
        return next((cid for cid in self.image.roots if codec_of(cid) == DAG_CBOR), self.image.cid)


async def held_images(node: Node) -> list[Held]:
    """Every image that is pinned, sorted by name; what else is pinned is left out. Nothing is fetched. Raises NodeUnavailable, StorageFailed."""
    pins = await node.pins()
    images = await _images(node, pins)
    parts = {part for image in images.values() for part in image.roots if part != image.cid}
    local, found = LocalBlocks(node), list[Held]()
    for cid, image in images.items():
        if cid in parts:
            continue
        name = pins[cid] or image.name
        try:
            found.append(Held(image, name, await block_sizes(local, image.roots)))
        except BlockNotFound as error:
            found.append(Held(image, name, {}, error.message))
    return sorted(found, key=lambda held: (held.name, held.image.cid))


async def remove(node: Node, cid: Cid) -> tuple[Cid, ...]:
    """Unpin an image (by its descriptor or its root), or other DAG, with all that was pinned for it and that no other image needs.

    Returns what was unpinned; raises NotFound where nothing of it is pinned.
    """
    pins = await node.pins()
    images = await _images(node, pins)
    targets = {pin for pin, image in images.items() if pin == cid or (codec_of(cid) == DAG_CBOR and cid in image.roots)}
    gone = {cid}.union(*(images[pin].roots for pin in targets))
    needed = set[Cid]().union(*(image.roots for pin, image in images.items() if pin not in gone))
    unpinned = tuple(pin for pin in pins if pin in gone and pin not in needed)
    if not unpinned:
        raise NotFound(f"{format_cid(cid)} is not pinned", hint="`ipfs-store images` lists what is here")
    for pin in unpinned:
        await node.unpin(pin)
    return unpinned


async def _images(node: Node, pins: Mapping[Cid, str]) -> dict[Cid, Identity]:
    """Those of the pins that are an image's descriptor or root."""
    local, found = LocalBlocks(node), dict[Cid, Identity]()
    for cid in pins:
        if codec_of(cid) in (RAW, DAG_CBOR):
            try:
                image = await identify(local, cid)
            except (NotFound, InvalidInput, VerificationFailed):
                continue  # a block that is gone, or no image after all: `verify` says what is wrong with a pin
            if image.is_image:
                found[cid] = image
    return found


def _may_be_a_name(text: str) -> bool:
    return not text.startswith(("ipfs://", "/ipfs/"))


def _full_name(text: str) -> str:
    try:
        return str(Reference.parse(text))
    except InvalidReference:
        return ""
