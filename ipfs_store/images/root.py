"""The image root: one DAG-CBOR block that links everything an image has and says how much each part is (docs/image-dag.md).

A value (`ImageRoot`) to and from a block. What a root says of itself is checked here, without fetching anything: that it has the form of
its schema, that it names each blob once and with one CID, that sums add up. What it says of others is checked by who fetches them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ipfs_store.cids import DAG_CBOR, DAG_PB, RAW, Cid, cid_of, codec_of, format_cid, parse_cid
from ipfs_store.dag import dagcbor
from ipfs_store.errors import InvalidDag, InvalidDescriptor, InvalidDigest
from ipfs_store.formats.names import ROOT_ANNOTATION as ROOT_ANNOTATION  # for whoever deals with roots
from ipfs_store.nodes.interface import Block
from ipfs_store.oci import Descriptor, Digest, Platform
from ipfs_store.oci.media_types import is_index, is_manifest

KIND = "ipfs-store.image"
VERSION = 1
MAX_ROOT = 1 << 20
"""Bytes of the block: what every IPFS node takes. 2,000 layers fit; an image may have 127 a platform."""

_MAX_SIZE = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class RootBlob:
    """A blob of the image as a UnixFS file."""

    media_type: str
    digest: Digest
    size: int
    cid: Cid

    @classmethod
    def of(cls, descriptor: Descriptor) -> RootBlob:
        """The blob that a descriptor with an ``ipfs://`` URL describes; raises InvalidDescriptor."""
        return cls(descriptor.media_type, descriptor.digest, descriptor.size, cid_of_urls(descriptor))

    @property
    def descriptor(self) -> Descriptor:
        """An OCI descriptor with the CID as its URL."""
        return Descriptor(self.media_type, self.digest, self.size, (f"ipfs://{format_cid(self.cid)}",))


@dataclass(frozen=True, slots=True)
class RootToc:
    """A layer's table of contents as an object of its own (`formats.detached`)."""

    digest: Digest
    """Of the uncompressed TOC: what the layer's annotation names."""
    size: int
    """Bytes of the object."""
    raw_size: int
    """Bytes of the uncompressed TOC."""
    cid: Cid


@dataclass(frozen=True, slots=True)
class RootLayer:
    """A layer; ``diff_id`` and ``toc`` where they are known."""

    blob: RootBlob
    diff_id: Digest | None = None
    toc: RootToc | None = None


@dataclass(frozen=True, slots=True)
class RootProfile:
    """What a start of the image reads, as an object of its own."""

    name: str
    size: int
    cid: Cid


@dataclass(frozen=True, slots=True)
class RootManifest:
    """A manifest, its config and its layers, lowest first."""

    blob: RootBlob
    config: RootBlob
    layers: tuple[RootLayer, ...]
    platform: Platform | None = None
    profiles: tuple[RootProfile, ...] = ()


@dataclass(frozen=True, slots=True)
class RootReferrer:
    """A manifest or index that refers to another one (signature, SBOM, attestation), with all that it is made of."""

    subject: Digest
    blob: RootBlob
    artifact_type: str = ""
    blobs: tuple[RootBlob, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageRoot:
    """A whole image."""

    name: str
    """The name it was pushed under, empty if none."""
    manifests: tuple[RootManifest, ...]
    indexes: tuple[RootBlob, ...] = ()
    """Every index above the manifests, the top one first; empty for a manifest that stands alone."""
    referrers: tuple[RootReferrer, ...] = ()

    @property
    def image(self) -> RootBlob:
        """The index or manifest that the image is."""
        return self.indexes[0] if self.indexes else self.manifests[0].blob

    @property
    def layers(self) -> tuple[RootLayer, ...]:
        """Every layer once, in the order of the manifests."""
        return tuple({layer.blob.digest: layer for manifest in self.manifests for layer in manifest.layers}.values())

    @property
    def blobs(self) -> dict[Digest, RootBlob]:
        """Every blob with an OCI digest, once."""
        return {blob.digest: blob for blob in self._every_blob()}

    @property
    def cids(self) -> dict[Digest, Cid]:
        """Where each blob is."""
        return {digest: blob.cid for digest, blob in self.blobs.items()}

    @property
    def size(self) -> int:
        """Bytes of everything the root links: blobs, TOCs, profiles, each once; without the inner blocks of their files."""
        others = {layer.toc.cid: layer.toc.size for layer in self.layers if layer.toc is not None}
        others |= {profile.cid: profile.size for manifest in self.manifests for profile in manifest.profiles}
        return sum(blob.size for blob in self.blobs.values()) + sum(others.values())

    def encode(self) -> Block:
        """The block; raises InvalidDag where parts contradict each other or it would be over MAX_ROOT."""
        _consistent(self)
        layers = self.layers
        numbers = {layer.blob.digest: number for number, layer in enumerate(layers)}
        value: dict[str, Any] = {
            "kind": KIND,
            "version": VERSION,
            "name": self.name,
            "size": self.size,
            "image": _blob_value(self.image),
            "indexes": [_blob_value(blob) for blob in self.indexes],
            "manifests": [_manifest_value(manifest, numbers) for manifest in self.manifests],
            "layers": [_layer_value(layer) for layer in layers],
            "digests": {str(digest): dagcbor.CidLink(cid) for digest, cid in self.cids.items()},
        }
        if self.referrers:
            value["referrers"] = [_referrer_value(referrer) for referrer in self.referrers]
        data = dagcbor.encode(value)
        if len(data) > MAX_ROOT:
            raise InvalidDag(f"the image root would have {len(data)} bytes, over the limit of {MAX_ROOT}", hint="push fewer platforms")
        return Block(cid_of(DAG_CBOR, data), data)

    def _every_blob(self) -> Iterator[RootBlob]:
        yield from self.indexes
        for manifest in self.manifests:
            yield manifest.blob
            yield manifest.config
            yield from (layer.blob for layer in manifest.layers)
        for referrer in self.referrers:
            yield referrer.blob
            yield from referrer.blobs


def decode_root(block: bytes) -> ImageRoot:
    """The image that a root block describes; unknown fields are ignored. Raises InvalidDag, naming the field."""
    if len(block) > MAX_ROOT:
        raise InvalidDag(f"an image root of {len(block)} bytes, over the limit of {MAX_ROOT}")
    value = dagcbor.decode(block)
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InvalidDag("this DAG-CBOR block is not an image root")
    if type(value.get("version")) is not int or value["version"] != VERSION:
        raise InvalidDag(f"an image root of version {str(value.get('version'))[:40]}; this program knows version {VERSION}")
    top = _Fields(value, "")
    layers = [_layer(fields) for fields in top.each("layers")]
    used: set[int] = set()
    root = ImageRoot(
        name=top.text("name", empty=True),
        manifests=tuple(_manifest(fields, layers, used) for fields in top.each("manifests")),
        indexes=tuple(_blob(fields) for fields in top.each("indexes")),
        referrers=tuple(_referrer(fields) for fields in top.each("referrers", optional=True)),
    )
    if extra := sorted(set(range(len(layers))) - used):
        top.wrong(f"layers/{extra[0]}", "is a layer of no manifest")
    _consistent(root)
    if _blob(top.inner("image")) != root.image:
        top.wrong("image", "is not the first index, nor the only manifest")
    _check_digests(top, root)
    if top.number("size") != root.size:
        top.wrong("size", f"says {top.number('size')} bytes, and the parts add up to {root.size}")
    return root


def cid_of_urls(descriptor: Descriptor) -> Cid:
    """The CID that the descriptor's first ``ipfs://`` URL names; raises InvalidDescriptor."""
    for url in descriptor.urls:
        if url.startswith("ipfs://"):
            return parse_cid(url)
    raise InvalidDescriptor(
        f"{descriptor.media_type} {descriptor.digest} has no ipfs:// URL", hint="the image was not pushed into IPFS; ipfs-push does that"
    )


def _consistent(root: ImageRoot) -> None:
    """Raises InvalidDag where the parts of a root contradict each other."""
    if not root.manifests:
        raise InvalidDag("the image root has no manifest")
    if not root.indexes and len(root.manifests) != 1:
        raise InvalidDag(f"the image root has {len(root.manifests)} manifests and no index")
    found: dict[Digest, RootBlob] = {}
    for blob in root._every_blob():
        if found.setdefault(blob.digest, blob) != blob:
            raise InvalidDag(f"the image root describes {blob.digest} twice, and not alike")
    layers: dict[Digest, RootLayer] = {}
    for layer in (layer for manifest in root.manifests for layer in manifest.layers):
        if layers.setdefault(layer.blob.digest, layer) != layer:
            raise InvalidDag(f"the image root describes layer {layer.blob.digest} twice, and not alike")
    for blob in root.indexes:
        if not is_index(blob.media_type):
            raise InvalidDag(f"the image root has a {blob.media_type} among its indexes")
    for manifest in root.manifests:
        if not is_manifest(manifest.blob.media_type):
            raise InvalidDag(f"the image root has a {manifest.blob.media_type} among its manifests")
    for referrer in root.referrers:
        if referrer.subject not in found or referrer.subject == referrer.blob.digest:
            raise InvalidDag(f"the image root has a referrer to {referrer.subject}, which it does not have")


def _check_digests(top: _Fields, root: ImageRoot) -> None:
    digests = top.inner("digests")
    expected = root.cids
    for text in digests.value:
        digest = digests.parse_digest(text, text)
        if digest not in expected:
            digests.wrong(text, "belongs to nothing of the image")
        if digests.link(text) != expected.pop(digest):
            digests.wrong(text, "links something else than the image does")
    for digest in expected:
        digests.wrong(str(digest), "is missing")


def _blob_value(blob: RootBlob) -> dict[str, Any]:
    return {"mediaType": blob.media_type, "digest": str(blob.digest), "size": blob.size, "blob": dagcbor.CidLink(blob.cid)}


def _layer_value(layer: RootLayer) -> dict[str, Any]:
    value = _blob_value(layer.blob)
    if layer.diff_id is not None:
        value["diffId"] = str(layer.diff_id)
    if layer.toc is not None:
        toc = layer.toc
        value["toc"] = {"digest": str(toc.digest), "size": toc.size, "rawSize": toc.raw_size, "blob": dagcbor.CidLink(toc.cid)}
    return value


def _manifest_value(manifest: RootManifest, numbers: Mapping[Digest, int]) -> dict[str, Any]:
    value = _blob_value(manifest.blob)
    value["config"] = _blob_value(manifest.config)
    value["layers"] = [numbers[layer.blob.digest] for layer in manifest.layers]
    if manifest.platform is not None:
        value["platform"] = _platform_value(manifest.platform)
    if manifest.profiles:
        value["profiles"] = [{"name": item.name, "size": item.size, "blob": dagcbor.CidLink(item.cid)} for item in manifest.profiles]
    return value


def _platform_value(platform: Platform) -> dict[str, str]:
    value = {"os": platform.os, "architecture": platform.architecture}
    return {**value, "variant": platform.variant} if platform.variant else value


def _referrer_value(referrer: RootReferrer) -> dict[str, Any]:
    value = _blob_value(referrer.blob)
    value["subject"] = str(referrer.subject)
    value["blobs"] = [_blob_value(blob) for blob in referrer.blobs]
    if referrer.artifact_type:
        value["artifactType"] = referrer.artifact_type
    return value


def _blob(fields: _Fields) -> RootBlob:
    blob = RootBlob(fields.text("mediaType"), fields.digest("digest"), fields.number("size"), fields.file("blob"))
    # A blob of one raw leaf has its digest in its CID: no need to fetch it to see a lie.
    if codec_of(blob.cid) == RAW and blob.cid[2:4] == b"\x12\x20" and blob.cid[4:] != blob.digest.raw:
        fields.wrong("blob", f"links a block that does not have the digest {blob.digest}")
    return blob


def _layer(fields: _Fields) -> RootLayer:
    diff_id = fields.digest("diffId") if "diffId" in fields.value else None
    toc = None
    if "toc" in fields.value:
        inner = fields.inner("toc")
        toc = RootToc(inner.digest("digest"), inner.number("size"), inner.number("rawSize"), inner.file("blob"))
    return RootLayer(_blob(fields), diff_id, toc)


def _manifest(fields: _Fields, layers: Sequence[RootLayer], used: set[int]) -> RootManifest:
    numbers = fields.items("layers")
    for at, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number < len(layers):
            fields.wrong(f"layers/{at}", "is not the number of a layer")
    used.update(numbers)
    return RootManifest(
        _blob(fields),
        _blob(fields.inner("config")),
        tuple(layers[number] for number in numbers),
        _platform(fields.inner("platform")) if "platform" in fields.value else None,
        tuple(_profile(item) for item in fields.each("profiles", optional=True)),
    )


def _platform(fields: _Fields) -> Platform:
    variant = fields.text("variant") if "variant" in fields.value else ""
    return Platform(fields.text("os"), fields.text("architecture"), variant)


def _profile(fields: _Fields) -> RootProfile:
    return RootProfile(fields.text("name", empty=True), fields.number("size"), fields.link("blob"))


def _referrer(fields: _Fields) -> RootReferrer:
    artifact_type = fields.text("artifactType") if "artifactType" in fields.value else ""
    return RootReferrer(fields.digest("subject"), _blob(fields), artifact_type, tuple(_blob(item) for item in fields.each("blobs")))


@dataclass(frozen=True, slots=True)
class _Fields:
    """A map of the root, read field by field; ``where`` is its path in the block, for messages."""

    value: Mapping[str, Any]
    where: str

    def wrong(self, key: str, what: str) -> NoReturn:
        raise InvalidDag(f"the image root is not as its schema has it: {self.where}{key[:120]} {what}")

    def text(self, key: str, *, empty: bool = False) -> str:
        value = self.value.get(key)
        if not isinstance(value, str) or not (value or empty):
            self.wrong(key, "is not a text")
        return value

    def number(self, key: str) -> int:
        value = self.value.get(key)
        if type(value) is not int or not 0 <= value <= _MAX_SIZE:
            self.wrong(key, "is not a size in bytes")
        return value

    def digest(self, key: str) -> Digest:
        return self.parse_digest(key, self.value.get(key))

    def parse_digest(self, key: str, text: object) -> Digest:
        try:
            return Digest.parse(text if isinstance(text, str) else "")
        except InvalidDigest:
            self.wrong(key, "is not a digest")

    def link(self, key: str) -> Cid:
        value = self.value.get(key)
        if not isinstance(value, dagcbor.CidLink):
            self.wrong(key, "is not a link")
        return value.cid

    def file(self, key: str) -> Cid:
        cid = self.link(key)
        if codec_of(cid) not in (RAW, DAG_PB):
            self.wrong(key, "does not link a file")
        return cid

    def items(self, key: str, *, optional: bool = False) -> list[Any]:
        value = self.value.get(key, [] if optional else None)
        if not isinstance(value, list):
            self.wrong(key, "is not a list")
        return value

    def inner(self, key: str) -> _Fields:
        value = self.value.get(key)
        if not isinstance(value, dict):
            self.wrong(key, "is not a map")
        return _Fields(value, f"{self.where}{key}/")

    def each(self, key: str, *, optional: bool = False) -> Iterable[_Fields]:
        for number, item in enumerate(self.items(key, optional=optional)):
            if not isinstance(item, dict):
                self.wrong(f"{key}/{number}", "is not a map")
            yield _Fields(item, f"{self.where}{key}/{number}/")
