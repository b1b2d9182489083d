"""Docker archives, as ``docker save`` and ``podman save`` write them (moby, image/spec/v1.2): OCI documents are made for them.

``manifest.json`` lists images by config file, names and layer files. A layer is a plain tar, whose digest is the DiffID in the
config, so that nothing is read ahead; where a tool put a compressed one, it is read once to know its digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from ipfs_store.errors import BlobMismatch, ImageNotFound, InvalidDescriptor, InvalidInput, InvalidReference
from ipfs_store.images.sources.files import Files
from ipfs_store.images.sources.scratch import PIECE
from ipfs_store.images.sources.stored import StoredImage
from ipfs_store.oci import Config, Descriptor, Digest, Reference
from ipfs_store.oci.manifest import MAX_DOCUMENT, MAX_LAYERS, encode_document
from ipfs_store.oci.media_types import OCI_CONFIG, OCI_MANIFEST, Compression, layer_type

_SHOWN = 20
_CONFIG_NAME = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class _Listed:
    config: str
    names: tuple[str, ...]
    layers: tuple[str, ...]


def open_docker_archive(files: Files, wanted: str = "") -> StoredImage:
    """The image ``wanted`` (a name, or ``@N``, counted from 0) or the only one.

    Raises InvalidInput (no Docker archive), InvalidDescriptor, ImageNotFound, BlobMismatch. Synchronous.
    """
    data = files.read("manifest.json", MAX_DOCUMENT)
    if data is None:
        if files.read("repositories", MAX_DOCUMENT) is not None:
            raise InvalidInput(f"{files.where} is a Docker archive of before 2016, without a manifest.json", hint="save it again")
        raise InvalidInput(f"{files.where} has no manifest.json: it is no Docker archive")
    image = _choose(_parse(data, files.where), wanted, files.where)
    config_data = files.read(image.config, MAX_DOCUMENT)
    if config_data is None:
        raise ImageNotFound(f"{files.where} does not have the config {image.config[:200]!r} that its manifest.json names")
    digest = Digest.of(config_data)
    if (said := _CONFIG_NAME.fullmatch(image.config)) and said[1] != digest.hex:
        raise BlobMismatch(f"{files.where}: {image.config} is damaged: its digest is {digest}")
    config = Config.parse(config_data, where=f"{files.where}: {image.config[:200]}")
    if len(config.diff_ids) != len(image.layers):
        raise InvalidDescriptor(
            f"{files.where}: {len(image.layers)} layers in manifest.json, {len(config.diff_ids)} in {image.config[:200]}"
        )
    layers, paths = _layers(files, image.layers, config.diff_ids)
    manifest = encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor(OCI_CONFIG, digest, len(config_data)).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )
    root = Descriptor(OCI_MANIFEST, Digest.of(manifest), len(manifest))
    return StoredImage(files, _full(image.names[0]) if image.names else "", root, {root.digest: manifest, digest: config_data}, paths)


def _layers(files: Files, names: Sequence[str], diff_ids: Sequence[Digest]) -> tuple[list[Descriptor], Mapping[Digest, str]]:
    layers: list[Descriptor] = []
    paths: dict[Digest, str] = {}
    for name, diff_id in zip(names, diff_ids, strict=True):
        found = files.stat(name)
        if found is None:
            raise ImageNotFound(f"{files.where} does not have the layer {name[:200]!r} that its manifest.json names")
        compression = _compression(found.head)
        digest = diff_id if compression == "none" else _digest(files, name)
        layers.append(Descriptor(layer_type(compression), digest, found.size))
        paths[digest] = name
    return layers, paths


def _compression(head: bytes) -> Compression:
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    return "zstd" if head[:4] == b"\x28\xb5\x2f\xfd" or (b"\x50" <= head[:1] <= b"\x5f" and head[1:4] == b"\x2a\x4d\x18") else "none"


def _digest(files: Files, name: str) -> Digest:
    hasher = hashlib.sha256()
    opened = files.open(name)
    assert opened is not None
    with opened as path, path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            trio.from_thread.check_cancelled()
            hasher.update(piece)
    return Digest(hasher.hexdigest())


def _parse(data: bytes, where: str) -> list[_Listed]:
    broken = InvalidDescriptor(f"{where}: manifest.json is not that of a Docker archive")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidDescriptor(f"{where}: manifest.json is not JSON: {str(error)[:120]}") from error
    if not isinstance(value, list):
        raise broken
    images: list[_Listed] = []
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("Config"), str):
            raise broken
        names, layers = item.get("RepoTags") or [], item.get("Layers") or []
        if not _strings(names) or not _strings(layers) or len(layers) > MAX_LAYERS:
            raise broken
        images.append(_Listed(item["Config"], tuple(names), tuple(layers)))
    if not images:
        raise ImageNotFound(f"{where} has no image in it: its manifest.json is empty")
    return images


def _choose(images: Sequence[_Listed], wanted: str, where: str) -> _Listed:
    if not wanted:
        if len({image.config for image in images}) > 1:
            raise ImageNotFound(f"{where} has several images: {_names(images)}", hint=f"choose one: {where}:NAME")
        return images[0]
    if wanted[0] == "@" and wanted[1:].isdecimal():
        if int(wanted[1:]) < len(images):
            return images[int(wanted[1:])]
        raise ImageNotFound(f"{where} has no image number {wanted[1:]}; it has {len(images)}, counted from 0")
    for image in images:
        for name in image.names:
            if wanted == name or (_full(wanted) and _full(wanted) == _full(name)):
                return _Listed(image.config, (name,), image.layers)
    raise ImageNotFound(f"{where} has no image {wanted[:200]!r}; it has {_names(images)}")


def _names(images: Sequence[_Listed]) -> str:
    names = [image.names[0] if image.names else f"@{number}" for number, image in enumerate(images)]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _full(text: str) -> str:
    try:
        return str(Reference.parse(text))
    except InvalidReference:
        return ""


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
