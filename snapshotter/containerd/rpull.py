"""An image of IPFS into containerd: documents into its content store, layers mounted by its snapshotter, or fetched and unpacked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import trio

from ipfs_store.cids import Cid, format_cid
from ipfs_store.errors import BlobMismatch, InvalidDescriptor
from ipfs_store.images.pull import RemoteImage, RemoteLayer, RemoteManifest, copy_file, resolve
from ipfs_store.images.referrers import fetch_referrers
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Descriptor, Digest, Index, Platform
from ipfs_store.oci.media_types import is_layer
from snapshotter.containerd import labels
from snapshotter.containerd.connection import Connection, add_to_lease, end, leased, require_snapshotter
from snapshotter.containerd.content import ContentStore
from snapshotter.containerd.errors import AlreadyExists, ContainerdNotFound, ContainerdRefused
from snapshotter.containerd.protos.mount_pb2 import Mount
from snapshotter.containerd.records import CID_LABEL, Images
from snapshotter.containerd.snapshots import Snapshots, apply, chain_ids

How = Literal["lazy", "pulled", "present"]
# containerd's own snapshotters mount nothing lazily, so all layers are fetched at once instead of one after the other is refused.
_EAGER = frozenset({"overlayfs", "native", "btrfs", "devmapper", "zfs", "blockfile", "erofs"})
_FETCHES = 3
_ATTEMPTS = 5

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PulledLayer:
    """What became of a layer."""

    digest: Digest
    chain_id: Digest
    size: int
    how: How
    """``lazy``: mounted, nothing fetched; ``pulled``: fetched and unpacked; ``present``: its snapshot was there already."""
    why: str = ""
    """Why it was pulled where that was not asked for."""


@dataclass(frozen=True, slots=True)
class PulledImage:
    """What an rpull did."""

    name: str
    cid: Cid
    digest: Digest
    layers: tuple[PulledLayer, ...]
    referrers: tuple[Digest, ...] = ()
    """Manifests in the content store that refer to the image."""


async def rpull(
    node: Node,
    connection: Connection,
    cid: Cid,
    *,
    name: str = "",
    snapshotter: str = "ipfs",
    platforms: Sequence[Platform] | None = (),
    referrers: bool = False,
    timeout: float | None = None,
    report: Callable[[PulledLayer], None] = lambda _: None,
) -> PulledImage:
    """Make containerd know the image ``cid``, with every layer a snapshot of ``snapshotter``. May be broken off and repeated.

    ``referrers``: signatures and the like that were pushed with it come into the content store as well, and stay as long as the image.
    ``name``: what to call it, instead of the name it was pushed under or, where it has none, its CID. ``timeout``: seconds for each block.
    The image's name appears last, when all is there; after an error nothing is left but what other images hold.

    Raises what ``resolve`` raises, SnapshotterMissing, SnapshotterUnavailable, ContainerdUnavailable, BlobMismatch, StorageFailed.
    """
    await _in_thread(lambda: require_snapshotter(connection, snapshotter))
    image = await resolve(node, cid, platforms=platforms, timeout=timeout)
    runnable = [manifest for manifest in image.manifests if manifest.descriptor.attests is None]
    for manifest in runnable:
        for layer in manifest.layers:
            if not is_layer(layer.descriptor.media_type):
                raise InvalidDescriptor(
                    f"{format_cid(cid)}: {layer.descriptor.media_type} {layer.descriptor.digest} is no layer of a file system"
                )
    name = name or image.name or format_cid(cid)
    with leased(connection) as under_lease:
        pull = _Pull(node, under_lease, image, name, snapshotter, timeout, report)
        await _in_thread(pull.store_documents)
        if referrers:
            await pull.store_referrers()
        for manifest in image.manifests:
            if manifest.descriptor.attests is not None:
                await pull.fetch(manifest)
        for manifest in runnable:
            await pull.unpack(manifest)
        record = {CID_LABEL: format_cid(cid)}
        await _in_thread(lambda: Images(under_lease).set(name, image.descriptor, record))
    return PulledImage(name, cid, image.descriptor.digest, tuple(pull.done), tuple(pull.referrers))


class _Pull:
    def __init__(
        self, node: Node, connection: Connection, image: RemoteImage, name: str, snapshotter: str, timeout: float | None,
        report: Callable[[PulledLayer], None],
    ) -> None:  # fmt: skip
        self._node = node
        self._connection = connection
        self._image = image
        self._name = name
        self._snapshotter = snapshotter
        self._timeout = timeout
        self._report = report
        self._content = ContentStore(connection, pause=_pause)
        self._snapshots = Snapshots(connection, snapshotter)
        self.done: list[PulledLayer] = []
        self.referrers: list[Digest] = []

    def store_documents(self) -> None:
        """Configs and manifests before what refers to them."""
        for manifest in self._image.manifests:
            layers = [layer.descriptor for layer in manifest.layers]
            self._content.put(manifest.config_descriptor.digest, manifest.config_data)
            self._content.put(manifest.descriptor.digest, manifest.data, labels.manifest_references(manifest.config_descriptor, layers))
        for descriptor, data in reversed(self._image.indexes):
            listed = Index.parse(data, media_type=descriptor.media_type).manifests
            self._content.put(descriptor.digest, data, labels.index_references(listed))

    async def store_referrers(self) -> None:
        """What each carries before itself, itself before its subject's claim on it."""
        here = {self._image.descriptor.digest, *(item.digest for item, _ in self._image.indexes)}
        here |= {manifest.descriptor.digest for manifest in self._image.manifests}
        blobs = _Blobs(self._node, self._content, self._timeout)
        for number, referrer in enumerate(await fetch_referrers(self._node, self._image, timeout=self._timeout)):
            if referrer.subject not in here:
                continue  # of a platform that is not pulled
            here.add(referrer.descriptor.digest)
            for descriptor, cid in referrer.blobs.items():
                await blobs.fetch(descriptor, cid)
            kept = labels.artifact_references(referrer.blobs)
            claim = labels.referrer_reference(number, referrer.descriptor)
            await _in_thread(lambda item=referrer, kept=kept: self._content.put(item.descriptor.digest, item.data, kept))  # type: ignore[misc]
            await _in_thread(lambda item=referrer, claim=claim: self._content.label(item.subject, claim))  # type: ignore[misc]
            self.referrers.append(referrer.descriptor.digest)

    async def fetch(self, manifest: RemoteManifest) -> None:
        """What an attestation carries, as blobs: nothing of it can be unpacked."""
        blobs = _Blobs(self._node, self._content, self._timeout)
        for layer in manifest.layers:
            await blobs.fetch(layer.descriptor, layer.cid)

    async def unpack(self, manifest: RemoteManifest) -> None:
        """A snapshot for every layer, lowest first, and the config's claim on the last."""
        chain = list(chain_ids(layer.diff_id for layer in manifest.layers))
        if not chain:
            return
        # A snapshot has its parents, so where the last one is there, all are.
        if await _in_thread(lambda: self._present(chain[-1])):
            for layer, chain_id in zip(manifest.layers, chain, strict=True):
                self._note(layer, chain_id, "present")
        else:
            blobs = _Blobs(self._node, self._content, self._timeout)
            if self._snapshotter in _EAGER:
                async with trio.open_nursery() as nursery:
                    for layer, chain_id in zip(manifest.layers, chain, strict=True):
                        if not await _in_thread(lambda chain_id=chain_id: self._snapshots.exists(str(chain_id))):  # type: ignore[misc]
                            nursery.start_soon(blobs.fetch, layer.descriptor, layer.cid)
                    await self._layers(manifest, chain, blobs)
            else:
                await self._layers(manifest, chain, blobs)
        reference = labels.snapshot_reference(self._snapshotter, chain[-1])
        await _in_thread(lambda: self._content.label(manifest.config_descriptor.digest, reference))

    async def _layers(self, manifest: RemoteManifest, chain: Sequence[Digest], blobs: _Blobs) -> None:
        for number in range(len(chain)):
            await self._layer(manifest, number, chain, blobs)

    def _present(self, chain_id: Digest) -> bool:
        if not self._snapshots.exists(str(chain_id)):
            return False
        try:
            add_to_lease(self._connection, kind=f"snapshots/{self._snapshotter}", name=str(chain_id))
        except ContainerdNotFound:
            return False  # collected in between
        return True

    async def _layer(self, manifest: RemoteManifest, number: int, chain: Sequence[Digest], blobs: _Blobs) -> None:
        layer, chain_id = manifest.layers[number], chain[number]
        parent = str(chain[number - 1]) if number else ""
        told = labels.layer_labels(self._name, manifest.descriptor, [item.located for item in manifest.layers], number, chain_id)
        for _ in range(_ATTEMPTS):
            if await _in_thread(lambda: self._present(chain_id)):
                return self._note(layer, chain_id, "present")
            key = f"extract-{secrets.token_hex(6)} {chain_id}"
            try:
                mounts = await _abandonable(lambda key=key: self._snapshots.prepare(key, parent, told))  # type: ignore[misc]
            except AlreadyExists:
                if await _in_thread(lambda: self._present(chain_id)):
                    return self._note(layer, chain_id, "lazy")
                continue  # somebody else had made it and lost it again
            try:
                await self._fall_back(layer, chain_id, key, mounts, blobs)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await _in_thread(lambda key=key: end(self._connection, lambda: self._snapshots.remove(key), quietly=True))  # type: ignore[misc]
                raise
            why = "" if self._snapshotter in _EAGER else f"snapshotter {self._snapshotter!r} cannot mount it lazily; its log says why"
            return self._note(layer, chain_id, "pulled", why)
        raise ContainerdRefused(
            f"snapshot {chain_id} of layer {layer.descriptor.digest} comes and goes", hint="is another pull being undone?"
        )

    async def _fall_back(self, layer: RemoteLayer, chain_id: Digest, key: str, mounts: Sequence[Mount], blobs: _Blobs) -> None:
        await blobs.fetch(layer.descriptor, layer.cid)
        found = await _abandonable(lambda: apply(self._connection, layer.descriptor, mounts))
        if found != layer.diff_id:
            raise BlobMismatch(f"layer {layer.descriptor.digest} unpacks to {found}, the image's config says {layer.diff_id}")
        keep = {labels.SNAPSHOT_REF: str(chain_id)}
        try:
            await _in_thread(lambda: self._snapshots.commit(str(chain_id), key, keep))
        except AlreadyExists:  # another pull of the same layer was faster
            await _in_thread(lambda: self._snapshots.remove(key))

    def _note(self, layer: RemoteLayer, chain_id: Digest, how: How, why: str = "") -> None:
        pulled = PulledLayer(layer.descriptor.digest, chain_id, layer.descriptor.size, how, why)
        self.done.append(pulled)
        self._report(pulled)


class _Blobs:
    """Brings layers into the content store, each once, a few at a time."""

    def __init__(self, node: Node, content: ContentStore, timeout: float | None) -> None:
        self._node = node
        self._content = content
        self._timeout = timeout
        self._there: dict[Digest, trio.Event] = {}
        self._places = trio.CapacityLimiter(_FETCHES)

    async def fetch(self, descriptor: Descriptor, cid: Cid) -> None:
        """Return when the blob is there. A fetch that fails elsewhere ends the nursery that both run in."""
        digest = descriptor.digest
        if digest in self._there:
            await self._there[digest].wait()
            return
        there = self._there[digest] = trio.Event()
        async with self._places:
            await self._copy(descriptor, cid)
        there.set()

    async def _copy(self, descriptor: Descriptor, cid: Cid) -> None:
        context = self._content.ingest(descriptor.digest, descriptor.size)
        ingest = await _in_thread(context.__enter__)
        try:
            if ingest is not None:

                async def write(piece: bytes) -> None:
                    await _in_thread(lambda: ingest.write(piece))

                await copy_file(self._node, descriptor, cid, write, timeout=self._timeout)
        except BaseException as error:
            raised = error  # the name of the except clause is gone when the thread runs
            with trio.CancelScope(shield=True):
                await _in_thread(lambda: context.__exit__(type(raised), raised, raised.__traceback__))
            raise
        await _in_thread(lambda: context.__exit__(None, None, None))


async def _in_thread(work: Callable[[], Result]) -> Result:
    """In a thread, to its end: what it began is over when clean-up begins."""
    return await trio.to_thread.run_sync(work)


async def _abandonable(work: Callable[[], Result]) -> Result:
    """In a thread that is left to itself when cancelled: for calls that may take minutes, and end when the connection is closed."""
    # The stubs of trio-typing, which ipfshttpclient brings along, are older than this argument.
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)  # type: ignore[call-arg, unused-ignore]


def _pause(seconds: float) -> None:
    time.sleep(seconds)
    trio.from_thread.check_cancelled()
